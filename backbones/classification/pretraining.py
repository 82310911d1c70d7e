"""Training a backbone as an image classifier: what `train_backbone` runs."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from backbones import InceptionV3
from backbones.classification.evaluation import evaluate_classifier
from backbones.common import distributed
from backbones.common.config import to_dict
from backbones.common.device import resolve_precision
from backbones.common.errors import UserError
from backbones.common.launch import process_count, run_in_processes
from backbones.common.ranges import check_ranges
from backbones.data.datasets import ImageBatch
from backbones.data.loaders import (
    ImagesConfig,
    build_train_loader,
    build_val_loader,
    open_sources,
)
from backbones.data.sampler import derive_seed
from backbones.data.sources import digest_of
from backbones.networks.checkpoint import save_backbone
from backbones.networks.inception import check_setting
from backbones.networks.warm_start import start_backbone
from backbones.training.config import TrainConfig
from backbones.training.loop import fit
from backbones.training.recipe import classification_loss
from backbones.training.run_folder import RunFolder
from backbones.training.step import TrainingState
from backbones.training.validation import Validation

LEAST_IMAGES = 16
"""In a process, for batch normalisation of images that have one label each."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NetworkConfig:
    """Which network."""

    variant: str = "inception_v3"
    """Network, a name that `create_backbone` knows; the image size follows it."""
    width: float = 1.0
    """Width multiplier of the network: 0.25, 0.5, 0.75 or 1.0."""
    aux: Literal["none", "plain", "batch_norm"] = "batch_norm"
    """Auxiliary classifier in training: `none`, `plain` as in Inception-v2, or `batch_norm`
    with batch normalisation."""
    dropout: float = 0.2
    """Share of the features that dropout leaves out before the classifier."""
    weights: str | None = None
    """Weights of any variant that the network starts from, whose normalisation is taken too, and
    the image size where it is the same variant: a backbone's file or run folder, a state dict of
    torchvision or timm, or a name, `torchvision:IMAGENET1K_V1`, `timm:NAME`, `hf-hub:OWNER/NAME`;
    those of a wider network are narrowed; null starts at random."""

    def __post_init__(self) -> None:
        check_setting("model.", self.width, self.dropout)


@dataclass(frozen=True)
class PretrainConfig(TrainConfig):
    """One classification training run."""

    run: str = "runs/backbone"
    epochs: int = 100
    batch_size: int = 32
    data: ImagesConfig = field(default_factory=ImagesConfig)
    """Images that are classified."""
    model: NetworkConfig = field(default_factory=NetworkConfig)
    """Network that is trained."""
    label_smoothing: float = 0.1
    """Share of the target of the loss that is spread evenly over the classes."""
    aux_weight: float = 0.3
    """Weight of the auxiliary classifier's loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, "", {"[0, 1)": "label_smoothing", "[0, inf)": "aux_weight"})


def build_network(config: NetworkConfig, num_classes: int) -> InceptionV3:
    """The network that a configuration names, on the CPU; raises as `start_backbone`."""
    return start_backbone(
        config.variant,
        config.weights,
        num_classes=num_classes,
        width=config.width,
        aux=config.aux,
        dropout=config.dropout,
    )


def pretrain_in_processes(config: PretrainConfig) -> TrainingState:
    """`pretrain` in as many processes as `config.processes` says; see `run_in_processes` for what a
    program that calls this needs."""
    count = process_count(
        *(config.processes, config.device, config.batch_size, LEAST_IMAGES),
        accumulate=config.step.accumulate,
    )
    return run_in_processes(pretrain, config, count)


def pretrain(config: PretrainConfig) -> TrainingState:
    """Train as configured; leaves `best.safetensors` and `last.safetensors` in the run folder.

    This trains in the calling process, whatever `config.processes` says. Started by torchrun, srun
    or `pretrain_in_processes` it is one of several (see `backbones.common.distributed`).

    Raises:
        UserError: data, weights, device or run folder are not as the config says.
    """
    with distributed.processes(config.device) as device:
        return _pretrain(config, device)


def _pretrain(config: PretrainConfig, device: torch.device) -> TrainingState:
    sources = open_sources(config.data)
    class_names = sources.class_names
    torch.manual_seed(derive_seed(config.seed))
    model = build_network(config.model, len(class_names))
    # channels_last: convolutions on both CPU and GPU are faster in it.
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    spec = model.spec

    own_part = distributed.own_part(config.batch_size, config.step.accumulate)
    is_alone = own_part == config.step.accumulate and not config.step.sync_batch_norm
    if config.model.aux == "batch_norm" and is_alone:
        raise UserError(
            "the auxiliary head normalises over the images that a process takes at once, and needs "
            "two of them: raise batch_size, lower step.accumulate or processes, or set model.aux "
            "plain or none"
        )
    sampler = config.sampler(sources.num_train)
    pin = device.type == "cuda"
    train_loader = build_train_loader(
        sources, spec, config.data.augment, sampler, workers=config.workers, pin_memory=pin
    )
    val_loader = build_val_loader(sources, spec, sampler, workers=config.workers, pin_memory=pin)

    def classify(model: nn.Module, images: Tensor) -> Any:
        images = images.to(device, non_blocking=True)
        return model(images.contiguous(memory_format=torch.channels_last))

    def loss_fn(model: nn.Module, batch: ImageBatch) -> Mapping[str, Tensor]:
        labels = batch.labels.to(device, non_blocking=True)
        output = classify(model, batch.images)
        return classification_loss(output, labels, config.label_smoothing, config.aux_weight)

    def evaluate(model: nn.Module) -> dict[str, float]:
        return evaluate_classifier(lambda images: classify(model, images), val_loader)

    def save(path: Path, model: nn.Module, metrics: dict[str, float]) -> None:
        save_backbone(
            path, cast(InceptionV3, model), class_names, metrics=metrics, training=to_dict(config)
        )

    precision = resolve_precision(config.precision, device)
    validation = Validation(evaluate, evaluate_raw=True, best_metric="top1", save=save)
    told: dict[str, Any] = {"classes": list(class_names)}
    told["validation annotations"] = digest_of(sources.val)
    if not isinstance(sources.train, list):
        told["annotations"] = digest_of(sources.train)
    with RunFolder(config.run, config, resume=config.resume, may_change=config.may_change) as run:
        logger.info(
            "%s: %d training and %d validation images, %d classes, %d px, %s on %s",
            *(config.model.variant, sources.num_train, len(sources.val)),
            *(len(class_names), spec.input_size, precision, device),
        )
        return fit(model, train_loader, loss_fn, config, run, validation, told)
