"""Training of a classifier: what its configuration makes of it, and one streamed run resumed."""

import csv
import io
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.fit import given_to_fit
from PIL import Image
from torch import nn

from backbones import create_backbone
from backbones.classification.pretraining import (
    NetworkConfig,
    PretrainConfig,
    build_network,
    pretrain,
)
from backbones.common.errors import UserError
from backbones.data.datasets import ImageBatch
from backbones.data.loaders import ImagesConfig
from backbones.data.sampler import EpochSampler
from backbones.data.transforms import AugmentConfig
from backbones.networks.checkpoint import save_backbone
from backbones.networks.weights import load_weights
from backbones.training.recipe import OptimConfig, classification_loss
from backbones.training.step import StepConfig

NAIVE = "inception_v3_79_naive"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Pictures in three classes, and the same ones in two shards of four."""
    folder = tmp_path_factory.mktemp("pretraining")
    random = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for label, name in enumerate(("dark", "light", "none")):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(128 * label, 128 * label + 127, (32, 32, 3))
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(folder / split / name / f"{index}.png")
    for shard in range(2):
        with tarfile.open(folder / f"shard-{shard}.tar", "w") as tar:
            for index in range(4):
                tar.add(folder / "train" / "dark" / f"{index}.png", f"{index}.png")
                info = tarfile.TarInfo(f"{index}.cls")
                info.size = 1
                tar.addfile(info, io.BytesIO(str((index + shard) % 3).encode()))
    (folder / "three.json").write_text('["dark", "light", "none"]')
    return folder


def test_the_network_is_the_configurations(tmp_path):
    config = NetworkConfig("inception_v3_79_table1", width=0.25, aux="none", dropout=0.4)
    model = build_network(config, 7)
    assert (model.spec.name, model.num_classes) == ("inception_v3_79_table1", 7)
    assert model.num_features == 512
    assert model.aux_head is None
    assert model.dropout == 0.4

    def normalised(aux: str) -> bool:
        """Whether the auxiliary head's last layers are followed by normalisation."""
        head = build_network(NetworkConfig(NAIVE, width=0.25, aux=aux), 7).aux_head
        return any(isinstance(layer, nn.BatchNorm2d) for layer in head.conv1.modules())

    assert (normalised("plain"), normalised("batch_norm")) == (False, True)

    # Of another variant, and with other classes: all but the classifier is the file's.
    torch.manual_seed(9)
    start = create_backbone("inception_v3_79", num_classes=3, width=0.25)
    path = tmp_path / "backbone.safetensors"
    save_backbone(path, start, ["a", "b", "c"])
    weights = NetworkConfig(NAIVE, width=0.25, aux="none", weights=str(path))
    state = build_network(weights, 7).state_dict()
    same = {name for name, tensor in start.state_dict().items() if torch.equal(tensor, state[name])}
    assert start.state_dict().keys() - same == {"fc.weight", "fc.bias"}


@pytest.fixture
def loop(monkeypatch) -> dict[str, Any]:
    """What `pretrain` gives to `fit`, which takes no step here."""
    return given_to_fit("backbones.classification.pretraining", monkeypatch)


def small(root: Path, run: Path, **options) -> PretrainConfig:
    """A configuration for a CPU."""
    values = {
        "run": str(run),
        "data": ImagesConfig(root=str(root)),
        "model": NetworkConfig(NAIVE, width=0.25),
        "optim": OptimConfig(lr=0.01, clip_grad=1.0),
        "epochs": 2,
        "batch_size": 2,
        "precision": "fp32",
        "workers": 0,
        "device": "cpu",
    }
    return PretrainConfig(**(values | options))


def test_the_loop_is_given_what_the_configuration_says(root, tmp_path, loop):
    data = ImagesConfig(root=str(root), augment=AugmentConfig(min_area=0.5))
    options = {"epochs": 3, "batch_size": 4, "workers": 2, "eval_every": 5, "seed": 11}
    options |= {"checkpoint_minutes": 1.5, "keep_checkpoints": 7, "step": StepConfig(accumulate=2)}
    options |= {"precision": "bf16", "device": "cpu"}
    config = small(root, tmp_path / "run", data=data, **options)
    pretrain(config)
    assert loop["run"].path == tmp_path / "run"
    assert not loop["run"].resume
    given = loop["config"]
    assert (given.optim, given.step, given.precision) == (config.optim, config.step, "bf16")
    options = (given.eval_every, given.checkpoint_minutes, given.keep_checkpoints)
    assert options == (5, 1.5, 7)
    assert next(loop["model"].parameters()).device == torch.device("cpu")
    loader = loop["loader"]
    sampler: EpochSampler = loader.batch_sampler
    assert (sampler.epochs, sampler.batch_size, sampler.seed) == (3, 4, 11)
    assert loader.num_workers == 2
    assert (loader.dataset.seed, loader.dataset.config) == (11, config.data.augment)
    assert len(loader.dataset) == 12


