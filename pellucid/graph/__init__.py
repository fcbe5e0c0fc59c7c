"""Networks as ONNX graphs: differentiating them and running both directions."""
