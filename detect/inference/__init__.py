"""A detector over many images: `annotate` writes pictures and results of files and videos, `score`
runs it over a dataset, `propose` keeps where it looks.
"""
