"""What the estimator asks of training beyond a recipe: each epoch's loss, and when to stop."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from jem.objectives import Batch
from jem.training.monitor import RunMonitor
from jem.training.state import RunState
from jem.training.steps import StepContext, StepResult
from jem.training.trainer import Trainer


class LossMonitor(RunMonitor):
    """A monitor whose record of an epoch tells the mean loss of its updates.

    Args:
        quiet: Show no progress.
    """

    def __init__(self, *, quiet: bool) -> None:
        super().__init__(quiet=quiet)
        self._losses: list[Tensor] = []

    def update(
        self,
        state: RunState,
        context: StepContext,
        batch: Batch,
        result: StepResult,
        **settings: float | Tensor,
    ) -> None:
        """Record an update, and keep its loss."""
        super().update(state, context, batch, result, **settings)
        self._losses.append(result.terms.loss.detach())

    def epoch(self, metrics: dict[str, Any], num_epochs: int, state: RunState) -> None:
        """Record an epoch, with its loss."""
        loss = float(torch.stack(self._losses).mean()) if self._losses else math.nan
        self._losses.clear()
        super().epoch({"seconds": metrics["seconds"], "loss": loss} | metrics, num_epochs, state)


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
