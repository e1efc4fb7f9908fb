"""Divergence: seen before it hurts, undone by going back to a snapshot, bounded in number."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jem.errors import TrainingDivergedError
from jem.training.recipe import Recipe
from jem.training.steps import Outcome


def is_healthy(outcome: Outcome, grad_norm: Tensor, max_gap: float) -> Tensor:
    """Whether a step may be applied: everything finite, and data and chains not torn apart.

    Args:
        outcome: What the step computed.
        grad_norm: Norm of the parameters' gradient, a scalar; infinite or NaN if any component is.
        max_gap: Largest difference allowed between the mean energies of chains and data, in nats.

    Returns:
        A boolean scalar, on the device: reading it is what synchronises.
    """
    healthy = outcome.loss.isfinite() & grad_norm.isfinite()
    if outcome.terms is not None and outcome.moved is not None:
        healthy &= outcome.terms.gap.abs() <= max_gap  # False for NaN
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


def give_up(recipe: Recipe, iteration: int, recoveries: int) -> TrainingDivergedError:
    """Make the error that ends a run, with the knobs to try for its kind of step.

    Args:
        recipe: The recipe of the run.
        iteration: Where it diverged for the last time.
        recoveries: How often it had recovered.
    """
    knobs = [f"--learning-rate {recipe.learning_rate / 4:g}", "--grad-clip 1"]
    if recipe.generative:
        knobs += [
            f"--num-steps {recipe.num_steps * 2}",
            f"--generative-weight {recipe.generative_weight / 3:.2g}",
            f"--energy-l2 {max(recipe.energy_l2 * 3, 0.03):.2g}",
        ]
    return TrainingDivergedError(
        f"training diverged at iteration {iteration} after {recoveries} recoveries; "
        f"try one of: {', '.join(knobs)}"
    )
