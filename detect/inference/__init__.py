"""A detector over many images: `annotate` writes pictures and results of files and videos, `score`
runs it over a dataset, `evaluate` reports on that, `propose` keeps where it looks.

`config` is what they have in common to choose.
"""
