"""What a trainer gives to `fit`, for tests that need no step."""

from typing import Any

import pytest

from backbones.training.step import TrainingState

NAMES = ("model", "loader", "loss_fn", "config", "run", "validation", "data")


def given_to_fit(trainer: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """All arguments of the call of `fit` that a module will make, by name; it takes no step."""
    given: dict[str, Any] = {}

    def fit(*arguments, **named):
        given.update(zip(NAMES, arguments, strict=False), **named)
        return TrainingState()

    monkeypatch.setattr(f"{trainer}.fit", fit)
    return given
