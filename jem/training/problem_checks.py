"""What data and network must be to be trained, and how a person is told where they are not."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor

from jem.data.batches import augment
from jem.errors import InputError
from jem.model import JEM, evaluation_mode
from jem.sampling.langevin import energy_and_gradient
from jem.training.process import lowered
from jem.training.recipe import Recipe


def check_network(model: JEM, x: Tensor, labels: Tensor) -> int:
    """Number of classes, after one forward in evaluation mode.

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
    num_classes = together.shape[1]
    low, high = int(labels.min()), int(labels.max())
    named = 1 if model.classes is None else len(model.classes)
    if num_classes == 1 and (named > 1 or low < high):  # K = 1 is a density, of one class
        wanted = max(named, high + 1)
        such = ", such as torch.cat([0 * z, z], dim=1)" if wanted == 2 else ""
        raise InputError(
            f"the network has one output; a classifier of {wanted} classes needs {wanted}{such}; "
            "for a density alone give all examples one label, and no names of classes"
        )
    if model.classes is not None and named != num_classes:
        raise InputError(
            f"the network must have {named} outputs, but has {num_classes}: the "
            "model's `classes` name one each"
        )
    if num_classes > 1 and not 0 <= low <= high < num_classes:
        raise InputError(
            f"labels must lie in 0..{num_classes - 1} for a network of {num_classes} outputs, "
            f"but got {low}..{high}"
        )
    if (together - alone).abs().max() > 0.01 * (1 + together.abs().max()):
        raise InputError(
            "logits of one row depend on the other rows of its batch, in evaluation mode: chains "
            "would too; batch normalisation must keep running statistics"
        )
    return num_classes


def check_batch_size(model: JEM, recipe: Recipe, size: int, x: Tensor) -> None:
    """Refuse batches of one example, shape (1, *shape), where training mode cannot take them."""
    if size > 1 or recipe.freeze_norm_and_dropout:
        return
    try:
        with torch.no_grad():
            deepcopy(model).train().logits(x.to(model.device))
    except ValueError as error:
        raise InputError(
            "the network cannot be trained on one example at a time, as batch normalisation "
            "cannot: set the recipe's `batch_size` to 2 or more, or its `freeze_norm_and_dropout` "
            f"({str(error).splitlines()[0]})"
        ) from error


def check_images(recipe: Recipe, x: Tensor) -> None:
    """Refuse what is for images alone, before anything is written."""
    augment(
        x,
        shift=recipe.augment_shift,
        flip=recipe.augment_flip,
        noise_std=0.0,
        generator=torch.Generator(x.device),
    )
    if recipe.gradient_blur and recipe.generative and x.ndim != 4:
        raise InputError(
            f"recipe field `gradient_blur` is for images of shape (C, H, W), but inputs are "
            f"of shape {tuple(x.shape[1:])}: set it to 0"
        )


def check_gradient(model: JEM, x: Tensor, precision: str) -> None:
    """Refuse a network that chains cannot move by, computed as in training."""
    try:
        with evaluation_mode(model), lowered(precision, model.device):
            energy_and_gradient(x.to(model.device), model.energy)
    except RuntimeError as error:
        raise InputError(
            "the energy has no gradient with respect to the inputs: the network must be "
            f"differentiable, without `torch.no_grad` or changes in place "
            f"({str(error).splitlines()[0]})"
        ) from error


def check_domain(domain: tuple[Tensor, Tensor], x: Tensor) -> None:
    """Refuse inputs outside the domain, more than rounding explains: chains never get there."""
    low, high = (bound.to(x.device) for bound in domain)
    try:
        torch.broadcast_to(low + high, x.shape[1:])
    except RuntimeError as error:
        raise InputError(
            f"`domain` of the model must be of numbers, or of a shape that fits inputs of "
            f"{tuple(x.shape[1:])}, but is of {tuple((low + high).shape)}"
        ) from error
    slack = 1e-3 * (high - low)
    if ((x < low - slack) | (x > high + slack)).any():
        raise InputError(
            f"`domain` of the model says that inputs lie in {_range(low, high)}, but those of "
            f"training lie in {_range(x, x)}: scale them as the network expects, or set `domain`"
        )


def _range(low: Tensor, high: Tensor) -> str:
    return f"[{low.min():.4g}, {high.max():.4g}]"
