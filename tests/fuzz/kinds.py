"""Every kind of file that is read: a good one, how it is changed, and what reads it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import av
import numpy as np
import rasterio
import torch
import yaml
from fuzz.mutants import header_mutant, mutant, word_mutant
from helpers.shard_server import pairs, write_shard
from helpers.untrained_detector import save_untrained
from PIL import Image
from rasterio import Affine

from backbones import load_backbone, save_backbone
from backbones.common.config import load_config, save_config
from backbones.common.images import read_image, read_image_size
from backbones.data.shards import read_shard
from backbones.networks.inception import create_backbone
from backbones.training.checkpoints import load_last_checkpoint, save_checkpoint
from detect.checkpoint import load_detector
from detect.config import DetectorConfig
from detect.data import DetectionDataset, load_coco, load_voc, load_yolo
from detect.evaluation import load_results
from detect.inference.outputs import clear_earlier
from detect.media.large import LargeImage
from detect.media.video import VideoReader
from detect.proposals import load_proposals


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes:
        name: of the kind.
        file: the good file, which each mutant takes the place of.
        change: makes a mutant of its bytes.
        read: reads it, and returns what was read.
        share: of all mutants, relative to the others'.
    """

    name: str
    file: Path
    change: Callable[[bytes, Random], bytes]
    read: Callable[[], Any]
    share: int = 2


def make_kinds(root: Path) -> list[Kind]:
    """All kinds, each with its good files in a folder below `root`."""
    of_media = (*_images(root), *_videos(root), _large(root))
    return [*of_media, *_annotations(root), *_outputs(root), *_settings(root), *_tensors(root)]


