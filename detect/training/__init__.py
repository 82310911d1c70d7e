"""Training of a detector: `train` from a configuration, on the examples of `training_set`."""
