"""The paper's Table 3: one configuration a row, each of which adds one thing to the row before.

And the configuration with the values of its summaries.
"""

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from timm.optim import RMSpropTF
from torch import Tensor, nn

from backbones.classification.pretraining import PretrainConfig, build_network
from backbones.common.config import parse_config, to_dict
from backbones.data.datasets import ImageBatch
from backbones.training.recipe import build_optimizer, classification_loss
from backbones.training.step import TrainStep

CONFIGS = Path(__file__).parents[3] / "configs/backbone"
CLASSES = 3


class Row(NamedTuple):
    error: str
    changed: set[str]
    optimizer: type[torch.optim.Optimizer]
    smoothing: float
    first_kernels: list[int]
    aux_norm: bool


V2, V3 = [7], [3, 3, 3]
OPTIMIZER = {"optim.optimizer", "optim.decay", "optim.eps"}
ROWS = {
    "1_inception_v2": Row(
        "top-1 23.4 %, top-5 not given", set(), torch.optim.SGD, 0.0, V2, aux_norm=False
    ),
    "2_rmsprop": Row("top-1 23.1 %, top-5 6.3 %", OPTIMIZER, RMSpropTF, 0.0, V2, aux_norm=False),
    "3_label_smoothing": Row(
        "top-1 22.8 %, top-5 6.1 %", {"label_smoothing"}, RMSpropTF, 0.1, V2, aux_norm=False
    ),
    "4_factorized_7x7": Row(
        "top-1 21.6 %, top-5 5.8 %", {"model.variant"}, RMSpropTF, 0.1, V3, aux_norm=False
    ),
    "5_bn_auxiliary": Row(
        "top-1 21.2 %, top-5 5.6 %", {"model.aux"}, RMSpropTF, 0.1, V3, aux_norm=True
    ),
}


def read(name: str, *overrides: str) -> PretrainConfig:
    return parse_config(PretrainConfig, ["--config", str(CONFIGS / f"{name}.yaml"), *overrides])


def flat(config: PretrainConfig) -> dict[str, Any]:
    """Dotted keys; the run folders differ anyway."""
    values = to_dict(config)
    del values["run"]
    for group in ("data", "model", "optim", "step"):
        values |= {f"{group}.{key}": value for key, value in values.pop(group).items()}
    return values


def differences(first: PretrainConfig, second: PretrainConfig) -> set[str]:
    a, b = flat(first), flat(second)
    return {key for key in a if a[key] != b[key]}


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> float:
    """Section 7 of the paper, word for word."""
    target = torch.full_like(logits, smoothing / CLASSES)
    target[range(len(labels)), labels] += 1 - smoothing
    return -(target * logits.log_softmax(1)).sum(1).mean().item()


def test_no_configuration_is_left_out():
    found = sorted(path.stem for path in (CONFIGS / "ablations").rglob("*.y*ml"))
    assert found == list(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_a_step_of_the_row_is_the_papers(name):
    row = ROWS[name]
    config = read(f"ablations/{name}", "--model.width", "0.25")
    torch.manual_seed(0)
    model = build_network(config.model, CLASSES).train()
    assert model.aux_head is not None
    # Logits far apart, so that smoothing shows in the loss.
    model.fc.weight.data *= 100
    model.aux_head.fc.weight.data *= 1000
    outputs = []

    def loss_fn(network: nn.Module, batch: ImageBatch) -> dict[str, Tensor]:
        outputs.append(network(batch.images / 127.5 - 1))
        return classification_loss(
            outputs[-1], batch.labels, config.label_smoothing, config.aux_weight
        )

    size = (2, 3, model.input_size, model.input_size)
    images = torch.randint(0, 256, size, dtype=torch.uint8)
    batch = ImageBatch(images, torch.tensor([0, 2]), ["a", "b"], [])
    train_step = TrainStep(model, loss_fn, config.optim, config.step, "fp32", config.seed)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    values = train_step.accumulate_gradients(batch, step=0)
    train_step.apply_gradients(config.optim.lr)

    assert type(train_step.optimizer) is row.optimizer
    settings = train_step.optimizer.param_groups[0]
    assert (settings["lr"], settings["momentum"]) == (0.045, 0.9)
    if row.optimizer is RMSpropTF:
        assert (settings["alpha"], settings["eps"]) == (0.9, 1.0)
    main, aux = outputs[0].logits, outputs[0].aux_logits
    expected = smoothed_cross_entropy(main, batch.labels, row.smoothing)
    assert values["loss/class"] == pytest.approx(expected, rel=1e-5)
    expected = 0.3 * smoothed_cross_entropy(aux, batch.labels, row.smoothing)
    assert values["loss/aux"] == pytest.approx(expected, rel=1e-5)
    # Up to the first pool.
    first = list(itertools.takewhile(lambda layer: hasattr(layer, "conv"), model.stem))
    assert [layer.conv.kernel_size[0] for layer in first] == row.first_kernels
    has_norm = any(isinstance(layer, nn.BatchNorm2d) for layer in model.aux_head.conv1.modules())
    assert has_norm == row.aux_norm
    assert train_step.ema is not None
    assert all(
        not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)
    )


def test_each_row_adds_one_thing_to_the_one_before():
    configs = [read(f"ablations/{name}") for name in ROWS]
    for (before, after), row in zip(
        itertools.pairwise(configs), list(ROWS.values())[1:], strict=True
    ):
        assert differences(before, after) == row.changed
    assert len({config.run for config in configs}) == len(ROWS)


def test_the_last_row_is_inception_v3():
    assert differences(read("ablations/5_bn_auxiliary"), read("inception_v3")) == {"optim.momentum"}


def test_the_summaries_differ_from_the_paper_in_two_values():
    config = read("inception_v3_summary")
    assert differences(config, read("inception_v3")) == {"optim.lr", "optim.eps"}
    optimizer = build_optimizer(nn.Conv2d(3, 2, 1), config.optim)
    assert isinstance(optimizer, RMSpropTF)
    settings = optimizer.param_groups[0]
    assert (settings["lr"], settings["eps"], settings["alpha"]) == (0.0045, 0.1, 0.9)


@pytest.mark.parametrize("name", ROWS)
def test_the_file_names_its_command_and_the_published_error(name):
    text = (CONFIGS / "ablations" / f"{name}.yaml").read_text()
    assert f"# Published error: {ROWS[name].error}." in text
    assert f"tools.train_backbone --config configs/backbone/ablations/{name}.yaml" in text
    assert f"row {list(ROWS).index(name) + 1} of 5" in text