def _images(root: Path) -> list[Kind]:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    kinds = []
    for suffix in ("jpg", "png", "webp", "tiff", "bmp"):
        file = root / "images" / f"a.{suffix}"
        file.parent.mkdir(exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(pixels).save(file, **({} if suffix == "bmp" else {"exif": exif}))

        def read(file: Path = file) -> Any:
            size = read_image_size(file)
            return size, read_image(file).float()

        kinds.append(Kind(suffix, file, mutant, read))
    return kinds


def _videos(root: Path) -> list[Kind]:
    noise = np.random.default_rng(1)
    kinds = []
    for suffix, codec in (("mp4", "libx264"), ("mkv", "libx264"), ("avi", "mpeg4")):
        file = root / f"a.{suffix}"
        with av.open(str(file), "w") as container:
            stream = container.add_stream(codec, rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for _ in range(6):
                pixels = noise.integers(0, 256, (48, 64, 3), dtype=np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())

        def read(file: Path = file) -> Any:
            return [(frame.float(), time) for frame, time in VideoReader(file).timed()]

        kinds.append(Kind(suffix, file, mutant, read))
    return kinds


def _large(root: Path) -> Kind:
    """A TIFF in tiles, with a place on the map, read part by part."""
    file = root / "large.tif"
    pixels = np.random.default_rng(2).integers(0, 256, (3, 96, 128), dtype=np.uint8)
    place = {"crs": "EPSG:32633", "transform": Affine(0.5, 0, 4e5, 0, -0.5, 5e6)}
    shape = {"width": 128, "height": 96, "count": 3, "dtype": "uint8"}
    tiles = {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "deflate"}
    with rasterio.open(file, "w", driver="GTiff", **shape, **tiles, **place) as image:
        image.write(pixels)

    def read() -> Any:
        with LargeImage(file) as image:
            return image.read((0, 0, image.width, image.height), (image.height, image.width))

    return Kind("large", file, mutant, read)


def _outputs(root: Path) -> list[Kind]:
    """The list by which `infer` knows what is its own."""
    file = root / "out/images.json"
    file.parent.mkdir()
    file.write_text('{"images": [{"id": 1, "annotated": "a.jpg", "geojson": "a.geojson"}]}')

    def read() -> None:
        try:
            clear_earlier(file.parent, [], overwrite=True)
        finally:
            assert list(file.parent.iterdir()) in ([], [file])

    return [Kind("images.json", file, word_mutant, read)]


def _annotations(root: Path) -> list[Kind]:
    for folder in ("coco/val", "voc/Annotations", "voc/ImageSets/Main", "voc/JPEGImages"):
        (root / folder).mkdir(parents=True)
    for folder in ("yolo/images", "yolo/labels"):
        (root / folder).mkdir(parents=True)
    for file in ("coco/val/a.png", "voc/JPEGImages/a.jpg", "yolo/images/a.png"):
        Image.new("RGB", (64, 48)).save(root / file)

    coco, results = root / "coco/val.json", root / "coco/results.json"
    box = {"image_id": 1, "category_id": 1, "bbox": [1.5, 2, 30, 40]}
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 48}],
        "annotations": [{"id": 1, **box, "iscrowd": 0, "area": 1200}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 7, "name": "dog"}],
    }
    coco.write_text(json.dumps(document))
    results.write_text(json.dumps([{**box, "score": 0.5}, {**box, "score": 0.25}]))
    dataset = load_coco(coco, root / "coco/val")

    xml = root / "voc/Annotations/a.xml"
    xml.write_text(
        "<annotation><filename>a.jpg</filename><size><width>64</width><height>48</height>"
        "<depth>3</depth></size><object><name>cat</name><difficult>0</difficult><bndbox>"
        "<xmin>3</xmin><ymin>4</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object></annotation>"
    )
    listed = root / "voc/ImageSets/Main/val.txt"
    listed.write_text("a\n")
    data, label = root / "yolo/data.yaml", root / "yolo/labels/a.txt"
    data.write_text("path: .\nval: images\nnames: {0: cat, 1: dog}\n")
    label.write_text("0 0.5 0.5 0.25 0.2\n1 0.1 0.1 0.3 0.1 0.2 0.5\n")

    def all_of(load: Callable[[], DetectionDataset]) -> Any:
        return [vars(sample) for sample in load()]

    of_coco = partial(all_of, partial(load_coco, coco, root / "coco/val"))
    of_voc = partial(all_of, partial(load_voc, root / "voc", "val"))
    of_yolo = partial(all_of, partial(load_yolo, root / "yolo", "val"))
    return [
        Kind("COCO", coco, word_mutant, of_coco, 4),
        Kind("COCO bytes", coco, mutant, of_coco),
        Kind("results", results, word_mutant, partial(load_results, results, dataset), 4),
        Kind("proposals", results, mutant, partial(load_proposals, results)),
        Kind("VOC", xml, word_mutant, of_voc, 4),
        Kind("VOC bytes", xml, mutant, of_voc),
        Kind("VOC list", listed, mutant, of_voc, 1),
        Kind("YOLO yaml", data, word_mutant, of_yolo, 3),
        Kind("YOLO txt", label, word_mutant, of_yolo, 3),
        Kind("YOLO txt bytes", label, mutant, of_yolo, 1),
    ]


def _settings(root: Path) -> list[Kind]:
    config = root / "config.yaml"
    save_config(config, DetectorConfig())

    def read() -> Any:
        return yaml.safe_dump(vars(load_config(DetectorConfig, config).optim))

    return [
        Kind("config", config, word_mutant, read, 4),
        Kind("config bytes", config, mutant, read),
    ]


def _tensors(root: Path) -> list[Kind]:
    shard, detector, backbone = root / "a.tar", root / "d.safetensors", root / "b.safetensors"
    write_shard(shard, pairs(0, 4))
    save_untrained(detector, 3)
    save_backbone(
        backbone, create_backbone("inception_v3_79", num_classes=2, width=0.25), ["a", "b"]
    )
    step = save_checkpoint(root / "checkpoints", 1, {"model": {"w": torch.ones(9)}, "step": 1})

    def of_detector() -> Any:
        return load_detector(detector, "cpu").model.state_dict()

    def of_backbone() -> Any:
        return load_backbone(backbone).state_dict()

    def of_checkpoint() -> Any:
        try:
            return load_last_checkpoint(step.parent)
        finally:
            for file in step.parent.iterdir():
                file.unlink()

    return [
        Kind("shard", shard, mutant, lambda: [s[:2] for s in read_shard(str(shard))], 6),
        Kind("checkpoint", step, mutant, of_checkpoint, 3),
        Kind("detector", detector, header_mutant, of_detector, 3),
        Kind("backbone", backbone, header_mutant, of_backbone, 3),
        Kind("weights bytes", backbone, mutant, of_backbone),
    ]
