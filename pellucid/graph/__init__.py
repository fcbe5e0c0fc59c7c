"""The network as a graph of layers: read from ONNX, differentiated, drawn."""
