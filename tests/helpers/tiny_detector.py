"""A detector that trains in seconds, for tests of the tools: keys of `DetectorConfig`."""

from typing import Any

TINY: dict[str, Any] = {
    "model": {
        "variant": "inception_v3_79_naive",
        "learned": {"tile_size": 64, "channels": 16},
        "proposals_per_image": 5,
        "proposals_per_image_train": 10,
        "rcnn": {"crops_per_image": 4},
    },
    "optim": {"optimizer": "adamw", "lr": 0.001, "schedule": "cosine"},
    "epochs": 1,
    "batch_size": 2,
    "workers": 0,
}
