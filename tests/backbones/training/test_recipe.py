import logging

import numpy as np
import pytest
import torch
from torch import nn

from backbones.common.config import from_dict, to_dict
from backbones.common.errors import UserError
from backbones.training.recipe import (
    OptimConfig,
    RunningAverage,
    build_optimizer,
    classification_loss,
    lr_factor,
    scaled_lr,
)


def random_gradients(steps, shape):
    return np.random.default_rng(0).normal(size=(steps, *shape)) * 3


def train_weight(config, gradients, start):
    """The weight after each given gradient, by the optimiser under test."""
    model = nn.Linear(start.shape[1], start.shape[0], bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(start))
    optimizer = build_optimizer(model, config)
    for gradient in gradients:
        model.weight.grad = torch.from_numpy(gradient)
        optimizer.step()
    return model.weight.detach().numpy()


@pytest.mark.parametrize(("eps", "weight_decay"), [(1.0, 0.0), (0.1, 0.01)])
def test_rmsprop_is_tensorflows_over_20_steps(eps, weight_decay):
    start = np.random.default_rng(1).normal(size=(3, 4))
    gradients = random_gradients(20, start.shape)
    weight, square, velocity = start.copy(), np.ones_like(start), np.zeros_like(start)
    for gradient in gradients:
        gradient = gradient + weight_decay * weight
        square = 0.8 * square + 0.2 * gradient**2
        velocity = 0.7 * velocity + 0.045 * gradient / np.sqrt(square + eps)
        weight = weight - velocity
    config = OptimConfig(decay=0.8, momentum=0.7, eps=eps, weight_decay=weight_decay)
    np.testing.assert_allclose(train_weight(config, gradients, start), weight, rtol=1e-10)


def test_sgd_has_momentum():
    start = np.ones((2, 2))
    gradients = random_gradients(5, start.shape)
    weight, velocity = start.copy(), np.zeros_like(start)
    for gradient in gradients:
        velocity = 0.5 * velocity + gradient + 0.1 * weight
        weight = weight - 0.01 * velocity
    config = OptimConfig(optimizer="sgd", lr=0.01, momentum=0.5, weight_decay=0.1)
    np.testing.assert_allclose(train_weight(config, gradients, start), weight, rtol=1e-10)


def test_adamw_first_step():
    start = np.ones((2, 2))
    gradient = random_gradients(1, start.shape)
    config = OptimConfig(optimizer="adamw", lr=0.01, eps=0.5, weight_decay=0.1)
    expected = start * (1 - 0.001) - 0.01 * gradient[0] / (np.abs(gradient[0]) + 0.5)
    np.testing.assert_allclose(train_weight(config, gradient, start), expected, rtol=1e-10)


def test_biases_and_normalisation_do_not_decay():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    groups = build_optimizer(model, OptimConfig(weight_decay=0.1)).param_groups
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert [decays[id(p)] for p in model.parameters()] == [0.1, 0, 0, 0]


def test_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1))
    model[0].requires_grad_(False)
    groups = build_optimizer(model, OptimConfig()).param_groups
    assert sum(len(group["params"]) for group in groups) == 2


