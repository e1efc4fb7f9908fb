"""What the estimator trains, and what it asks of training beyond a recipe."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from jem.training.log import ProgressDisplay
from jem.training.method import Batch, StepContext, StepResult
from jem.training.monitor import RunMonitor
from jem.training.state import RunState
from jem.training.trainer import Data, Trainer


class LossWatch(RunMonitor):
    """A watch whose line of an epoch tells the mean loss of its steps.

    Args:
        progress: Whether to show a progress bar.
    """

    def __init__(self, progress: bool) -> None:
        super().__init__(None, progress)
        self._losses: list[Tensor] = []

    def shown(self, total_iterations: int, title: str) -> ProgressDisplay:
        """Make the progress bar; the kind of step says nothing to who called `fit`."""
        del title
        return super().shown(total_iterations, "training")

    def step(
        self,
        state: RunState,
        method: StepContext,
        batch: Batch,
        outcome: StepResult,
        **settings: float | Tensor,
    ) -> None:
        """Record a step, as `Watch.step`, and keep its loss."""
        super().step(state, method, batch, outcome, **settings)
        self._losses.append(outcome.loss.detach())

    def epoch(self, metrics: dict[str, Any], num_epochs: int, state: RunState) -> None:
        """Record an epoch, as `Watch.epoch`, with its loss."""
        loss = float(torch.stack(self._losses).mean()) if self._losses else math.nan
        self._losses.clear()
        super().epoch({"seconds": metrics["seconds"], "loss": loss} | metrics, num_epochs, state)


class WeightedTrainer(Trainer):
    """A trainer with class weights of a person's own, of which a recipe names but one kind.

    Args:
        arguments: As `Trainer` takes them.
        class_weight: Weight of each class in the cross-entropy, shape (K,), above 0; None leaves
            the recipe's.
        settings: As `Trainer` takes them.
    """

    def __init__(
        self,
        *arguments: Any,  # noqa: ANN401
        class_weight: Tensor | None,
        **settings: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(*arguments, **settings)
        self.class_weight = None if class_weight is None else class_weight.to(self.device)

    def _prepare(self, train: Data, watch: RunMonitor) -> None:
        super()._prepare(train, LossWatch(watch.progress))
        if self.class_weight is not None:
            self.method = replace(self.method, class_weight=self.class_weight)


class BestEpoch:
    """Callback that ends training when the validation NLL stops improving; keeps the best weights.

    Args:
        trainer: The trainer, fitted with validation examples.
        patience: Epochs to wait for an improvement.
    """

    def __init__(self, trainer: Trainer, patience: int) -> None:
        self.trainer, self.patience = trainer, patience
        self.best, self.best_epoch = math.inf, 0
        self.weights: dict[str, Tensor] = {}

    def __call__(self, metrics: dict[str, Any]) -> bool:
        """Whether to end training after this epoch."""
        if metrics["valid_nll"] < self.best:
            self.best, self.best_epoch = metrics["valid_nll"], metrics["epoch"]
            state = self.trainer.state.averaged_model.network.state_dict()
            self.weights = {name: value.clone() for name, value in state.items()}
        return bool(metrics["epoch"] - self.best_epoch >= self.patience)

    def restore(self) -> None:
        """Give the model the averaged weights of the best epoch."""
        if self.weights:
            self.trainer.model.network.load_state_dict(self.weights)
