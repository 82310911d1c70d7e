"""The detector's training: examples, broken images, precomputed proposals, and one overfit."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.contrib import needs_contrib
from helpers.fit import given_to_fit
from helpers.shapes import make_shapes

from backbones import create_backbone, save_backbone
from backbones.common.config import read_yaml
from backbones.common.errors import UserError
from backbones.data.sampler import EpochSampler
from backbones.networks.weights import load_weights
from backbones.training.curves import read_curves
from backbones.training.recipe import OptimConfig, build_optimizer
from backbones.training.step import StepConfig
from detect.checkpoint import load_detector
from detect.config import DataConfig, DetectorConfig, ModelConfig
from detect.data import DetectionDataset, load_coco, make_digits
from detect.data.augmentation import AugmentConfig
from detect.data.open import match_classes
from detect.deployment.detector import deploy_detector
from detect.evaluation import evaluate_coco
from detect.inference.score import detect_dataset
from detect.proposals import (
    GridConfig,
    GridProposer,
    LearnedConfig,
    Proposals,
    SelectiveSearchConfig,
)
from detect.proposals.precomputed import proposals_for
from detect.rcnn.config import RCNNConfig
from detect.training.train import train_detector
from detect.training.training_set import TrainingSet, collate

NO_AUGMENT = AugmentConfig(flip=0.0, scale=(1.0, 1.0), colour=0.0)


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    return make_digits(tmp_path_factory.mktemp("data") / "digits", train=8, val=2, image_size=128)


def dataset(digits: Path, split: str = "train"):
    return load_coco(digits / "annotations" / f"{split}.json", digits / split)


def test_an_example_depends_on_seed_epoch_and_index_alone(digits):
    first = TrainingSet(dataset(digits), AugmentConfig(), seed=1)
    again = TrainingSet(dataset(digits), AugmentConfig(), seed=1)
    again[(0, 5)]
    assert torch.equal(first[(2, 3)].image, again[(2, 3)].image)
    other_epoch = first[(3, 3)].image
    other_seed = TrainingSet(dataset(digits), AugmentConfig(), seed=2)[(2, 3)].image
    for other in (other_epoch, other_seed):
        assert other.shape != first[(2, 3)].image.shape or not torch.equal(
            other, first[(2, 3)].image
        )


def test_examples_of_large_images_are_windows_as_many_as_cover_them(digits):
    """The pictures have 128 pixels a side."""
    data = dataset(digits)
    training = TrainingSet(data, NO_AUGMENT, seed=1, canvas=50)
    # 128² are 6.6 times 50².
    assert len(training) == 7 * len(data)
    examples = [training[(0, index)] for index in range(14)]
    assert {tuple(example.image.shape) for example in examples} == {(3, 50, 50)}
    assert [example.name for example in examples] == [data.sample(0).path] * 7 + [
        data.sample(1).path
    ] * 7
    assert not torch.equal(examples[0].image, examples[1].image)
    for example in examples:
        assert (example.target["boxes"] >= 0).all()
        assert (example.target["boxes"] <= 50).all()


def test_training_at_a_scale_sees_windows(digits, tmp_path, loop):
    config = tiny(digits, tmp_path / "run", augment=replace(NO_AUGMENT, window=64))
    learned = replace(config.model.learned, scale=2.0, tile_size=128)
    train_detector(replace(config, model=replace(config.model, learned=learned)))
    batch = next(iter(loop["loader"]))
    # 64 pixels that the proposer sees are 32 of the picture.
    assert {tuple(image.shape) for image in batch.images} == {(3, 32, 32)}


def count_reads(data) -> list[int]:
    """The images that a dataset reads from now on, one entry for each time."""
    reads: list[int] = []
    load = data.load_image
    data.load_image = lambda index: reads.append(index) or load(index)
    return reads


def test_a_broken_image_is_replaced_and_reported(tmp_path):
    folder = make_digits(tmp_path / "digits", train=4, val=1, image_size=128)
    whole = dataset(folder)
    victim = Path(whole.sample(1).path)
    victim.write_bytes(victim.read_bytes()[:2000])
    training = TrainingSet(dataset(folder), NO_AUGMENT, seed=0)
    example = training[(0, 1)]
    assert example.name == whole.sample(2).path
    assert len(example.skipped) == 1
    assert victim.name in example.skipped[0]
    assert collate([example, training[(0, 0)]]).skipped == example.skipped
    for path in (folder / "train").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="none of the 4 training images can be read"):
        training[(0, 0)]


def test_training_goes_on_without_a_broken_image_and_says_so(tmp_path, caplog):
    folder = make_digits(tmp_path / "digits", train=4, val=1, image_size=128)
    victim = Path(dataset(folder).sample(1).path)
    victim.write_bytes(b"\xff\xd8 not a picture")
    with caplog.at_level(logging.WARNING):
        train_detector(tiny(folder, tmp_path / "run", batch_size=4))
    skipped = [record.message for record in caplog.records if "skipped image 1" in record.message]
    assert len(skipped) == 1
    assert victim.name in skipped[0]


def test_precomputed_proposals_move_with_the_picture(digits):
    """Proposals equal to the ground truth stay equal to it under every augmentation."""
    data = dataset(digits)
    given = {
        sample.image_id: Proposals(sample.boxes, torch.linspace(1, 0, len(sample.boxes)))
        for sample in data
    }
    training = TrainingSet(data, AugmentConfig(flip=1.0, scale=(1.0, 2.0)), seed=3, proposals=given)
    for index in range(len(data)):
        example = training[(0, index)]
        assert example.proposals is not None
        assert torch.equal(example.proposals.boxes, example.target["boxes"])
        assert (example.proposals.scores.diff() <= 0).all()


def test_precomputed_proposals_are_checked_before_training(digits, caplog):
    data, other = dataset(digits), dataset(digits, "val")
    outside = torch.tensor([[-40.0, -40, 60, 60], [500, 0, 510, 9], [5, 5, 9, 9]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    given = {image_id: Proposals(outside, scores) for image_id in data.image_ids}
    found = proposals_for(given, [data])
    assert found.keys() == set(data.image_ids)
    for proposals in found.values():
        assert proposals.boxes.tolist() == [[0, 0, 60, 60], [5, 5, 9, 9]]
        assert proposals.scores.tolist() == pytest.approx([0.9, 0.7])
    assert f"boxes outside their image: {len(data)}, first of {data.paths[0]}" in caplog.text
    with pytest.raises(
        UserError, match=f"no precomputed proposals for image id {data.image_ids[-1]}"
    ):
        proposals_for({k: v for k, v in given.items() if k != data.image_ids[-1]}, [data])
    # Two splits that both count their images from 1.
    other.image_ids = data.image_ids[: len(other)]
    with pytest.raises(UserError, match=r"both have the image id 1: .* unique across the splits"):
        proposals_for(given, [data, other])


def tiny(folder: Path, run: Path, **options) -> DetectorConfig:
    defaults = {
        "run": str(run),
        "data": DataConfig(format="coco", root=str(folder), train="train", val=None),
        "augment": NO_AUGMENT,
        "model": ModelConfig(
            variant="inception_v3_79_naive",
            learned=LearnedConfig(
                tile_size=96,
                channels=32,
                anchor_sizes=((12.0, 20.0), (32.0, 48.0), (64.0, 96.0)),
            ),
            proposals_per_image=12,
            proposals_per_image_train=60,
            rcnn=RCNNConfig(
                crops_per_image=8, positive_fraction=0.5, jitter_strength=0.2, nms_thresh=0.4
            ),
        ),
        "optim": OptimConfig(
            optimizer="muon", lr=0.002, schedule="cosine", ema_decay=0.9, clip_grad=10.0
        ),
        "epochs": 1,
        "batch_size": 4,
        "workers": 0,
        "device": "cpu",
        # The same on every processor.
        "precision": "fp32",
    }
    return DetectorConfig(**(defaults | options))


@pytest.fixture
def loop(monkeypatch) -> dict[str, Any]:
    """What `train_detector` gives to `fit`, which takes no step here."""
    return given_to_fit("detect.training.train", monkeypatch)


def test_the_loop_is_given_what_the_configuration_says(digits, tmp_path, loop):
    options = {"epochs": 3, "batch_size": 4, "workers": 2, "eval_every": 5, "seed": 11}
    options |= {"checkpoint_minutes": 1.5, "keep_checkpoints": 7, "step": StepConfig(accumulate=2)}
    options |= {"precision": "bf16", "augment": AugmentConfig(flip=1.0), "device": "cpu"}
    config = tiny(digits, tmp_path / "run", **options)
    train_detector(config)
    assert loop["run"].path == tmp_path / "run"
    assert not loop["run"].resume
    given = loop["config"]
    assert (given.optim, given.step, given.precision) == (config.optim, config.step, "bf16")
    options = (given.eval_every, given.checkpoint_minutes, given.keep_checkpoints)
    assert options == (5, 1.5, 7)
    assert next(loop["model"].parameters()).device == torch.device("cpu")
    assert loop["model"].config is config.model.rcnn
    loader = loop["loader"]
    sampler: EpochSampler = loader.batch_sampler
    assert (sampler.epochs, sampler.batch_size, sampler.seed) == (3, 4, 11)
    assert loader.num_workers == 2
    assert (loader.dataset.seed, loader.dataset.config) == (11, config.augment)
    assert [sample.path for sample in loader.dataset.dataset] == [
        sample.path for sample in dataset(digits)
    ]
    # Without a validation split nothing is scored, and nothing is the best.
    assert (loop["validation"].evaluate, loop["validation"].best_metric) == (None, None)


def test_precomputed_proposals_are_those_of_the_file(digits, tmp_path, loop):
    rows = [
        {"image_id": sample.image_id, "bbox": [sample.image_id, 5, 20, 30], "score": 0.5}
        for sample in dataset(digits)
    ]
    path = tmp_path / "proposals.json"
    path.write_text(json.dumps(rows))
    model = ModelConfig(
        variant="inception_v3_79_naive", proposer="precomputed", precomputed=str(path)
    )
    train_detector(tiny(digits, tmp_path / "run", model=model))
    examples = loop["loader"].dataset
    for index, row in enumerate(rows):
        x = row["bbox"][0]
        assert examples[0, index].proposals.boxes.tolist() == [[x, 5, x + 20, 35]]


def test_seed_decides_the_first_weights(digits, tmp_path, loop):
    weights = []
    for number, seed in enumerate((0, 1, 0)):
        train_detector(tiny(digits, tmp_path / str(number), seed=seed))
        weights.append(loop["model"].cls_score.weight)
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[1])


def test_few_images_are_a_batch_all_together(digits, tmp_path, loop, caplog):
    config = tiny(digits, tmp_path / "run", batch_size=20, step=StepConfig(accumulate=2))
    train_detector(replace(config, data=replace(config.data, val="val")))
    assert "batch_size is 8, not 20: there are no more than 8 training examples" in caplog.text
    assert loop["config"].batch_size == len(next(iter(loop["loader"])).images) == 8
    # What the run remembers, so that resuming it is no other run.
    assert read_yaml(tmp_path / "run/config.yaml")["batch_size"] == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": "tpu"}, "device must be auto, cpu, cuda or cuda:N"),
        ({"workers": -1}, "workers must be 0 or more, got -1"),
        ({"eval_every": 0}, "eval_every must be at least 1 or auto, got 0"),
    ],
)
def test_a_wrong_value_is_refused(change, message, digits, tmp_path):
    with pytest.raises(UserError, match=message):
        train_detector(tiny(digits, tmp_path / "run", **change))


def test_each_split_is_for_what_its_key_says(digits, tmp_path):
    """A third one, with ids of its own, is made of the images of `val`."""
    folder = tmp_path / "digits"
    shutil.copytree(digits, folder)
    shutil.copytree(digits / "val", folder / "other")
    document = json.loads((digits / "annotations" / "val.json").read_text())
    for kind, key in (("images", "id"), ("annotations", "image_id")):
        for entry in document[kind]:
            entry[key] += 1000
    (folder / "annotations" / "other.json").write_text(json.dumps(document))
    data = DataConfig(format="coco", root=str(folder), train="train", val="val", test="other")
    config = tiny(folder, tmp_path / "run", data=data, epochs=3, eval_every=2, batch_size=8)
    model = replace(config.model, rcnn=replace(config.model.rcnn, score_thresh=0.0))
    outcome = train_detector(replace(config, model=model))
    curves = read_curves(tmp_path / "run" / "curves.csv")
    assert [point.epoch for point in curves if point.name == "val/AP"] == [2, 3]
    # The last weights are scored on the validation split, and the best on the test split.
    detector = load_detector(tmp_path / "run" / "last.safetensors", "cpu")
    val = dataset(folder, "val")
    found = detect_dataset(deploy_detector(detector, "fp32"), val).detections
    last = [point.value for point in curves if point.name == "val/AP"][-1]
    assert last == pytest.approx(evaluate_coco(val, found)["AP"], abs=1e-6)
    results = json.loads((tmp_path / "run" / "test_results.json").read_text())
    other = dataset(folder, "other")
    assert {result["image_id"] for result in results} == set(other.image_ids)
    assert outcome["test"]["AP"] == evaluate_coco(other, results)["AP"]


def test_a_whole_detector_overfits_eight_images(tmp_path):
    folder = make_shapes(tmp_path / "shapes", 8, seed=2)
    data = DataConfig(format="coco", root=str(folder), train="train", val="train")
    # Seeds 0 to 3 end between 0.90 and 1 with two versions of torch.
    optim = OptimConfig(
        optimizer="muon", lr=0.004, schedule="cosine", ema_decay=0.9, clip_grad=10.0
    )
    options = {"epochs": 50, "eval_every": 50, "seed": 2, "optim": optim}
    config = tiny(folder, tmp_path / "run", data=data, **options)
    assert train_detector(config)["val"]["AP50"] > 0.8


@pytest.mark.parametrize("proposer", ["grid", "selective_search", "precomputed"])
def test_other_proposers_train_and_score(proposer, digits, tmp_path):
    if proposer == "selective_search":
        needs_contrib()
    rows = [
        {"image_id": sample.image_id, "bbox": [*box[:2], box[2] - box[0], box[3] - box[1]]}
        for split in ("train", "val")
        for sample in dataset(digits, split)
        for box in sample.boxes.tolist()
    ]
    path = tmp_path / "proposals.json"
    path.write_text(json.dumps([row | {"score": 1.0} for row in rows]))
    options = {
        "grid": {"grid": GridConfig(sizes=(32.0, 64.0), step=1.0)},
        "selective_search": {"selective_search": SelectiveSearchConfig(top_n=20)},
        "precomputed": {"precomputed": str(path)},
    }[proposer]
    model = ModelConfig(variant="inception_v3_79_naive", proposer=proposer, **options)
    data = DataConfig(format="coco", root=str(digits), val=None, test="val")
    outcome = train_detector(tiny(digits, tmp_path / "run", model=model, data=data))
    val = dataset(digits, "val")
    crops = {
        "grid": len(GridProposer(model.grid)([val.load_image(0)])[0].boxes),
        "selective_search": 20,
        "precomputed": sum(len(sample.boxes) for sample in val) / len(val),
    }[proposer]
    assert outcome["test"]["crops_per_image"] == crops
    results = json.loads((tmp_path / "run" / "test_results.json").read_text())
    assert outcome["test"]["AP50"] == evaluate_coco(val, results)["AP50"]


def test_resuming_a_finished_detector_changes_nothing_and_another_is_refused(digits, tmp_path):
    config = tiny(digits, tmp_path / "run", epochs=1)
    train_detector(config)
    files = [tmp_path / "run" / name for name in ("config.yaml", "last.safetensors")]
    before = [file.read_bytes() for file in files]
    other = {"resume": True, "augment": replace(NO_AUGMENT, flip=0.5)}
    with pytest.raises(UserError, match=r"augment\.flip was 0\.0 and is 0\.5 now: leave"):
        train_detector(tiny(digits, tmp_path / "run", epochs=1, **other))
    assert [file.read_bytes() for file in files] == before
    train_detector(tiny(digits, tmp_path / "run", epochs=1, resume=True))
    assert files[1].read_bytes() == before[1]


def test_results_are_not_lost_with_the_checkpoints(digits, tmp_path, caplog):
    """People delete these to save disk, and start a job anew with `--resume auto`."""
    run = tmp_path / "run"
    config = tiny(digits, run, epochs=1)
    train_detector(config)
    before = {name: (run / name).read_bytes() for name in ("last.safetensors", "curves.csv")}
    shutil.rmtree(run / "checkpoints")
    train_detector(replace(config, resume="auto", seed=5))
    for name, content in before.items():
        assert (run / f"{name}.earlier").read_bytes() == content
        assert (run / name).read_bytes() != content
        assert f"{name}.earlier: its run has no checkpoint to go on from" in caplog.text


def test_weights_that_were_deleted_are_not_scored(digits, tmp_path):
    config = tiny(digits, tmp_path / "run", epochs=1)
    weights = train_detector(config)["weights"]
    weights.unlink()
    scored = replace(config, resume=True, data=replace(config.data, test="val"))
    (tmp_path / "run/config.yaml").unlink()
    for checkpoint in (tmp_path / "run/checkpoints").iterdir():
        content = torch.load(checkpoint)
        content["config"]["data"]["test"] = "val"
        torch.save(content, checkpoint)
    with pytest.raises(
        UserError, match=r"last\.safetensors: deleted since, so it cannot be scored"
    ):
        train_detector(scored)


def test_changes_of_either_split_are_named_when_a_run_is_resumed(digits, tmp_path, caplog):
    root = shutil.copytree(digits, tmp_path / "data")
    config = tiny(root, tmp_path / "run", epochs=1)
    config = replace(config, data=replace(config.data, val="val"))
    train_detector(config)
    for split, part in (("val", "validation"), ("train", "training")):
        path = root / "annotations" / f"{split}.json"
        document = json.loads(path.read_text())
        document["annotations"][0]["bbox"][2] -= 1
        path.write_text(json.dumps(document))
        caplog.clear()
        train_detector(replace(config, resume=True))
        assert f"labels of the {part} split are not those that the run began with" in caplog.text


def test_a_resumed_detector_equals_the_unbroken_one(digits, tmp_path, caplog):
    """Two epochs at once, and one epoch of two resumed: the same weights, bit for bit.

    The data have moved in between."""
    config = tiny(digits, tmp_path / "run", epochs=2, augment=AugmentConfig())
    train_detector(config)
    last = tmp_path / "run" / "last.safetensors"
    checkpoints = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert len(checkpoints) == 2
    want, _ = load_weights(last)
    # What a machine that died after the first epoch would have left.
    checkpoints[1].unlink()
    last.unlink()
    moved = shutil.copytree(digits, tmp_path / "moved")
    config = replace(config, data=replace(config.data, root=str(moved)))
    train_detector(replace(config, resume=True))
    assert read_yaml(tmp_path / "run" / "config.yaml")["data"]["root"] == str(moved)
    assert "not those that the run" not in caplog.text
    got, _ = load_weights(last)
    assert all(torch.equal(got[name], tensor) for name, tensor in want.items())
    # A finished one stays as it is.
    before = last.read_bytes()
    train_detector(replace(config, resume=True))
    assert last.read_bytes() == before


def test_a_warm_start_keeps_what_is_frozen(digits, tmp_path):
    torch.manual_seed(5)
    backbone = create_backbone("inception_v3_79", num_classes=0, width=0.25)
    save_backbone(tmp_path / "b.safetensors", backbone)
    config = tiny(digits, tmp_path / "run")
    model = replace(config.model, weights=str(tmp_path / "b.safetensors"), freeze="stage_a")
    weights = train_detector(replace(config, model=model))["weights"]
    state, _ = load_weights(weights)
    changed = {
        name.split(".")[0]
        for name, value in backbone.state_dict().items()
        if not torch.equal(state[f"backbone.{name}"], value)
    }
    assert changed == {"reduction_a", "stage_b", "reduction_b", "stage_c"}
    # The checkpoint needs no other file, and nothing of it is frozen.
    (tmp_path / "b.safetensors").unlink()
    assert all(p.requires_grad for p in load_detector(weights).model.parameters())


def test_layers_learn_at_their_own_rates(digits, tmp_path, loop):
    """The crop network slower towards its stem; the heads and the proposer, which start at random,
    at the full rate."""
    optim = OptimConfig(optimizer="sgd", layer_decay=0.5)
    train_detector(tiny(digits, tmp_path / "run", optim=optim))
    model = loop["model"]
    scales = {
        id(parameter): group["lr_scale"]
        for group in build_optimizer(model, loop["config"].optim).param_groups
        for parameter in group["params"]
    }
    found = {name: scales[id(parameter)] for name, parameter in model.named_parameters()}
    assert found["backbone.stem.conv1.conv.weight"] == 0.5**12
    assert found["backbone.stage_c.1.branch1x1.conv.weight"] == 0.5
    others = {scale for name, scale in found.items() if not name.startswith("backbone.")}
    assert others == {1.0}


@pytest.mark.parametrize("change", ["name", "id", "fewer"])
def test_splits_are_matched_by_the_names_of_classes(change, tmp_path, loop, caplog):
    folder = make_digits(tmp_path / "digits", train=4, val=2, image_size=128)
    path = folder / "annotations" / "val.json"
    document = json.loads(path.read_text())
    three = {entry["name"]: entry["id"] for entry in document["categories"]}["3"]
    of_three = [entry for entry in document["annotations"] if entry["category_id"] == three]
    assert of_three
    for entry in document["categories"]:
        if change != "fewer" and entry["id"] == three:
            entry.update({"name": "three"} if change == "name" else {"id": 77})
    if change == "id":
        for entry in of_three:
            entry["category_id"] = 77
    if change == "fewer":
        keep = [entry for entry in document["annotations"] if entry not in of_three]
        document["annotations"] = keep
        document["categories"] = [c for c in document["categories"] if c["id"] != three]
    path.write_text(json.dumps(document))
    config = tiny(folder, tmp_path / "run", data=DataConfig(format="coco", root=str(folder)))
    if change == "name":
        with pytest.raises(UserError, match=r"split val has classes .* training: three; expected"):
            train_detector(config)
        return
    with caplog.at_level(logging.INFO):
        train_detector(config)
    said = {
        "id": f"other ids than the training, and is matched by name: 3 77 ({three})",
        "fewer": "split val lacks classes of the detector, which have no part in its AP: 3",
    }
    assert caplog.text.count(said[change]) == 1


def test_a_split_is_given_a_detectors_labels():
    rows = {"image_ids": [5], "paths": ["a.png"], "sizes": [[90, 90]], "image_index": [0, 0, 0]}
    boxes = [[0, 0, 9, 9], [20, 0, 29, 9], [40, 0, 49, 9]]
    split = DetectionDataset(
        class_names=["cat", "van", "dog"],
        category_ids=[7, 8, 9],
        boxes=boxes,
        labels=[1, 2, 3],
        **rows,
    )
    with pytest.raises(UserError, match="van; expected dog, cow, cat"):
        match_classes(["dog", "cow", "cat"], [1, 9, 3], split, "val")
    same = match_classes(["dog", "cow", "cat"], [1, 9, 3], split, "val", unknown="miss")
    assert same.class_names == ["dog", "cow", "cat", "van"]
    assert same.sample(0).labels.tolist() == [3, 4, 1]
    # What is found of cows is written under an id that no class of the split has.
    assert same.category_ids == [9, 10, 7, 8]
    with pytest.raises(UserError, match="cat, van, dog; expected pig"):
        match_classes(["pig"], [1], split, "val", unknown="miss")
