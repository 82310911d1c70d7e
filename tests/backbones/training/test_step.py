"""One step of training, of a network of one weight: what its settings do to the gradients."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from backbones.common.errors import UserError
from backbones.training.recipe import OptimConfig
from backbones.training.step import StepConfig, TrainStep


class Numbers(NamedTuple):
    values: Tensor
    names: list[str]
    skipped: list[str]

    def split(self, parts: int) -> "list[Numbers]":
        return [Numbers(part, [], []) for part in self.values.chunk(parts)]


def train_step(model: nn.Module, loss_fn, step=None, precision="fp32", **optim) -> TrainStep:
    optim = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "ema_decay": None} | optim
    return TrainStep(model, loss_fn, OptimConfig(**optim), step or StepConfig(), precision, seed=0)


def numbers(*values: float) -> Numbers:
    return Numbers(torch.tensor(values).view(-1, 1), [str(value) for value in values], [])


def linear(weight: float) -> nn.Module:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, weight)
    return model


def mean_of(model: nn.Module, batch: Numbers) -> dict[str, Tensor]:
    """Its gradient is the mean of the numbers."""
    return {"mean": model(batch.values).mean()}


@pytest.mark.parametrize(("clip_grad", "moved"), [(None, 6.0), (10.0, 6.0), (1.5, 1.5)])
def test_the_gradient_is_clipped_to_its_largest_norm(clip_grad, moved):
    model = linear(0.0)
    one = train_step(model, mean_of, clip_grad=clip_grad)
    values = one.accumulate_gradients(numbers(4.0, 8.0), step=0)
    assert values["grad_norm"] == pytest.approx(6.0)  # as it was
    one.apply_gradients(lr=0.5)
    assert model.weight.item() == pytest.approx(-0.5 * moved, rel=1e-5)


def test_groups_learn_at_their_scale_of_the_rate():
    model = linear(0.0)
    one = train_step(model, mean_of, clip_grad=None)
    one.optimizer.param_groups[0]["lr_scale"] = 0.25
    one.accumulate_gradients(numbers(4.0, 8.0), step=0)
    one.apply_gradients(lr=0.5)
    assert model.weight.item() == pytest.approx(-0.5 * 0.25 * 6)


def test_a_batch_in_parts_has_the_gradient_of_the_whole():
    seen = []

    def loss_fn(model, batch):
        seen.append(batch.values.flatten().tolist())
        return mean_of(model, batch)

    gradients = []
    for accumulate in (1, 2):
        model = linear(1.0)
        one = train_step(model, loss_fn, StepConfig(accumulate=accumulate), clip_grad=None)
        values = one.accumulate_gradients(numbers(1.0, 2.0, 3.0, 6.0), step=0)
        assert values["loss/mean"] == values["loss/total"] == 3.0
        gradients.append(model.weight.grad.item())
    assert seen == [[1, 2, 3, 6], [1, 2], [3, 6]]
    assert gradients == [3.0, 3.0]


def test_the_average_follows_the_weights_at_ema_decay():
    model = linear(0.0)
    one = train_step(model, mean_of, clip_grad=None, ema_decay=0.25)
    averages, weights = [], []
    for step in range(6):
        one.accumulate_gradients(numbers(1.0), step)
        one.apply_gradients(lr=1.0)
        weights.append(model.weight.item())
        averages.append(one.ema.module.weight.item())
    # The first copies, and (1 + n) / (10 + n) is 2/11, 3/12 and more than 0.25 from then on.
    want = [weights[0]]
    for weight, decay in zip(weights[1:], [2 / 11, *[0.25] * 4], strict=True):
        want.append(decay * want[-1] + (1 - decay) * weight)
    assert averages == pytest.approx(want, rel=1e-5)
    assert train_step(linear(0.0), mean_of).ema is None


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float32"), ("bf16", "bfloat16")])
def test_precision_is_that_of_the_loss_functions_products(precision, dtype):
    seen = []

    def loss_fn(model, batch):
        seen.append(model(batch.values).dtype)
        return mean_of(model, batch)

    model = linear(1.0)
    one = train_step(model, loss_fn, precision=precision)
    one.accumulate_gradients(numbers(1.0, 2.0), step=0)
    assert seen == [getattr(torch, dtype)]
    assert model.weight.dtype == model.weight.grad.dtype == torch.float32


def test_random_numbers_of_a_step_depend_on_seed_and_step_alone():
    def drawn(seed: int, step: int) -> float:
        values = []

        def loss_fn(model, batch):
            values.append(torch.rand(()).item())
            return mean_of(model, batch)

        one = TrainStep(linear(1.0), loss_fn, OptimConfig(), StepConfig(), "fp32", seed)
        torch.manual_seed(len(found))
        one.accumulate_gradients(numbers(1.0), step)
        return values[0]

    found: list[float] = []
    for seed, step in ((0, 0), (0, 1), (1, 0), (0, 0)):
        found.append(drawn(seed, step))
    assert found[0] == found[3]
    assert len(set(found)) == 3


def test_a_model_with_a_way_of_its_own_compiles_itself(monkeypatch):
    monkeypatch.setattr("backbones.training.step.require_compiler", lambda key: None)
    compiled = []

    class Own(nn.Linear):
        def compile(self):
            compiled.append(self)

    model = Own(1, 1, bias=False)
    one = train_step(model, mean_of, step=StepConfig(compile=True))
    for step in range(2):
        one.accumulate_gradients(numbers(4.0, 8.0), step)
    assert compiled == [model]


def test_one_value_is_too_few_for_batch_normalisation():
    model = nn.Sequential(linear(1.0), nn.BatchNorm1d(1))
    train_step(model, mean_of).accumulate_gradients(numbers(4.0, 8.0), step=0)
    with pytest.raises(UserError, match="cannot train on 1 image at a time: raise batch_size"):
        train_step(model, mean_of).accumulate_gradients(numbers(4.0), step=0)
