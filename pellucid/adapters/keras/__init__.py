"""Keras models (Keras 3 on TensorFlow, and tf_keras) behind the adapter interface."""
