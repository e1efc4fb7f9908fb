"""A look at the network before the first update, and before anything is written."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from jem.checks import check_labels, refuse
from jem.data.batches import as_part, augment
from jem.errors import InputError
from jem.model import JEM, check_no_softmax, evaluation_mode
from jem.objectives import NEEDS, Batch, Objective
from jem.randomness import global_generators_kept
from jem.sampling.langevin import energy_and_gradient
from jem.training.process import isolated_randomness, lowered
from jem.training.recipe import ResolvedRecipe
from jem.training.safeguards import Diverged
from jem.training.steps import joint_forward

if TYPE_CHECKING:
    from jem.training.trainer import Trainer


def check_network(model: JEM, x: Tensor, labels: Tensor) -> int:
    """Number of classes, after a look at the network in evaluation mode.

    Args:
        model: The model.
        x: One or two examples, shape (B, *shape).
        labels: Class indices of the training data, shape (N,).

    Raises:
        InputError: If the network does not take such inputs, lets rows of a batch interact, or has
            no output for a label or no name for an output.
    """
    try:
        with torch.no_grad(), evaluation_mode(model):
            x = x.to(model.device)
            together = model.logits(x.clone())  # some networks change what they are given
            alone = torch.cat([model.logits(row[None].clone()) for row in x])
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"the network does not take inputs of shape {tuple(x.shape[1:])}: "
            f"{next(iter(str(error).splitlines()), type(error).__name__)}"
        ) from error
    num_classes, highest = together.shape[1], int(labels.max())
    named = 1 if model.classes is None else len(model.classes)
    if num_classes == 1 and (named > 1 or int(labels.min()) < highest):
        wanted = max(named, highest + 1)  # K = 1 is a density, of one class
        raise InputError(
            f"the network must have {wanted} outputs, one a class, got one; for a density alone "
            "give all examples one label, and no names of classes"
        )
    if model.classes is not None and named != num_classes:
        refuse("classes", f"name each of {num_classes} outputs of the network", model.classes)
    if num_classes > 1:
        check_labels("labels", labels, len(labels), num_classes)
    if (together - alone).abs().max() > 0.01 * (1 + together.abs().max()):
        raise InputError(
            "logits of one row depend on the other rows of its batch, in evaluation mode: chains "
            "would too; batch normalisation must keep running statistics"
        )
    return num_classes


def probe(
    model: JEM, recipe: ResolvedRecipe, objective: Objective, x: Tensor, batch_size: int
) -> None:
    """Refuse what only the first update would find, before anything is written."""
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
    if batch_size == 1 and not recipe.freeze_norm_and_dropout:
        try:
            with torch.no_grad():
                deepcopy(model).train().logits(x[:1].to(model.device))
        except ValueError:
            remedy = "or set `freeze_norm_and_dropout`"
            refuse("batch_size", "be 2 or more under batch normalisation", 1, remedy)
    x = x[:2].to(model.device)
    if "chains" in objective.needs and not recipe.freeze_norm_and_dropout:
        _check_training_mode(model.marginal, x)
    with lowered(recipe.precision, model.device):
        check_no_softmax(model, x)
        if not recipe.epochs or objective.needs.isdisjoint({"chains", "input_gradients"}):
            return
        try:
            with evaluation_mode(model):
                energy_and_gradient(x, model.energy)
        except RuntimeError as error:
            raise InputError(
                "the energy has no gradient with respect to the inputs: the network must be "
                f"differentiable, without `torch.no_grad` or changes in place "
                f"({str(error).splitlines()[0]})"
            ) from error


def _check_training_mode(model: JEM, x: Tensor) -> None:
    """Refuse a network that would learn from chains something else than it computes later."""
    for name, module in model.network.named_modules():
        if isinstance(module, _InstanceNorm) and module.track_running_stats:
            refuse(
                f"network.{name}", "normalise each input by itself", "running statistics",
                "InstanceNorm with `track_running_stats=False`",
            )  # fmt: skip
        if isinstance(module, nn.SyncBatchNorm) and dist.is_initialized():
            remedy = "leave it as it was: each process then normalises its part of a batch"
            refuse(f"network.{name}", "be no SyncBatchNorm", "one", remedy)
    batch = Batch(x, torch.zeros(len(x)), x)
    data = []
    for unlikely in (x, torch.zeros_like(x)):
        with torch.no_grad(), global_generators_kept():
            torch.manual_seed(0)
            data.append(joint_forward(deepcopy(model).train(), batch, unlikely).data)
    if (data[0] - data[1]).abs().max() > 0.01 * (1 + data[0].abs().max()):
        raise InputError(
            "logits of data depend on the chains beside them, in training mode: use torch's own "
            "batch normalisation, or set `freeze_norm_and_dropout`"
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
        trainer.model.train(not trainer.recipe.freeze_norm_and_dropout)
        whole = next(trainer.batches.epoch(0, 0, generator=trainer.context.generator))
        share = min(1.0, max(2, TIMED // whole.x[0].numel()) / len(whole.x))
        outliers = None if whole.outliers is None else _first(whole.outliers, share)
        x, labels, x_data = (_first(part, share) for part in whole[:3])
        batch = Batch(x, labels, x if whole.x_data is whole.x else x_data, outliers)
        if chains := trainer.context.chains:
            chains.count = max(1, round(share * chains.count))
        ends = [time.perf_counter()]
        while len(ends) <= 2 * updates and (len(ends) < 3 or ends[-1] - ends[0] < ENOUGH):
            with contextlib.suppress(Diverged):  # an update that is refused costs as much
                trainer.train_step(batch)
            if trainer.device.type != "cpu":
                torch.accelerator.synchronize(trainer.device)  # else only launches are timed
            ends.append(time.perf_counter())
    later = itertools.pairwise(ends[len(ends) // 2 :])
    return statistics.median(b - a for a, b in later) / share


def _first(part: Tensor, share: float) -> Tensor:
    """The first rows of a part of a batch."""
    return part[: max(1, round(share * len(part)))]
