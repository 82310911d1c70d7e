"""The images that a backbone is trained and evaluated on."""

from dataclasses import dataclass, field
from typing import NamedTuple

from torch.utils.data import DataLoader, Subset

from backbones.common.errors import UserError
from backbones.common.ranges import check_ranges
from backbones.data.datasets import EvaluationImages, TrainingImages, collate
from backbones.data.sampler import EpochSampler, training_loader
from backbones.data.shards import expand_braces
from backbones.data.sources import FirstClasses, ImageSource, open_split
from backbones.data.streams import StreamedImages, StreamedTraining, load_class_names
from backbones.data.transforms import AugmentConfig
from backbones.data.workers import WorkerLoader
from backbones.networks.specs import BackboneSpec


@dataclass(frozen=True)
class ImagesConfig:
    """Which images."""

    root: str = "data/imagenet"
    """Folder of the dataset, with train/CLASS/* and val/CLASS/*, or with shards train-*.tar and
    val-*.tar."""
    train_shards: str | None = None
    """Shards to stream training images from instead of `data.root`: a URL or path with braces, as
    in https://host/train-{0000..1023}.tar; every process and worker reads others."""
    train_images: int | None = None
    """Number of images in the streamed shards, which make an epoch."""
    classes: str | None = None
    """Class names of the streamed shards: a JSON list, by path or URL, or the number of classes."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random changes to training images."""
    max_classes: int | None = None
    """Number of classes that are used, the first ones, for experiments in little time; null uses
    all."""

    def __post_init__(self) -> None:
        check_ranges(self, "data.", {"[2, inf)": "max_classes", "[1, inf)": "train_images"})
        streamed = {"train_images": self.train_images, "classes": self.classes}
        for key, value in streamed.items():
            if self.train_shards is not None and value is None:
                raise UserError(f"data.train_shards needs data.{key}")
            if self.train_shards is None and value is not None:
                raise UserError(f"data.{key} is for data.train_shards: set that, or remove it")
        if self.train_shards is not None and self.max_classes is not None:
            raise UserError("data.max_classes does not apply to data.train_shards: remove it")


class ImageSources(NamedTuple):
    """Training images, indexed or as a list of shards to stream, and validation images."""

    train: ImageSource | list[str]
    num_train: int
    val: ImageSource
    class_names: list[str]


def open_sources(config: ImagesConfig) -> ImageSources:
    """The images that a configuration names; raises `UserError` where something is not there, or
    the splits do not have the same classes."""
    if config.train_shards is not None:
        assert config.classes is not None
        assert config.train_images is not None
        names = load_class_names(config.classes)
        val = open_split(config.root, "val", names)
        return ImageSources(expand_braces(config.train_shards), config.train_images, val, names)
    train = open_split(config.root, "train")
    val = open_split(config.root, "val", train.class_names)
    if config.max_classes is not None:
        train, val = (FirstClasses(source, config.max_classes) for source in (train, val))
    return ImageSources(train, len(train), val, list(train.class_names))


def build_train_loader(
    sources: ImageSources,
    spec: BackboneSpec,
    augment: AugmentConfig,
    sampler: EpochSampler,
    *,
    workers: int,
    pin_memory: bool,
) -> DataLoader | StreamedTraining:
    """What `fit` trains a network of this specification on."""
    if isinstance(sources.train, list):
        shards = sources.train
        return StreamedTraining(
            lambda cursors: StreamedImages(
                shards,
                len(sources.class_names),
                spec.input_size,
                augment,
                sampler.seed,
                batch_size=sampler.batch_size,
                workers=workers,
                rank=sampler.rank,
                world_size=sampler.world_size,
                interpolation=spec.interpolation,
                cursors=cursors,
            ),
            sampler,
            pin_memory,
        )
    images = TrainingImages(
        sources.train, spec.input_size, augment, sampler.seed, spec.interpolation
    )
    return training_loader(
        images, sampler, workers=workers, collate_fn=collate, pin_memory=pin_memory
    )


def build_val_loader(
    sources: ImageSources,
    spec: BackboneSpec,
    sampler: EpochSampler,
    *,
    workers: int,
    pin_memory: bool,
) -> DataLoader:
    """This process's part of the validation images, each once."""
    images = EvaluationImages(sources.val, spec.input_size, spec.crop_fraction, spec.interpolation)
    return WorkerLoader(
        Subset(images, range(sampler.rank, len(sources.val), sampler.world_size)),
        batch_size=sampler.batch_size,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
    )
