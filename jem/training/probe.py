"""A look at the network before the first update, and before anything is written."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from jem.checks import check_labels, refuse
from jem.data.batches import as_part, augment
from jem.errors import InputError
from jem.model import JEM, check_network, energy_of, evaluation_mode
from jem.networks.foreign import copied, in_one_line
from jem.objectives import NEEDS, Batch, Objective
from jem.randomness import global_generators_kept
from jem.sampling.langevin import energy_and_gradient
from jem.training.optimisation import kept_statistics
from jem.training.process import determinism_or_warning, isolated_randomness, lowered
from jem.training.recipe import ResolvedRecipe
from jem.training.safeguards import Diverged
from jem.training.update import forward_all

if TYPE_CHECKING:
    from jem.training.trainer import Trainer


def probe(
    model: JEM,
    recipe: ResolvedRecipe,
    objective: Objective,
    x: Tensor,
    labels: Tensor,
    batch_size: int,
) -> int:
    """Refuse what only the first update would find, before anything is written.

    Args:
        model: The model, on its device.
        recipe: The recipe.
        objective: What trains the density.
        x: Some training inputs, shape (B, *shape).
        labels: Class indices of the training data, shape (N,).
        batch_size: Examples of an update.

    Returns:
        Number of classes, K.

    Raises:
        InputError: If the network cannot be trained on such data, or not by this recipe.
    """
    flip, shift = recipe.augment_flip, recipe.augment_shift
    augment(x[:1], shift=shift, flip=flip, noise_std=0.0, generator=torch.Generator())
    if unknown := objective.needs - NEEDS:
        refuse("needs", f"be among {sorted(NEEDS)}", sorted(unknown))
    if recipe.gradient_blur and objective.needs and x.ndim != 4:
        refuse("gradient_blur", "be 0 for inputs that are no images", recipe.gradient_blur)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(
            "the network has no parameter to train: set `requires_grad` of those that may change"
        )
    x = x[:2].to(model.device)
    with determinism_or_warning():
        num_classes = check_network(model, x).shape[1]
        _check_classes(model, labels, num_classes, recipe.head)
        if not recipe.freeze_norm_and_dropout:
            _check_training_mode(model.trained, x, batch_size, "chains" in objective.needs)
        if recipe.epochs and objective.needs & {"chains", "input_gradients"}:
            _check_gradient(model, recipe, x)
        if recipe.epochs and "curvature" in objective.needs:
            _check_curvature(model.density_model, x)
    return num_classes


def _check_classes(model: JEM, labels: Tensor, num_classes: int, head: str) -> None:
    """Refuse a network that has no output for a label, or no name for an output."""
    if head == "density" and num_classes > 1:
        refuse("network", "have one output for the head 'density'", num_classes)
    highest = int(labels.max())
    named = 1 if model.classes is None else len(model.classes)
    ignored = head == "density" or int(labels.min()) == highest
    if num_classes == 1 and (named > 1 or not ignored):
        wanted = max(named, highest + 1)  # K = 1 is a density, of one class
        raise InputError(
            f"the network must have {wanted} outputs, one for each class, got one; for only "
            "a density set `head` of the recipe to 'density', and give no names of classes"
        )
    if model.classes is not None and named != num_classes:
        refuse("network", f"have {named} outputs, one for each class", num_classes)
    if num_classes > 1:
        check_labels("labels", labels, len(labels), num_classes)


def _check_gradient(model: JEM, recipe: ResolvedRecipe, x: Tensor) -> None:
    """Refuse a network along which nothing can be moved."""
    try:
        with lowered(recipe.precision, model.device), evaluation_mode(model):
            energy_and_gradient(x, model.energy)
    except (InputError, RuntimeError) as error:
        raise InputError(
            "the energy has no gradient with respect to the inputs: the network must be "
            "differentiable, without `torch.no_grad` or changes in place "
            f"({in_one_line(error.__cause__ or error)})"
        ) from error


def _check_curvature(model: JEM, x: Tensor) -> None:
    """Refuse a network whose second derivatives are missing or zero.

    A logit of a piecewise linear network has none but zero; with the factored head its energy.
    Both are asked, in double precision, as the latter is zero up to rounding.
    """
    trial = copied(model).double().eval()
    rows = x.double().requires_grad_()
    other = torch.randn(rows.shape, generator=torch.Generator().manual_seed(0)).to(rows)
    logits = trial._network_logits(rows)
    for value in (logits[:, 0], energy_of(logits)):
        rows.grad = torch.zeros_like(rows)
        (slope,) = torch.autograd.grad(value.sum(), rows, create_graph=True)
        try:
            (slope * other).sum().backward(retain_graph=True)
        except RuntimeError as error:
            raise InputError(
                "the network cannot be differentiated twice: set `score_form` to 'difference' "
                f"({in_one_line(error)})"
            ) from error
        if slope.any() and rows.grad.norm() <= 1e-9 * slope.norm():
            raise InputError(
                "the network is piecewise linear (ReLU, LeakyReLU): its score is constant between "
                "kinks, and has no gradient that moves them; use SiLU, GELU or Softplus"
            )


def _check_training_mode(model: JEM, x: Tensor, batch_size: int, chains: bool) -> None:
    """Refuse a network that fails, or learns from chains something else than it computes later."""
    for name, module in model.density_model.network.named_modules() if chains else ():
        if isinstance(module, _InstanceNorm) and module.track_running_stats:
            refuse(
                f"network.{name}", "normalise each input by itself", "running statistics",
                "InstanceNorm with `track_running_stats=False`",
            )  # fmt: skip
        if isinstance(module, nn.SyncBatchNorm) and dist.is_initialized():
            remedy = "leave it as it was: each process then normalises its part of a batch"
            refuse(f"network.{name}", "be no SyncBatchNorm", "one", remedy)
    trial = copied(model).train()
    with torch.no_grad(), global_generators_kept([x.device] if x.is_cuda else []):
        try:
            trial.logits(x[:batch_size].clone())
        except InputError as error:
            if batch_size > 1 or not isinstance(error.__cause__, ValueError):
                raise
            remedy = "or set `freeze_norm_and_dropout`"
            refuse("batch_size", "be 2 or more under batch normalisation", 1, remedy)
        if chains:
            _check_beside_chains(trial, x)


def _check_beside_chains(model: JEM, x: Tensor) -> None:
    """Refuse a network that in training mode lets chains reach the logits of data."""
    batch = Batch(x, torch.zeros(len(x)), x)
    data = []
    for chains in (x, torch.zeros_like(x)):
        torch.manual_seed(0)
        with kept_statistics(model):  # spectral normalisation too changes them at each call
            data.append(forward_all(model.density_model, batch, chains)[0])
    if (data[0] - data[1]).abs().max() > 0.01 * (1 + data[0].abs().max()):
        raise InputError(
            "in training mode the logits of the data depend on the chains in the same batch: use "
            "torch's own batch normalisation, or set `freeze_norm_and_dropout`"
        )


TIMED = 2**20
"""Numbers that the examples of a timed update may hold: of large images fewer are taken."""
ENOUGH = 4.0
"""Seconds after which no other update is timed."""


def seconds_per_update(trainer: Trainer, train: Any, updates: int = 8) -> float:  # noqa: ANN401
    """Time updates of one batch, to estimate a run; they train the model, nothing is written.

    Of large images an update is timed on fewer examples and chains, and said to take as many
    times longer: the estimate is then somewhat too high.

    Args:
        trainer: The trainer, before `fit`.
        train: Training examples, as `Trainer.fit` takes them.
        updates: How many are timed at most; as many go before them to warm up.

    Returns:
        Seconds of one update, the median.
    """
    with isolated_randomness(trainer.device), torch.enable_grad():
        trainer.prepare(as_part(train))
        trainer.model.train(not trainer.context.recipe.freeze_norm_and_dropout)
        whole = next(trainer.batches.epoch(0, 0, generator=trainer.context.generator))
        share = min(1.0, max(2, TIMED // whole.x[0].numel()) / len(whole.x))
        batch = Batch._make(
            None if part is None else part[: max(1, round(share * len(part)))] for part in whole
        )
        if whole.x_density is whole.x:
            batch = batch._replace(x_density=batch.x)
        if chains := trainer.context.chains:
            chains.count = max(1, round(share * chains.count))
        ends = [time.perf_counter()]
        while len(ends) <= 2 * updates and (len(ends) < 3 or ends[-1] - ends[0] < ENOUGH):
            with contextlib.suppress(Diverged):  # an update that is refused costs as much
                trainer.update(batch)
            if trainer.device.type != "cpu":
                torch.accelerator.synchronize(trainer.device)  # else only launches are timed
            ends.append(time.perf_counter())
    later = itertools.pairwise(ends[len(ends) // 2 :])
    return statistics.median(b - a for a, b in later) / share
