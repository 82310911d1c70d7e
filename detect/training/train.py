"""Training a detector: what `detect/commands/train_detector.py` runs."""

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from backbones.common import distributed
from backbones.common.config import to_dict
from backbones.common.device import resolve_precision
from backbones.common.errors import UserError
from backbones.common.launch import process_count, run_in_processes
from backbones.data.sampler import derive_seed, training_loader
from backbones.training.loop import fit
from backbones.training.run_folder import RunFolder
from backbones.training.validation import Validation
from detect.auto import number
from detect.build import build_detector
from detect.checkpoint import load_detector, save_detector
from detect.config import DetectorConfig, ModelConfig
from detect.data.account import held_notes, log_account, take_account
from detect.data.augmentation import AugmentConfig
from detect.data.open import (
    build_datasets,
    keep_out_of_data,
    match_classes,
    resolve_data,
    warn_without_objects,
)
from detect.deployment.detector import deploy_detector
from detect.detector import Detector
from detect.evaluation import evaluate_coco
from detect.evaluation.thresholds import threshold_curves
from detect.inference.score import detect_dataset, score_detector
from detect.proposals import load_proposals
from detect.proposals.precomputed import proposals_for
from detect.rcnn.model import RCNN
from detect.training.fine_tuning import build_from, load_start
from detect.training.from_data import derive_model, log_sizes
from detect.training.training_set import DetectionBatch, TrainingSet, collate

LEAST_IMAGES = 4
"""In a process, for batch normalisation: as few as it was measured with, see docs/results.md."""

logger = logging.getLogger(__name__)


def train_in_processes(config: DetectorConfig) -> dict[str, Any]:
    """`train_detector` in as many processes as `config.processes` says; see `run_in_processes` for
    what a program that calls this needs."""
    count = process_count(
        *(config.processes, config.device, config.batch_size, LEAST_IMAGES),
        accumulate=config.step.accumulate,
    )
    return run_in_processes(train_detector, config, count)


def train_detector(config: DetectorConfig) -> dict[str, Any]:
    """Train as configured and score on the test split, where there is one.

    This trains in the calling process, whatever `config.processes` says. Started by torchrun, srun
    or `train_in_processes` it is one of several (see `backbones.common.distributed`). Leaves
    `last.safetensors`, and with a validation split `best.safetensors`, in the run folder;
    with a test split also `test.json` (scores) and `test_results.json` (detections in COCO's
    results format), made with the best weights, or the last where nothing chose.

    Returns:
        `weights` (path), `val` and `test` (scores, None where there is no such split).

    Raises:
        UserError: data, weights, device or run folder are not as the config says.
    """
    with distributed.processes(config.device) as device:
        return _train_detector(config, device)


