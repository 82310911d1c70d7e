"""Arithmetic of boxes: `coding` turns them into deltas and back, `suppression` is NMS."""