def test_paper_schedule_to_epoch_100():
    steps_per_epoch, config = 7, OptimConfig()
    for epoch in range(100):
        expected = 0.045 * 0.94 ** (epoch // 2)
        for step in (epoch * 7, epoch * 7 + 6):
            assert config.lr * lr_factor(step, config, steps_per_epoch, 700) == pytest.approx(
                expected, rel=1e-12
            )


def test_the_staircase_has_the_configurations_height_and_length():
    """A fifth after every one and a half epochs of four steps; warm-up multiplies it."""
    config = OptimConfig(schedule="staircase", decay_rate=0.2, decay_epochs=1.5)
    factors = [lr_factor(step, config, 4, 24) for step in range(24)]
    np.testing.assert_allclose(factors, np.repeat([1, 0.2, 0.04, 0.008], 6))
    config = OptimConfig(warmup_epochs=1, decay_rate=0.2, decay_epochs=1.5)
    factors = [lr_factor(step, config, 4, 24) for step in range(7)]
    np.testing.assert_allclose(factors, [0.25, 0.5, 0.75, 1, 1, 1, 0.2])


def test_the_rate_is_as_it_stands_or_grows_with_the_batch(caplog):
    assert scaled_lr(OptimConfig(lr=0.02), 8) == 0.02
    assert caplog.text == ""
    with caplog.at_level(logging.INFO):
        assert scaled_lr(OptimConfig(lr=0.02, scale_lr_from=32), 8) == pytest.approx(0.005)
    assert "learning rate 0.005: optim.lr 0.02 times 8 images a step over" in caplog.text
    with pytest.raises(UserError, match=r"optim.scale_lr_from must be at least 1 or null, got 0"):
        OptimConfig(scale_lr_from=0)


def test_cosine_schedule_with_warmup():
    config = OptimConfig(schedule="cosine", warmup_epochs=2)
    factors = [lr_factor(step, config, 10, 120) for step in range(120)]
    np.testing.assert_allclose(factors[:20], (np.arange(20) + 1) / 20)
    expected = 0.5 * (1 + np.cos(np.pi * np.arange(100) / 100))
    np.testing.assert_allclose(factors[20:], expected)


def test_the_defaults_are_those_of_the_papers_section_8():
    config = OptimConfig()
    assert (config.optimizer, config.lr, config.clip_grad) == ("rmsprop_tf", 0.045, 2.0)
    assert [config.value(key) for key in ("momentum", "decay", "eps")] == [0.9, 0.9, 1.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "sgd", "eps": 1.0}, "optim.eps does not apply to optim.optimizer 'sgd'"),
        ({"optimizer": "sgd", "decay": 0.9}, "optim.decay does not apply"),
        ({"optimizer": "adamw", "momentum": 0.9}, "optim.momentum does not apply"),
        ({"schedule": "cosine", "decay_rate": 0.9}, "optim.decay_rate does not apply"),
        ({"schedule": "cosine", "decay_epochs": 2}, "optim.decay_epochs does not apply"),
        ({"lr": 0}, "optim.lr must be more than 0"),
        ({"momentum": 1.0}, "optim.momentum must be in"),
        ({"clip_grad": 0.0}, "optim.clip_grad must be more than 0 or null"),
        ({"ema_decay": 1.0}, "optim.ema_decay must be in"),
        ({"schedule": "step"}, "optim.schedule must be one of"),
    ],
)
def test_options_that_do_not_apply_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        OptimConfig(**options)


@pytest.mark.parametrize("optimizer", ["rmsprop_tf", "sgd", "adamw"])
def test_a_resolved_config_reads_back(optimizer):
    config = OptimConfig(optimizer=optimizer, schedule="cosine")
    assert from_dict(OptimConfig, to_dict(config)) == config


def test_label_smoothing_mixes_with_the_uniform_distribution():
    random = np.random.default_rng(0)
    logits, aux = random.normal(size=(2, 6, 5))
    labels = random.integers(5, size=6)
    target = 0.9 * np.eye(5)[labels] + 0.1 / 5

    def smoothed(values):
        log_probability = values - np.log(np.exp(values).sum(1, keepdims=True))
        return -(target * log_probability).sum(1).mean()

    tensors = (torch.from_numpy(logits), torch.from_numpy(aux))
    losses = classification_loss(tensors, torch.from_numpy(labels), 0.1, aux_weight=0.3)
    assert losses["class"].item() == pytest.approx(smoothed(logits), rel=1e-12)
    assert losses["aux"].item() == pytest.approx(0.3 * smoothed(aux), rel=1e-12)
    assert list(classification_loss(tensors[0], torch.from_numpy(labels))) == ["class"]


def test_ema_warms_up_and_averages_batchnorm_statistics():
    model = nn.BatchNorm1d(1)
    ema = RunningAverage(model, decay=0.5)
    values = np.random.default_rng(0).normal(size=20)
    expected = values[0]
    for count, value in enumerate(values):
        with torch.no_grad():
            model.weight.fill_(value)
            model.running_mean.fill_(value)
            model.num_batches_tracked.fill_(count)
        ema.update_parameters(model)
        decay = min(0.5, (1 + count) / (10 + count)) if count else 0
        expected = decay * expected + (1 - decay) * value
        assert ema.module.weight.item() == pytest.approx(expected, rel=1e-4)
        assert ema.module.running_mean.item() == pytest.approx(expected, rel=1e-4)
        assert ema.module.num_batches_tracked.item() == count
