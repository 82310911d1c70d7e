"""Trained detectors in forms for use: fast (`detector`, `proposer`), and as ONNX (`onnx`)."""
