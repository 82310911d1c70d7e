"""The detector's part of `tools.gpu_check`, and what is done in which process."""
