# %% [markdown]
# # A detector in Python
# For VS Code and Jupyter (`jupytext --to notebook examples/detector_in_python.py`), or for
# `python`. `torchvision_loop.py` beside this file makes the detector and the pictures; the run
# folder of `tools.train_detector`, and any picture, will do as well.

# %%
from pathlib import Path

import numpy as np
import supervision as sv

from detect import load_detector

pictures = sorted(Path("runs/digits/val").glob("*.jpg"))
detector = load_detector("runs/loop.safetensors", "cpu")
print(detector)

# %% [markdown]
# One picture, and the threshold of this call. A notebook draws a `Result` that ends a cell;
# `result.show()` opens it in a window.

# %%
result = detector(pictures[0], score_thresh=0.1)
print(result)
for (x1, y1, x2, y2), name, score in result:
    print(f"{name} {score:.2f}: {x1:.0f}, {y1:.0f} to {x2:.0f}, {y2:.0f}")

# %% [markdown]
# Drawn, as a tensor and as a file; what is in the boxes; those of a higher score.

# %%
print(result.plot().shape)
result.save("runs/found.jpg")
print([tuple(crop.shape) for crop in result.crop("runs/crops")])
print(len(result.above(0.2)), "of", len(result))

# %% [markdown]
# For other programs.

# %%
print(result.to_pandas().head())
print(result.to_coco(image_id=1)[:1])
scene = np.ascontiguousarray(result.image.permute(1, 2, 0).numpy()[..., ::-1])  # blue first
annotated = sv.BoxAnnotator().annotate(scene, result.to_supervision())
print(annotated.shape)

# %% [markdown]
# Some pictures at once, and any number of them one after the other.

# %%
print(detector.detect(pictures[:2], score_thresh=0.1))
for result in detector.stream(pictures, score_thresh=0.1):
    print(result)
