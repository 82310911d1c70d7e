"""Is a low-resolution crop network worth its compute? Detectors that differ in nothing else.

The claim of Szegedy et al. (CVPR 2016, section 9) inside a detector: crop networks of several
receptive fields are trained and scored on the very same proposals, and compared by the size of the
objects.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from backbones import create_backbone
from backbones.common import distributed
from backbones.common.config import as_base, read_yaml, save_config
from backbones.common.errors import UserError
from backbones.common.files import atomic_write, make_folder, write_json
from backbones.common.plots import new_plot, save_plot
from backbones.networks.cost import count_multiply_adds
from backbones.training.run_folder import refuse_another_run
from detect.auto import number
from detect.checkpoint import load_detector
from detect.config import DetectorConfig, ModelConfig, without_learned
from detect.data import DetectionDataset
from detect.data.open import build_datasets, match_classes
from detect.deployment.exported import refuse_exported
from detect.detector import Detector
from detect.evaluation import load_results
from detect.evaluation.coco import evaluate_by_size
from detect.inference.propose import check_image_ids, propose_dataset
from detect.proposals import LearnedProposer, Proposals, save_proposals
from detect.training.from_data import derive_model
from detect.training.train import train_in_processes

logger = logging.getLogger(__name__)

COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@dataclass(frozen=True)
class ComparisonConfig(DetectorConfig):
    """Several crop networks on the same proposals.

    The keys of a detector say how each is trained. One detector with a learned proposer is trained
    first, with `model` as it stands, for its proposals alone.
    """

    run: str = "runs/comparison"
    """Folder for the table, the plot, and a run folder for each detector."""
    variants: tuple[str, ...] = ("inception_v3_79", "inception_v3_79_naive", "inception_v3")
    """Crop networks to compare, names that `create_backbone` knows, each at its own input size."""
    proposals_from: str | None = None
    """Detector checkpoint whose learned proposals all crop networks get, made by its settings and
    not those of model.learned; null trains one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.variants or len(set(self.variants)) < len(self.variants):
            raise UserError(f"variants must be different networks, got {list(self.variants)}")
        if self.data.test is None:
            raise UserError("data.test must name the split to compare on")
        if self.model.proposer != "learned":
            raise UserError(
                "model.proposer must be learned in a comparison, whose detectors all take its "
                f"proposals, got {self.model.proposer!r}"
            )
        if self.model.rcnn.crop_size not in (None, "auto"):
            raise UserError(
                "remove model.rcnn.crop_size: in a comparison each crop network "
                "gets crops of its variant's input size"
            )


def compare_crops(config: ComparisonConfig) -> list[dict[str, Any]]:
    """Train and score a detector for each variant, and put them side by side.

    What was trained stays as it is where `config.resume` is set, which may add `variants` but not
    change how each is trained, and is refused where not. Writes
    `config.yaml`, `proposals.json`, `comparison.json`, `comparison.md` and `comparison.png` (AP
    against the objects' size) into the run folder, and below it a run folder for each detector.

    Returns:
        A row for each variant: `variant`, `crop_size`, `multiply_adds` of a crop,
        `crops_per_image`, `seconds_per_image` (of the crops; the proposals, which are the same for
        all, are made before), AP and its companions, and `sizes` as `evaluate_by_size` gives them.

    Raises:
        UserError: as `train_in_processes`, `proposals_from` is no detector for this, or several
            processes were started.
    """
    distributed.require_one_process("a comparison")
    folder = make_folder(config.run)
    # Unknown names should be found before hours of training.
    costs = {name: multiply_adds(name, config.model.width) for name in config.variants}
    splits = (config.data.train, config.data.val, config.data.test)
    names = [name for name in splits if name is not None]
    train, *others = build_datasets(config.data, names)
    classes = train.class_names, train.category_ids
    matched = (match_classes(*classes, *pair) for pair in zip(others, names[1:], strict=True))
    datasets = dict(zip(names, [train, *matched], strict=True))
    check_image_ids(datasets)
    written = folder / "config.yaml"
    if os.path.exists(written):
        if not config.resume:
            raise UserError(
                f"{folder} already holds a comparison: continue it with --resume or choose "
                "another folder with --run"
            )
        may_change = config.may_change | {"variants"}
        refuse_another_run(read_yaml(written), config, may_change, folder, str(written))
    save_config(written, config)
    try:
        return _compare(config, folder, costs, datasets)
    except KeyboardInterrupt:
        logger.info("the comparison goes on with --run %s --resume", folder)
        raise


