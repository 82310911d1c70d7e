"""The same networks in forms for use: fast in PyTorch (`pytorch`), in OpenVINO, as ONNX.

`folding` takes batch normalisation out, `onednn` fuses what follows a convolution on a CPU, and
`surgery` exchanges layers.
"""
