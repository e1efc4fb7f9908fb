"""What a run is guarded against: divergence, overfitting, accuracy lost, a useless end."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from jem.checks import check_labels, refuse
from jem.data.batches import BatchStream, Examples
from jem.data.splits import DataPart, LazyPart
from jem.errors import InputError, TrainingDivergedError
from jem.model import JEM, batched_logits, energy_of, inference
from jem.randomness import global_generators_kept, named_generator
from jem.training.optimisation import kept_statistics
from jem.training.process import ONE_PROCESS, Processes
from jem.training.recipe import ResolvedRecipe
from jem.training.update import UpdateContext, UpdateResult

MAX_RECOVERIES = 5
"""Recoveries from divergence before a run gives up."""

LEAST_PATIENCE = 5
"""Epochs in a row that must overfit, at least, before training ends; else a fifth of them."""

MOST_NATS_APART = 5.0
"""Between the mean energies of the same data in training and in evaluation mode, beside their
standard deviation."""


class Diverged(Exception):  # noqa: N818
    """An update that must not be applied; the loop goes back to a checkpoint."""


def is_healthy(result: UpdateResult, grad_norm: Tensor, max_energy_gap: float) -> Tensor:
    """Whether an update may be applied: everything finite, data and chains not torn apart.

    Args:
        result: What was computed.
        grad_norm: Norm of the parameters' gradient, a scalar; infinite or NaN if any component is.
        max_energy_gap: Largest size of the gap that is allowed, in nats.

    Returns:
        A boolean scalar, on the device: reading it is what synchronises.
    """
    healthy = result.loss.isfinite() & grad_norm.isfinite()
    if result.terms.gap is not None:
        healthy &= result.terms.gap.abs() <= max_energy_gap  # False for NaN
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


def give_up(context: UpdateContext, iteration: int) -> TrainingDivergedError:
    """Make the error that ends a run, with the settings to try for its objective.

    Args:
        context: The recipe and the objective of the run.
        iteration: Where it diverged for the last time.
    """
    recipe = context.recipe
    settings = [f"--learning-rate {recipe.learning_rate / 4:g}", "--max-grad-norm 1"]
    if context.trains_density:
        settings += [
            f"--num-steps {recipe.num_steps * 2}",
            f"--density-weight {recipe.density_weight / 3:.2g}",
            f"--energy-l2 {max(recipe.energy_l2 * 3, 0.03):.2g}",
        ]
    return TrainingDivergedError(
        f"training diverged at update {iteration} after {MAX_RECOVERIES} recoveries; "
        f"try one of: {', '.join(settings)}"
    )


LEAST_AUROC, LEAST_AUROC_OF_IMAGES = 0.7, 0.9
"""Below it, against noise, a density is doubted; two moons have 0.77, images 0.84 too early."""


def why_doubted(model: JEM, context: UpdateContext, as_given: str, examples: Examples) -> str:
    """Say what is wrong with a model whose training has ended; empty if nothing is.

    Args:
        model: The model.
        context: The objective of the run.
        as_given: Why it is as it was given; empty if it was trained.
        examples: Held-out ones, of which 256 are looked at.
    """
    if as_given:
        return f"{as_given}, so the model is unchanged; train longer or lower --density-weight"
    if not context.trains_density:
        return ""
    x, _ = next(BatchStream(examples, 256, seed=0, name="noise", device=model.device).epoch(0))
    low, high = model.bounds() or (x, x)
    noise = low + (high - low) * torch.rand(x.shape, generator=named_generator(0, "noise")).to(x)
    model = model.density_model
    data, other = (batched_logits(model, rows).logsumexp(dim=1) for rows in (x, noise))
    auroc = float((data[:, None] > other).double().mean())
    return (auroc < (LEAST_AUROC_OF_IMAGES if x.ndim == 4 else LEAST_AUROC)) * (
        f"the log-density hardly tells held-out examples from uniform noise (AUROC {auroc:.2f}): "
        "too few updates (validation examples, too, may end training early), or data that fill "
        "their range evenly; train longer (--epochs)"
    )


def check_modes(model: JEM, examples: BatchStream, context: UpdateContext, epoch: int) -> None:
    """Check that a model has learned in evaluation mode, too, what it has in training mode.

    A network in which the two differ can be perfect in training, and useless afterwards. It is
    asked from the middle of a run on, as early averages and running statistics lag behind.

    Args:
        model: The averaged model; its modes and statistics are left as they are.
        examples: Training examples, of which the first batch is looked at, the same every time.
        context: The recipe and the objective. Energies are compared if a density is trained,
            nothing if training is in evaluation mode.
        epoch: Epochs that have ended.

    Raises:
        TrainingDivergedError: If accuracy is that of the commonest class in evaluation mode alone,
            or the mean energies lie far apart.
    """
    if 2 * epoch < context.recipe.epochs or context.recipe.freeze_norm_and_dropout:
        return
    model, (x, labels) = model.trained, next(examples.epoch(0))
    devices = [x.device] if x.is_cuda else []
    with inference(model), global_generators_kept(devices), kept_statistics(model):
        predicted = model.logits(x)
        model.train()
        trained = model.logits(x)
    right, right_trained = (
        float((logits.argmax(dim=1) == labels).float().mean()) for logits in (predicted, trained)
    )
    chance = float(labels.bincount().max()) / len(labels)
    error = len(labels) ** -0.5  # twice the largest standard error of a share
    energies = energy_of(predicted)
    apart = abs(float(energies.mean() - energy_of(trained).mean()))
    allowed = MOST_NATS_APART + float(energies.std(correction=0))
    lost = right <= chance + error and right_trained - right > (1 - chance) / 2 + error
    if lost or (context.trains_density and not apart <= allowed):
        raise TrainingDivergedError(
            "the network works only in training mode: on the same training examples accuracy "
            f"{right:.3f} in evaluation mode against {right_trained:.3f} in training mode, mean "
            f"energies {apart:.1f} nats apart; check code that depends on the mode "
            "(`self.training`, slow running statistics), use group normalisation, or train longer"
        )


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
