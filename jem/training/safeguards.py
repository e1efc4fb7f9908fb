"""What a run is guarded against: divergence, and accuracy lost to the generative half."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from jem.errors import TrainingDivergedError
from jem.training.method import StepResult
from jem.training.recipe import Recipe

MAX_RECOVERIES = 5
"""Recoveries from divergence before a run gives up."""


def is_healthy(outcome: StepResult, grad_norm: Tensor, max_energy_gap: float) -> Tensor:
    """Whether a step may be applied: everything finite, and data and chains not torn apart.

    Args:
        outcome: What the step computed.
        grad_norm: Norm of the parameters' gradient, a scalar; infinite or NaN if any component is.
        max_energy_gap: Largest difference allowed between the mean energies of chains and data, in
            nats.

    Returns:
        A boolean scalar, on the device: reading it is what synchronises.
    """
    healthy = outcome.loss.isfinite() & grad_norm.isfinite()
    if outcome.terms is not None and outcome.moved is not None:
        healthy &= outcome.terms.gap.abs() <= max_energy_gap  # False for NaN
        healthy &= outcome.moved.x.isfinite().all()
    return healthy.detach()


def mask_gradients(module: nn.Module, healthy: Tensor) -> None:
    """Set every gradient to zero unless the step was healthy, without asking the device.

    Args:
        module: Its parameters' gradients are changed in place.
        healthy: A boolean scalar. A product with zero would keep NaN; `where` does not.
    """
    for parameter in module.parameters():
        if parameter.grad is not None:
            parameter.grad = torch.where(healthy, parameter.grad, 0.0)


class AccuracyGuard:
    """Holds accuracy on held-out examples near what it was before training.

    Each epoch that ends further below it than the margin halves the weight of the generative half
    from there on. What training returns is the last average that was within the margin: the model
    as it was given, if none was.

    Args:
        margin: `Recipe.accuracy_margin`.
        before: Accuracy before the first update.
        model: The model before the first update.

    Attributes:
        epoch: Epochs that were judged.
        kept: The last of them within the margin, whose average is kept; 0 for the model as given.
    """

    def __init__(self, margin: float, before: float, model: nn.Module) -> None:
        self.margin, self.before = margin, before
        self.halvings = 0
        self.best: float | None = None  # accuracy of an epoch
        self.epoch = self.kept = 0
        self.accepted = _copied(model)

    @property
    def weight_scale(self) -> float:
        """What the generative weight is multiplied by."""
        return 0.5**self.halvings

    @property
    def why_as_given(self) -> str:
        """Why the model is as it was given: no epoch was within the margin; empty if one was."""
        if self.best is None or self._within(self.best):
            return ""
        return (
            f"no epoch stayed within the accuracy margin of {self.margin:g} "
            f"(best {self.best:.4g}, before {self.before:.4g})"
        )

    def _within(self, accuracy: float) -> bool:
        return accuracy >= self.before - self.margin - 1e-9  # 0.97 - 0.02 is below 0.95

    def judge(self, accuracy: float, averaged: nn.Module) -> dict[str, Any]:
        """Keep the average of an epoch, or halve the weight.

        Args:
            accuracy: Of the average, at the end of the epoch.
            averaged: The average.

        Returns:
            What the record of the epoch says of it.
        """
        within = self._within(accuracy)
        self.best = accuracy if self.best is None else max(accuracy, self.best)
        self.epoch += 1
        if within:
            self.kept = self.epoch
            self.accepted = _copied(averaged)
        else:
            self.halvings += 1
        return {
            "valid_accuracy_before": self.before,
            "within_margin": within,
            "generative_weight_scale": self.weight_scale,
        }

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, as a checkpoint keeps them."""
        return {
            "before": self.before,
            "halvings": self.halvings,
            "best": self.best,
            "epoch": self.epoch,
            "kept": self.kept,
            "accepted": self.accepted,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take everything back from `state_dict`."""
        self.before, self.halvings = state["before"], state["halvings"]
        self.best = state.get("best")
        self.epoch, self.kept = state.get("epoch", 0), state.get("kept", 0)
        self.accepted = state["accepted"]


def _copied(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict().items()
    return {name: value.detach().clone() for name, value in state if isinstance(value, Tensor)}


def give_up(recipe: Recipe, iteration: int, recoveries: int) -> TrainingDivergedError:
    """Make the error that ends a run, with the knobs to try for its kind of step.

    Args:
        recipe: The recipe of the run.
        iteration: Where it diverged for the last time.
        recoveries: How often it had recovered.
    """
    knobs = [f"--learning-rate {(recipe.learning_rate or 0.0) / 4:g}", "--max-grad-norm 1"]
    if recipe.generative:
        knobs += [
            f"--num-steps {(recipe.num_steps or 1) * 2}",
            f"--generative-weight {(recipe.generative_weight or 0.0) / 3:.2g}",
            f"--energy-l2 {max(recipe.energy_l2 * 3, 0.03):.2g}",
        ]
    return TrainingDivergedError(
        f"training diverged at iteration {iteration} after {recoveries} recoveries; "
        f"try one of: {', '.join(knobs)}"
    )
