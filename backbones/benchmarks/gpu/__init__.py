"""The backbones' part of `tools.gpu_check`, and what all of it has in common."""
