"""Trained detectors in forms for use: fast (`detector`, `proposer`), and as one file (`export`)."""
