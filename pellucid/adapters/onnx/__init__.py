"""ONNX files behind the adapter interface."""
