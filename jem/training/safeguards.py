"""What a run is guarded against: divergence, and accuracy lost to the density."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from jem.checks import check_labels, refuse
from jem.data.batches import BatchStream
from jem.data.splits import DataPart, LazyPart
from jem.errors import InputError, TrainingDivergedError
from jem.model import JEM, inference, joint_energy
from jem.objectives import cross_entropy
from jem.training.process import ONE_PROCESS, Processes
from jem.training.recipe import ResolvedRecipe
from jem.training.steps import StepResult

MAX_RECOVERIES = 5
"""Recoveries from divergence before a run gives up."""


class Diverged(Exception):  # noqa: N818
    """An update that must not be applied; the loop goes back to a checkpoint."""


def is_healthy(result: StepResult, grad_norm: Tensor, max_energy_gap: float) -> Tensor:
    """Whether an update may be applied: everything finite, data and chains not torn apart.

    Args:
        result: What the step computed.
        grad_norm: Norm of the parameters' gradient, a scalar; infinite or NaN if any component is.
        max_energy_gap: Largest difference allowed between the mean energies of chains and data, in
            nats.

    Returns:
        A boolean scalar, on the device: reading it is what synchronises.
    """
    healthy = result.terms.loss.isfinite() & grad_norm.isfinite()
    if "gap" in result.terms.named:
        healthy &= result.terms.named["gap"].abs() <= max_energy_gap  # False for NaN
    if result.proposed is not None:
        healthy &= result.proposed.x.isfinite().all()
    return healthy.detach()


def mask_gradients(module: nn.Module, healthy: Tensor) -> None:
    """Set every gradient to zero unless the update was healthy, without asking the device.

    Args:
        module: Its parameters' gradients are changed in place.
        healthy: A boolean scalar. A product with zero would keep NaN; `where` does not.
    """
    for parameter in module.parameters():
        if parameter.grad is not None:
            parameter.grad = torch.where(healthy, parameter.grad, 0.0)


def give_up(recipe: ResolvedRecipe, iteration: int) -> TrainingDivergedError:
    """Make the error that ends a run, with the settings to try for its objective.

    Args:
        recipe: The recipe of the run.
        iteration: Where it diverged for the last time.
    """
    settings = [f"--learning-rate {recipe.learning_rate / 4:g}", "--max-grad-norm 1"]
    if recipe.generative:
        settings += [
            f"--num-steps {recipe.num_steps * 2}",
            f"--generative-weight {recipe.generative_weight / 3:.2g}",
            f"--energy-l2 {max(recipe.energy_l2 * 3, 0.03):.2g}",
        ]
    return TrainingDivergedError(
        f"training diverged at iteration {iteration} after {MAX_RECOVERIES} recoveries; "
        f"try one of: {', '.join(settings)}"
    )


class AccuracyGuard:
    """Keeps accuracy on held-out examples near what it was before training.

    Each epoch that ends further below it than the margin halves the weight of the density from
    there on. What training returns is the last average that was within the margin: the model as it
    was given, if none was.

    Args:
        margin: `Recipe.accuracy_margin`.
        before: Accuracy before the first update.
        model: The model before the first update.

    Attributes:
        epoch: Epochs that were judged.
        kept: The last of them within the margin, whose average is kept; 0 for the model as given.
        accepted: Weights and statistics of that average.
    """

    def __init__(self, margin: float, before: float, model: nn.Module) -> None:
        self.margin, self.before = margin, before
        self.halvings = 0
        self.best: float | None = None  # accuracy of an epoch
        self.epoch = self.kept = 0
        self.accepted = _copied(model)

    @property
    def weight_scale(self) -> float:
        """What the weight of the density is multiplied by."""
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
        return vars(self).copy()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take everything back from `state_dict`."""
        vars(self).update(state)


def _copied(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict().items()
    return {name: value.detach().clone() for name, value in state if isinstance(value, Tensor)}


def check_validation(
    model: JEM,
    recipe: ResolvedRecipe,
    valid: Any,  # noqa: ANN401
    ranks: Processes,
) -> AccuracyGuard | None:
    """Look at the validation examples, and make the guard of accuracy if the recipe asks for it.

    Args:
        model: The model before the first update.
        recipe: The recipe.
        valid: A Dataset of (x, y), or None.
        ranks: The processes of the run.

    Raises:
        InputError: If the examples do not fit the model, or there is no accuracy to guard.
    """
    margin = recipe.accuracy_margin
    if valid is None:
        if margin is not None:
            raise InputError("`accuracy_margin` needs validation examples: fit(train, valid)")
        return None
    if (shape := tuple(valid[0][0].shape)) != model.input_shape:
        refuse("valid", f"hold inputs of shape {model.input_shape}", shape)
    num_classes = len(model.classes or ())
    if isinstance(valid, DataPart | LazyPart) and num_classes > 1:
        check_labels("validation labels", valid.y, len(valid), num_classes)
    if margin is None:
        return None
    before = validate(model, valid, 4 * recipe.batch_size, ranks)
    if "valid_accuracy" not in before:
        raise InputError("`accuracy_margin` needs classes, but the network has one output")
    return AccuracyGuard(margin, before["valid_accuracy"], model)


def validate(
    model: JEM,
    examples: Any,  # noqa: ANN401
    batch_size: int,
    ranks: Processes = ONE_PROCESS,
) -> dict[str, float]:
    """Score held-out examples in evaluation mode.

    Args:
        model: The model; its mode is restored.
        examples: A Dataset of (x, y).
        batch_size: Examples at a time.
        ranks: Processes that divide the batches among them.

    Returns:
        `valid_accuracy` and `valid_nll` (for K > 1) and `valid_energy`, the mean of E(x), in nats.

    Raises:
        InputError: If a label has no output.
    """
    stream = BatchStream(
        examples, batch_size, seed=0, name="valid", device=model.device, drop_last=False
    )
    totals = torch.zeros(4, dtype=torch.float64)
    has_classes = model.classes is None or len(model.classes) > 1
    with inference(model):
        for x, labels in itertools.islice(stream.epoch(0), ranks.rank, None, ranks.count):
            logits = model.logits(x)
            has_classes = logits.shape[1] > 1
            if has_classes:
                check_labels("validation labels", labels, len(x), logits.shape[1])
            right = (logits.argmax(dim=1) == labels).sum()
            nll = cross_entropy(logits, labels) * len(x)
            totals[:3] += torch.stack([right, nll, joint_energy(logits).sum()]).cpu()
            totals[3] += len(x)
    right, nll, energy, count = ranks.total(totals).tolist()
    metrics = {"valid_energy": energy / count}
    if has_classes:
        metrics |= {"valid_accuracy": right / count, "valid_nll": nll / count}
    return metrics