def _train_detector(config: DetectorConfig, device: torch.device) -> dict[str, Any]:
    # The run's own files tell where its data are, wherever it is continued or scored.
    data = resolve_data(config.data)
    config = replace(config, data=data)
    keep_out_of_data(config.run, data)
    names = {"train": data.train, "val": data.val, "test": data.test}
    wanted = {key: name for key, name in names.items() if name is not None}
    with held_notes() as notes:
        parts = dict(zip(wanted, build_datasets(data, list(wanted.values())), strict=True))
    train = parts["train"]
    for key, split in wanted.items():
        parts[key] = match_classes(train.class_names, train.category_ids, parts[key], split)
    if len(set(wanted.values())) < len(wanted):
        twice = ", ".join(f"data.{key} is {split}" for key, split in wanted.items())
        logger.warning("the same images are for two things: %s: scores of them say little", twice)
    val, test = parts.get("val"), parts.get("test")
    if test is not None:
        warn_without_objects(test, str(data.test))
    if val is not None and warn_without_objects(val, str(data.val)):
        logger.warning("no epoch can be the best by it: the last one is kept")
        val = None
    start = load_start(config.model)
    config = replace(config, model=derive_model(config.model, train))
    proposals = None
    if config.model.precomputed is not None:
        datasets = [dataset for dataset in (train, val, test) if dataset is not None]
        proposals = proposals_for(load_proposals(config.model.precomputed, datasets), datasets)
    torch.manual_seed(derive_seed(config.seed))
    if start is None:
        model = build_detector(config.model, len(train.class_names))
    else:
        model = build_from(config.model, train.class_names, start)
    # channels_last: convolutions on both CPU and GPU are faster in it.
    model = model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    training_set = TrainingSet(
        *(train, config.augment, config.seed),
        canvas=canvas_of(config.model, config.augment),
        proposals=proposals,
        # It takes seconds: searched once, by the loader's processes, and not in each epoch's
        # changed picture.
        proposer=model.proposer if config.model.proposer == "selective_search" else None,
    )
    config = with_filled_batches(config, len(training_set))
    loader = training_loader(
        training_set,
        config.sampler(len(training_set)),
        workers=config.workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
    )

    def loss_fn(network: nn.Module, batch: DetectionBatch) -> Mapping[str, Tensor]:
        # The rest stays on the CPU, where crops are chosen.
        images = [image.to(device, non_blocking=True) for image in batch.images]
        return network(images, batch.targets, batch.proposals)

    def evaluate(model: nn.Module) -> dict[str, float]:
        assert val is not None
        assert isinstance(model, RCNN)
        detector = Detector(model, train.class_names, train.category_ids)
        detector = deploy_detector(detector, in_use)
        found = detect_dataset(detector, val, proposals).detections
        # All have everything that was found; one need score it.
        scores = distributed.call_on_main(
            lambda: evaluate_coco(val, found) | threshold_curves(val, found).best_point()
        )
        names = ("AP", "AP50", "AP75", "F1", "score_thresh")
        return {name: scores[name] for name in names if scores[name] is not None}

    def save(path: Path, model: nn.Module, metrics: dict[str, float]) -> None:
        assert isinstance(model, RCNN)
        save_detector(
            *(path, model, config.model, train.class_names, train.category_ids),
            metrics=metrics,
            training=to_dict(config),
            largest_image=int(train.sizes.max()),
        )

    precision = resolve_precision(config.precision, device)
    in_use: Literal["bf16", "fp32"] = "bf16" if precision == "bf16" else "fp32"
    validation = Validation(save=save)
    if val is not None:
        validation = Validation(evaluate, best_metric="AP", save=save)
    with RunFolder(config.run, config, resume=config.resume, may_change=config.may_change) as run:
        logger.info(
            "%d training images, %d examples an epoch, %d classes: %s; %s on %s",
            *(len(train), len(training_set)),
            *(len(train.class_names), ", ".join(train.class_names)),
            *(precision, device),
        )
        if distributed.is_main():
            log_account(take_account({wanted[key]: part for key, part in parts.items()}, notes))
        log_sizes(train, config.model)
        told = {"classes": train.class_names, "annotations": train.digest()}
        if val is not None:
            told["validation annotations"] = val.digest()
        state = fit(model, loader, loss_fn, config, run, validation, told)
        weights = run.path / ("last.safetensors" if val is None else "best.safetensors")
        scores = None
        if test is not None:
            # The others wait here until the main process has written the weights.
            distributed.gather(None)
            if not weights.exists():
                raise UserError(f"{weights}: deleted since, so it cannot be scored on data.test")
            detector = deploy_detector(load_detector(weights, str(device)), in_use)
            scores = score_detector(detector, test, run.path, proposals, voc=data.format == "voc")
    return {"weights": weights, "val": state.best_metrics or None, "test": scores}


def with_filled_batches(config: DetectorConfig, examples: int) -> DetectorConfig:
    """With the batches that so few examples fill, said in a line, where `batch_size` is larger."""
    parts = distributed.world_size() * config.step.accumulate
    size = examples // parts * parts
    if not 0 < size < config.batch_size:
        return config
    logger.warning(
        "batch_size is %d, not %d: there are no more than %d training examples",
        *(size, config.batch_size, examples),
    )
    return replace(config, batch_size=size)


def canvas_of(model: ModelConfig, augment: AugmentConfig) -> int | None:
    """Longest side of an example in pixels of its image, None where images are seen as a whole."""
    learned = model.learned
    scale = number(learned.scale, "model.learned.scale")
    if scale is None:
        return None
    tile = number(learned.tile_size, "model.learned.tile_size")
    return math.floor(min(augment.window, tile) / scale)