def _compare(
    config: ComparisonConfig,
    folder: Path,
    costs: Mapping[str, tuple[int, int]],
    datasets: Mapping[str, DetectionDataset],
) -> list[dict[str, Any]]:
    sized = replace(config.model, rcnn=replace(config.model.rcnn, crop_size=None))
    resume: Literal["auto", False] = "auto" if config.resume else False
    config = replace(config, model=derive_model(sized, datasets[config.data.train]), resume=resume)
    proposals = folder / "proposals.json"
    if not os.path.exists(proposals):
        weights = config.proposals_from
        if weights is None:
            base = as_base(config, DetectorConfig, run=str(folder / "proposer"))
            weights = train_in_processes(base)["weights"]
        refuse_exported(str(weights), "does not tell its proposals")
        detector = load_detector(weights, config.device)
        found = propose_splits(detector, config, datasets)
        save_proposals(proposals, found, datasets.values())

    assert config.data.test is not None
    test = datasets[config.data.test]
    rows = []
    for variant, (crop_size, cost) in costs.items():
        model = _on_proposals(config.model, variant, proposals)
        run = folder / variant
        one = as_base(config, DetectorConfig, run=str(run), model=model)
        scores = train_in_processes(one)["test"]
        logger.info("%s: AP %s", variant, _score(scores["AP"]))
        rows.append(
            {
                "variant": variant,
                "crop_size": crop_size,
                "multiply_adds": cost,
                **{key: scores[key] for key in ("crops_per_image", "seconds_per_image", *COLUMNS)},
                "sizes": evaluate_by_size(test, load_results(run / "test_results.json", test)),
            }
        )
    write_json(folder / "comparison.json", rows, indent=2)
    with atomic_write(folder / "comparison.md", "w") as file:
        file.write(comparison_table(rows))
    draw_comparison(rows, folder / "comparison.png")
    return rows


def _on_proposals(model: ModelConfig, variant: str, proposals: Path) -> ModelConfig:
    return without_learned(
        model, variant=variant, proposer="precomputed", precomputed=str(proposals)
    )


def multiply_adds(variant: str, width: float) -> tuple[int, int]:
    """Side of a variant's crops, and the multiply-adds that one costs without the last layers."""
    with torch.device("meta"):
        network = create_backbone(variant, num_classes=0, width=width).eval()
    return network.input_size, count_multiply_adds(network, network.input_size)


def propose_splits(
    detector: Detector, config: ComparisonConfig, datasets: Mapping[str, DetectionDataset]
) -> dict[int, Proposals]:
    """Learned proposals for all splits of a comparison, by image id.

    Training images get up to `proposals_per_image_train` of every score, the others what
    `proposals_per_image` and `proposal_score_thresh` leave, as in training and use of one detector.

    Raises:
        UserError: the detector has no learned proposer.
    """
    proposer = detector.model.proposer
    if not isinstance(proposer, LearnedProposer):
        raise UserError(f"{config.proposals_from}: this detector has no learned proposer")
    found: dict[int, Proposals] = {}
    for split, dataset in datasets.items():
        in_training = split == config.data.train
        model = config.model
        count = model.proposals_per_image_train if in_training else model.proposals_per_image
        proposer.rpn.top_n = number(count, "model.proposals_per_image")
        proposer.score_thresh = 0.0 if in_training else model.proposal_score_thresh
        found |= propose_dataset(detector, dataset)
    return found


def comparison_table(rows: Sequence[dict[str, Any]]) -> str:
    """Two Markdown tables: the networks, and AP by the size of the objects."""
    lines = [
        "| crop network | crop | multiply-adds | s/image | " + " | ".join(COLUMNS) + " |",
        "| --- |" + " ---: |" * (3 + len(COLUMNS)),
    ]
    for row in rows:
        cost = f"{row['multiply_adds'] / 1e6:,.0f} M"
        seconds = f"{row['seconds_per_image']:.3f}"
        cells = [f"`{row['variant']}`", str(row["crop_size"]), cost, seconds]
        lines.append(f"| {' | '.join(cells + [_score(row[key]) for key in COLUMNS])} |")
    sizes = [i for i, size in enumerate(rows[0]["sizes"]) if size["objects"]]
    names = [_size_name(rows[0]["sizes"][i]) for i in sizes]
    counts = [str(rows[0]["sizes"][i]["objects"]) for i in sizes]
    lines += [
        "",
        f"| AP by size in pixels | {' | '.join(names)} |",
        "| --- |" + " ---: |" * len(sizes),
        f"| objects | {' | '.join(counts)} |",
    ]
    for row in rows:
        cells = [_score(row["sizes"][i]["AP"]) for i in sizes]
        lines.append(f"| `{row['variant']}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _size_name(size: dict[str, Any]) -> str:
    return f"{size['from']:g}+" if size["to"] is None else f"{size['from']:g}-{size['to']:g}"


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def draw_comparison(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """A PNG of AP against the size of the objects, a line for each crop network."""
    plot = new_plot(7, 4.2)
    panel = plot.subplots()
    sizes = [i for i, size in enumerate(rows[0]["sizes"]) if size["objects"]]
    for row in rows:
        scores = [row["sizes"][i]["AP"] for i in sizes]
        label = f"{row['variant']}, {row['multiply_adds'] / 1e6:,.0f} M multiply-adds"
        panel.plot(range(len(sizes)), scores, marker="o", label=label)
    names = [f"{_size_name(rows[0]['sizes'][i])}\n{rows[0]['sizes'][i]['objects']}" for i in sizes]
    panel.set_xticks(range(len(sizes)), names)
    panel.set(xlabel="size of objects in pixels, and how many there are", ylabel="AP", ylim=(0, 1))
    panel.grid(alpha=0.3)
    panel.legend(frameon=False, fontsize="small")
    save_plot(plot, path)
