"""Datasets for detection: COCO, Pascal VOC, YOLO, and digits that are made on the spot."""

from detect.data.coco import load_coco
from detect.data.digits import make_digits
from detect.data.sample import DetectionDataset, Sample
from detect.data.voc import VOC_CLASSES, boxes_from_voc, boxes_to_voc, load_voc
from detect.data.yolo import load_yolo

__all__ = [
    "VOC_CLASSES",
    "DetectionDataset",
    "Sample",
    "boxes_from_voc",
    "boxes_to_voc",
    "load_coco",
    "load_voc",
    "load_yolo",
    "make_digits",
]
