"""TensorFlow graphs without layers: frozen graphs of TensorFlow 1, signatures of SavedModels."""