def test_the_loss_has_the_configurations_smoothing_and_weight(root, tmp_path, loop):
    pretrain(small(root, tmp_path / "run", label_smoothing=0.3, aux_weight=0.7))
    outputs = []

    def network(images):
        # As they were read: the network normalises them, by what its weights were trained with.
        assert images.dtype == torch.uint8
        generator = torch.Generator().manual_seed(0)
        outputs.append((torch.randn(4, 3, generator=generator), torch.ones(4, 3)))
        return outputs[-1]

    images = torch.randint(0, 256, (4, 3, 79, 79), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 0])
    losses = loop["loss_fn"](network, ImageBatch(images, labels, list("abcd"), []))
    expected = classification_loss(outputs[0], labels, label_smoothing=0.3, aux_weight=0.7)
    assert losses == expected


def test_seed_decides_the_first_weights(root, tmp_path, loop):
    weights = []
    for number, seed in enumerate((0, 1, 0)):
        pretrain(small(root, tmp_path / str(number), seed=seed))
        weights.append(loop["model"].stem.conv1.conv.weight)
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": "tpu"}, "device must be auto, cpu, cuda or cuda:N"),
        ({"workers": -1}, "workers must be 0 or more"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"checkpoint_minutes": -1.0}, "checkpoint_minutes must be 0 or more"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ({"aux_weight": -0.1}, "aux_weight must be 0 or more, got -0.1"),
        ({"step": StepConfig(accumulate=3)}, "batch_size 2 is no multiple of step.accumulate 3"),
    ],
)
def test_a_wrong_value_is_refused(change, message, root, tmp_path):
    with pytest.raises(UserError, match=message):
        pretrain(small(root, tmp_path / "run", **change))


def outcome(config: PretrainConfig) -> dict[str, Any]:
    """What a run leaves: the numbers it logs and every weight."""
    pretrain(config)
    run = Path(config.run)
    state, _ = load_weights(run / "last.safetensors")
    with (run / "curves.csv").open() as file:
        numbers = list(csv.reader(file))
    return {
        "numbers": numbers,
        "checkpoints": sorted(path.name for path in (run / "checkpoints").iterdir()),
        "weights": {name: tensor.flatten().tolist() for name, tensor in state.items()},
    }


@pytest.mark.parametrize(("workers", "epochs", "broken_at"), [(0, 2, 3), (2, 1, 2)])
def test_a_streamed_run_resumes_in_the_middle_of_an_epoch(
    workers, epochs, broken_at, root, tmp_path, monkeypatch
):
    """Of four steps."""
    shards = {"train_shards": f"{root}/shard-{{0..1}}.tar", "train_images": 8}
    config = small(
        root,
        tmp_path / "unbroken",
        data=ImagesConfig(root=str(root), classes=str(root / "three.json"), **shards),
        epochs=epochs,
        workers=workers,
        checkpoint_minutes=0.0,
    )
    expected = outcome(config)
    config = replace(config, run=str(tmp_path / "run"))
    calls = iter(range(100))

    def broken(*arguments):
        if next(calls) == broken_at:
            raise KeyboardInterrupt
        return classification_loss(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("backbones.classification.pretraining.classification_loss", broken)
        with pytest.raises(KeyboardInterrupt):
            outcome(config)
    config = replace(config, resume=True)
    assert outcome(config) == expected
    if workers == 0:
        with pytest.raises(UserError, match="cannot be continued by 2"):
            outcome(replace(config, workers=2, epochs=3))


@pytest.mark.parametrize(("batch_size", "accumulate"), [(1, 1), (4, 4)])
def test_one_image_at_a_time_is_too_few_for_the_auxiliary_head(
    root, tmp_path, batch_size, accumulate
):
    config = PretrainConfig(
        run=str(tmp_path / "run"),
        batch_size=batch_size,
        data=ImagesConfig(root=str(root)),
        model=NetworkConfig(NAIVE, width=0.25),
        step=StepConfig(accumulate=accumulate),
        workers=0,
        device="cpu",
    )
    with pytest.raises(UserError, match="needs two of them: raise batch_size"):
        pretrain(config)
    assert not (tmp_path / "run").exists()
