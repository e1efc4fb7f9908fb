"""Held-out examples: how good an epoch is on them, and which epoch's average is kept."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from jem.checks import check_labels, refuse
from jem.data.batches import BatchStream
from jem.data.splits import DataPart, LazyPart
from jem.errors import InputError
from jem.model import JEM, energy_of, inference
from jem.training.process import ONE_PROCESS, Processes
from jem.training.recipe import ResolvedRecipe

LEAST_PATIENCE = 5
"""Epochs in a row that must overfit, at least, before training ends; else a fifth of them."""

LEAST_RISE = 0.01
"""Rise of the validation NLL that is no overfitting, in nats, however exact the NLL is: where
classes are easy, an early epoch may be ahead by less than that with a density not yet trained."""


class EpochGuard:
    """Decides which epoch's average training returns, by held-out examples.

    Without a margin that is the last epoch, unless it *overfits*: its validation NLL lies above
    the lowest of any epoch by more than the standard error of that one and `LEAST_RISE`, and its
    training NLL below what it was then. Then it is the epoch of the lowest. A rise that training
    shares, as when the weight of the density grows, is no overfitting. Training ends where as many
    epochs in a row overfit as `patience` says.

    With a margin it is the last epoch whose accuracy is at most so far below that before training:
    the model as it was given, if none was. Every other epoch halves the weight of the density from
    there on.

    Args:
        margin: `Recipe.accuracy_margin`.
        before: Accuracy before the first update; it counts with a margin alone.
        model: The model before the first update.
        patience: Epochs in a row that must overfit before training ends.

    Attributes:
        epoch: Epochs that were judged.
        kept: The one whose average is returned; 0 for the model as given.
        accepted: Weights and statistics of that average.
        overfitted: Epochs that overfit, the last ones in a row.

    References:
        The standard error as tolerance: Breiman, Friedman, Olshen and Stone (1984),
        Classification and Regression Trees, section 3.4.3.
    """

    def __init__(
        self, margin: float | None, before: float, model: nn.Module, patience: int = 5
    ) -> None:
        self.margin, self.before, self.patience = margin, before, patience
        self.halvings = self.overfitted = 0
        self.epoch = self.kept = 0
        self.accepted = _copied(model)
        self.best: dict[str, Any] = {}  # metrics of the best epoch, its number and its weights

    @property
    def weight_scale(self) -> float:
        """What the weight of the density is multiplied by."""
        return 0.5**self.halvings

    @property
    def stops(self) -> bool:
        """Whether training should end."""
        return self.overfitted >= self.patience

    @property
    def why_as_given(self) -> str:
        """Why the model is as it was given: no epoch was within the margin; empty if one was."""
        if self.kept or not self.best:
            return ""
        best = self.best["valid_accuracy"]
        enough = math.ceil(1e4 * (self.before - best) - 1e-5) / 1e4
        return (
            f"no epoch stayed within the accuracy margin of {self.margin:g} (before "
            f"{self.before:.4g}, best {best:.4g} in epoch {self.best['epoch']}, which a margin of "
            f"{enough:g} would have kept)"
        )

    @property
    def summary(self) -> str:
        """Which epoch is kept, in a line for people."""
        kept = f"kept: epoch {self.kept} of {self.epoch}"
        if self.margin is None:
            return f"{kept}, of the lowest validation NLL: later ones overfit"
        return f"{kept}, the last within the accuracy margin of {self.margin:g} on validation data"

    def judge(self, metrics: dict[str, Any], averaged: nn.Module) -> dict[str, Any]:
        """Keep the average of an epoch or leave it.

        Args:
            metrics: What `validate` found of the average, and `cross_entropy`, the training NLL of
                the epoch.
            averaged: The average.

        Returns:
            What the record of the epoch says of it.
        """
        self.epoch += 1
        weights, name = _copied(averaged), "valid_nll" if self.margin is None else "valid_accuracy"
        sign = 1.0 if self.margin is None else -1.0
        if not self.best or sign * metrics[name] < sign * self.best[name]:
            names = ("valid_nll", "valid_nll_se", "valid_accuracy", "cross_entropy")
            self.best = {name: metrics[name] for name in names}
            self.best |= {"epoch": self.epoch, "weights": weights}
        if self.margin is None:
            most = self.best["valid_nll"] + max(self.best["valid_nll_se"], LEAST_RISE)
            overfits = metrics["valid_nll"] > most
            overfits &= metrics["cross_entropy"] < self.best["cross_entropy"]
            self.overfitted = self.overfitted + 1 if overfits else 0
            self.kept = self.best["epoch"] if overfits else self.epoch
            self.accepted = self.best["weights"] if overfits else weights
            return {"overfits": overfits}
        # 0.97 - 0.02 is below 0.95
        within = metrics["valid_accuracy"] >= self.before - self.margin - 1e-9
        if within:
            self.kept, self.accepted = self.epoch, weights
        else:
            self.halvings += 1
        return {
            "valid_accuracy_before": self.before,
            "within_margin": within,
            "density_weight_scale": self.weight_scale,
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
) -> EpochGuard | None:
    """Look at the validation examples, and make the guard that they allow: none without classes.

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
        patience = max(LEAST_PATIENCE, recipe.epochs // 5)
        fixed = num_classes == 1 or model.trained is not model  # a companion keeps its predictions
        return None if fixed else EpochGuard(None, math.nan, model, patience)
    before = validate(model, valid, 4 * recipe.batch_size, ranks)
    if "valid_accuracy" not in before:
        raise InputError("`accuracy_margin` needs classes that training changes")
    return EpochGuard(margin, before["valid_accuracy"], model)


def validate(
    model: JEM,
    examples: Any,  # noqa: ANN401
    batch_size: int,
    ranks: Processes = ONE_PROCESS,
) -> dict[str, float]:
    """Score held-out examples in evaluation mode; of a companion the density alone.

    Args:
        model: The model; its mode is restored.
        examples: A Dataset of (x, y).
        batch_size: Examples at a time.
        ranks: Processes that divide the batches among them.

    Returns:
        `valid_energy`, the mean of E(x), in nats; for K > 1 also `valid_accuracy`, and `valid_nll`
        with its standard error, `valid_nll_se`.

    Raises:
        InputError: If a label has no output.
    """
    stream = BatchStream(
        examples, batch_size, seed=0, name="valid", device=model.device, drop_last=False
    )
    alone = model.trained is not model
    model = model.trained
    totals = torch.zeros(5, dtype=torch.float64)
    has_classes = not alone and (model.classes is None or len(model.classes) > 1)
    with inference(model):
        for x, labels in itertools.islice(stream.epoch(0), ranks.rank, None, ranks.count):
            logits = model.logits(x)
            has_classes = not alone and logits.shape[1] > 1
            if has_classes:
                check_labels("validation labels", labels, len(x), logits.shape[1])
                nll = functional.cross_entropy(logits, labels, reduction="none")
                right = (logits.argmax(dim=1) == labels).sum()
                totals[:3] += torch.stack([right, nll.sum(), nll.square().sum()]).cpu()
            totals[3] += energy_of(logits).sum().cpu()
            totals[4] += len(x)
    right, nll, squares, energy, count = ranks.total(totals).tolist()
    metrics = {"valid_energy": energy / count}
    if has_classes:
        spread = math.sqrt(max(squares - nll**2 / count, 0.0)) / count
        metrics |= {
            "valid_accuracy": right / count,
            "valid_nll": nll / count,
            "valid_nll_se": spread,
        }
    return metrics


def why_useless(model: JEM, examples: DataPart | LazyPart) -> str:
    """Say that a classifier knows no more of held-out examples than how frequent classes are.

    Its accuracy must be no better than that of the commonest class *and* its NLL no better than
    the entropy of the classes: with one rare class, a good classifier may well miss the first.

    Args:
        model: The trained model.
        examples: Held-out examples.

    Returns:
        A sentence; empty if the model does better, or has no classes.
    """
    found = validate(model, examples, 256)
    shares = examples.y.bincount() / len(examples)
    commonest, entropy = float(shares.max()), float(torch.special.entr(shares).sum())
    accuracy, nll = found.get("valid_accuracy", 2.0), found.get("valid_nll", 0.0)
    if accuracy > commonest or nll < entropy:
        return ""
    return (
        f"the classifier is useless on validation examples: accuracy {accuracy:.3f}, NLL "
        f"{nll:.3f}; class frequencies alone give {commonest:.3f} and {entropy:.3f}; train "
        "longer, or with another --learning-rate or a smaller --density-weight"
    )
