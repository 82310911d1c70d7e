"""What becomes of a run's weights after an epoch: they are scored, and saved for use."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from backbones.common import distributed
from backbones.data.sampler import EpochSampler
from backbones.training.run_folder import RunFolder
from backbones.training.step import TrainingState, TrainStep

logger = logging.getLogger(__name__)

Evaluate = Callable[[nn.Module], dict[str, float]]
Save = Callable[[Path, nn.Module, dict[str, float]], None]


@dataclass(frozen=True)
class Validation:
    """Scores the weights for use, those averaged where there are any, and saves them.

    Attributes:
        evaluate: metrics of a model in eval mode, the same in all processes, recorded as
            `val/<name>`; run without gradients. None for no evaluation.
        evaluate_raw: where weights are averaged, also evaluate the raw ones and record that as
            `val/<name>_raw`.
        best_metric: the metric that chooses the best weights, higher is better.
        save: writes weights for use: `last.safetensors` at each evaluation, `best.safetensors`
            when it is the best so far. Given the path, the evaluated model and its metrics.
    """

    evaluate: Evaluate | None = None
    evaluate_raw: bool = False
    best_metric: str | None = None
    save: Save | None = None

    def after_epoch(
        self, run: RunFolder, train_step: TrainStep, state: TrainingState, sampler: EpochSampler
    ) -> None:
        """Score, record and save; the metrics go into the state. The model is left in train mode.

        Metrics of raw weights end in `_raw`. They are on the curves and in the log alone: the
        files for use hold the averaged weights.
        """
        model, ema = train_step.model, train_step.ema
        for_use = model if ema is None else ema.module
        if self.evaluate is not None:
            state.metrics = _measure(self.evaluate, for_use)
            values = dict(state.metrics)
            if self.evaluate_raw and ema is not None:
                raw = _measure(self.evaluate, model)
                values |= {f"{name}_raw": value for name, value in raw.items()}
            model.train()
            epoch = state.step / sampler.steps_per_epoch
            run.record(state.step, epoch, {f"val/{k}": v for k, v in values.items()})
            listed = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
            logger.info("epoch %d/%d: %s", round(epoch), sampler.epochs, listed)
            self._explain_zero(train_step, state)
        is_best = self.best_metric is not None and _is_better(state, self.best_metric)
        if is_best:
            state.best_metrics, state.best_step = state.metrics, state.step
        if self.save is not None and distributed.is_main():
            for name in ("last", "best") if is_best else ("last",):
                self.save(run.path / f"{name}.safetensors", for_use, state.metrics)

    def _explain_zero(self, train_step: TrainStep, state: TrainingState) -> None:
        """Say once why a score may be 0 while the losses fall: averaged weights come later."""
        if self.best_metric is None or train_step.ema is None or state.best_metrics:
            return
        decay = train_step.ema.decay
        span = round(1 / (1 - decay))
        if state.metrics.get(self.best_metric) == 0 and state.step < 5 * span:
            logger.info(
                "%s is 0 as yet: it is that of the running average of the weights over some %d "
                "steps (optim.ema_decay %g), %d are done, and it rises later than the losses fall",
                *(self.best_metric, span, decay, state.step),
            )


def _measure(evaluate: Evaluate, model: nn.Module) -> dict[str, float]:
    model.eval()
    # Not inference_mode: what a model caches under it could not take part in training later.
    with torch.no_grad():
        return {name: float(value) for name, value in evaluate(model).items()}


def _is_better(state: TrainingState, metric: str) -> bool:
    def rank(metrics: dict[str, float]) -> float:
        value = metrics.get(metric, math.nan)
        return -math.inf if math.isnan(value) else value

    return not state.best_metrics or rank(state.metrics) > rank(state.best_metrics)
