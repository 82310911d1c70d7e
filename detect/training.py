"""Training a detector: what `tools/train_detector.py` runs."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from backbones import distributed
from backbones.device import resolve_precision
from backbones.errors import UserError
from backbones.order import EpochSampler, derive_seed, training_loader
from backbones.runs import RunFolder
from backbones.training import fit
from detect.batches import DetectionBatch, TrainingSet, collate, proposals_for
from detect.build import build_dataset, build_detector
from detect.config import DatasetConfig, DetectorConfig
from detect.datasets import DetectionDataset
from detect.deploy import deploy_detector
from detect.detector import Detector, load_detector, save_detector
from detect.evaluation import evaluate_coco
from detect.proposals import Proposals, load_proposals
from detect.rcnn import RCNN
from detect.scoring import detect_dataset, score_detector

logger = logging.getLogger(__name__)


def train_detector(config: DetectorConfig) -> dict[str, Any]:
    """Train as configured and score on the test split, where there is one.

    Under torchrun or srun (see `backbones.distributed`) this is one of the processes. Leaves
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
    data = config.data
    train = build_dataset(data, data.train)
    val = build_dataset(data, data.val) if data.val is not None else None
    test = build_dataset(data, data.test) if data.test is not None else None
    for split, dataset in ((data.val, val), (data.test, test)):
        if dataset is not None:
            check_same_classes(train, dataset, split)
    proposals = None
    if config.model.precomputed is not None:
        datasets = [dataset for dataset in (train, val, test) if dataset is not None]
        proposals = proposals_for(load_proposals(config.model.precomputed), datasets)
    torch.manual_seed(derive_seed(config.seed))
    model = build_detector(config.model, len(train.class_names))
    # channels_last: convolutions on both CPU and GPU are faster in it.
    model = model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    sampler = EpochSampler(
        len(train),
        config.batch_size,
        epochs=config.epochs,
        seed=config.seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    loader = training_loader(
        TrainingSet(
            *(train, config.augment, config.seed, proposals),
            cache_bytes=data.cache_gb * 1e9,
            # It takes seconds: searched once, by the loader's processes, and not in each epoch's
            # changed picture.
            proposer=model.proposer if config.model.proposer == "selective_search" else None,
        ),
        sampler,
        workers=config.workers,
        collate_fn=collate,
    )

    _check_crop_sizes(config, model)

    def loss_fn(network: nn.Module, batch: DetectionBatch) -> Mapping[str, Tensor]:
        images = [image.to(device) for image in batch.images]
        targets = [{k: v.to(device) for k, v in target.items()} for target in batch.targets]
        model.train_crop_size = crop_size_at(batch.epoch, config, model.crop_size)
        given = batch.proposals
        if given is not None:
            given = [Proposals(*(t.to(device) for t in one)) for one in given]
        return network(images, targets, given)

    def evaluate(model: nn.Module) -> dict[str, float]:
        assert val is not None
        assert isinstance(model, RCNN)
        detector = Detector(model, train.class_names, train.category_ids)
        detector = deploy_detector(detector, in_use)
        scores = evaluate_coco(val, detect_dataset(detector, val, proposals).detections)
        return {name: scores[name] for name in ("AP", "AP50", "AP75") if scores[name] is not None}

    def save(path: Path, model: nn.Module, metrics: dict[str, float]) -> None:
        assert isinstance(model, RCNN)
        save_detector(path, model, config.model, train.class_names, train.category_ids, metrics)

    precision = resolve_precision(config.precision, device)
    in_use: Literal["bf16", "fp32"] = "bf16" if precision == "bf16" else "fp32"
    with RunFolder(config.run, config, resume=config.resume) as run:
        logger.info(
            "%d training images, %d classes: %s; %s on %s",
            *(len(train), len(train.class_names), ", ".join(train.class_names)),
            *(precision, device),
        )
        warn_of_unseen_classes(train)
        state = fit(
            model,
            loader,
            loss_fn,
            config.optim,
            run,
            evaluate=evaluate if val is not None else None,
            eval_every=config.eval_every,
            best_metric="AP" if val is not None else None,
            save=save,
            precision=precision,
        )
        weights = run.path / ("last.safetensors" if val is None else "best.safetensors")
        scores = None
        if test is not None:
            # The others wait here until the main process has written the weights.
            distributed.gather(None)
            detector = deploy_detector(load_detector(weights, str(device)), in_use)
            scores = score_detector(detector, test, run.path, proposals, voc=data.format == "voc")
    return {"weights": weights, "val": state.best_metrics or None, "test": scores}


def warn_of_unseen_classes(train: DetectionDataset) -> None:
    """Say which classes have no object to learn from: often a misspelt name."""
    unseen = [name for name, count in train.objects_by_class().items() if not count]
    if unseen:
        logger.warning("classes without an object in the training split: %s", ", ".join(unseen))


def check_same_classes(
    known: DetectionDataset | Detector, dataset: DetectionDataset, split: str | None
) -> None:
    """Raise `UserError` unless a split has the classes of the training data, in their order."""
    if (dataset.class_names, dataset.category_ids) != (known.class_names, known.category_ids):
        raise UserError(
            f"the classes of split {split} are not those of the training split: "
            f"{_listed(dataset)}; expected {_listed(known)}: give the same ids and names in both "
            "(data.class_names sets those of the voc layout)"
        )


def dataset_for(data: DatasetConfig, detector: Detector) -> DatasetConfig:
    """The dataset to use a detector on; in VOC's layout it has the detector's classes if no others
    were named, so that it need not show all of them.

    Raises:
        UserError: the dataset is digits, the default, which would be generated, and the detector's
            classes are others.
    """
    if data.format == "digits" and detector.class_names != [str(digit) for digit in range(10)]:
        raise UserError(
            "name the dataset by --data.format (voc or coco) and --data.root: the default, digits, "
            f"has none of this detector's classes {', '.join(detector.class_names[:5])}"
        )
    if data.format == "voc" and data.class_names is None:
        return replace(data, class_names=tuple(detector.class_names))
    return data


def _listed(dataset: DetectionDataset | Detector) -> str:
    pairs = zip(dataset.category_ids, dataset.class_names, strict=True)
    return ", ".join(f"{category_id} {name}" for category_id, name in pairs)


def crop_size_at(epoch: int, config: DetectorConfig, last: int) -> int:
    """Side of the training crops in an epoch, counted from 0 (see `DetectorConfig.crop_sizes`)."""
    for share, size in config.crop_sizes:
        # The epsilon keeps rounding in the product from adding an epoch.
        if epoch < share * config.epochs - 1e-9:
            return size
    return last


def _check_crop_sizes(config: DetectorConfig, model: RCNN) -> None:
    smallest, last = model.backbone.spec.min_size, model.crop_size
    for _, size in config.crop_sizes:
        if not smallest <= size <= last:
            raise UserError(f"crop_sizes must be from {smallest} to {last} pixels, got {size}")
    used = {crop_size_at(epoch, config, last) for epoch in range(config.epochs)}
    for size in [*(size for _, size in config.crop_sizes), last]:
        if size not in used:
            raise UserError(
                f"crop_sizes: none of the {config.epochs} epochs trains on crops of {size} pixels: "
                "change the shares or the epochs"
            )
