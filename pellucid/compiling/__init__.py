"""Explanations as ONNX files: written beside the network that they explain, run anywhere."""
