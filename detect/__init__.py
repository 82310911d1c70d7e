"""Detection of small objects: R-CNN with a low-resolution Inception network on its crops.

Conventions, everywhere in this package: images are `uint8` RGB tensors `[3, H, W]`; boxes are
`float32` xyxy in absolute pixels, half-open (`x2 - x1` is the width, never plus one); sizes are
(height, width), but in datasets (width, height), as in their files; labels are `int64`, 0 is
background and 1..K are the classes. Other formats are converted when annotations are read and
results are written, nowhere else.
"""

from detect.detector import Detector, load_detector, save_detector
from detect.rcnn import RCNN
from detect.rcnn_config import RCNNConfig

__all__ = ["RCNN", "Detector", "RCNNConfig", "load_detector", "save_detector"]
