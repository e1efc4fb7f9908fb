"""What happens to the parameters: learning rate, optimiser, gradient clipping, weight average."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from jem.training.recipe import ResolvedRecipe

MOMENTUM = 0.9
"""Of SGD, and beta1 of Adam."""


def learning_rate(recipe: ResolvedRecipe, iteration: int, total: int) -> float:
    """Learning rate of an iteration: linear warm-up from zero, then the recipe's schedule.

    Args:
        recipe: The recipe.
        iteration: From 0; with a warm-up of W iterations the rate is multiplied by min(1,
            iteration / W).
        total: Iterations of the run.

    Returns:
        The rate, >= 0.

    Example:
        >>> from jem.training.recipe import Recipe
        >>> recipe = Recipe(learning_rate=1.0, warmup=0.1, schedule="constant").resolved((2,), 10)
        >>> [learning_rate(recipe, i, 100) for i in (0, 5, 50)]
        [0.0, 0.5, 1.0]
    """
    warmup = round(recipe.warmup * total)
    progress = iteration / max(total, 1)
    scale = min(1.0, iteration / warmup) if warmup else 1.0
    if recipe.schedule == "cosine":
        scale *= (1 + math.cos(math.pi * progress)) / 2
    elif recipe.schedule == "step":
        scale *= recipe.decay_factor ** sum(progress >= share for share in recipe.decay_at)
    return recipe.learning_rate * scale


def make_optimizer(recipe: ResolvedRecipe, model: nn.Module) -> torch.optim.Optimizer:
    """Optimiser of a recipe over all parameters of a model."""
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), rate, MOMENTUM, weight_decay=decay)
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(model.parameters(), rate, betas=(MOMENTUM, 0.999), weight_decay=decay)


def clip_gradients(model: nn.Module, max_norm: float | None) -> Tensor:
    """Clip the gradient of all parameters to a norm, and return the norm it had, a scalar."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if max_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, norm)
    return norm


@contextmanager
def sam_perturbation(model: nn.Module, rho: float) -> Iterator[None]:
    r"""Move parameters to where the loss is worst nearby, and afterwards exactly back.

    .. math:: w' = w + \rho \frac{w^2 g}{\lVert\, |w|\, g \,\rVert_2}

    with g the gradient that the parameters hold. Inside, gradients are cleared, to be filled by a
    second backward pass; statistics of batches are used, but not updated.

    Args:
        model: Its parameters without a gradient stay.
        rho: Radius, > 0; scaled by the size of each weight, it means the same for every layer.

    References:
        Foret et al. (2021), sharpness-aware minimisation, arXiv:2010.01412. Kwon et al. (2021),
        its adaptive kind, arXiv:2102.11600, equation 6.
    """
    moved = [(p, p.detach().clone(), p.grad) for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([before.abs() * grad for _, before, grad in moved])
    with torch.no_grad():
        for p, before, grad in moved:
            p.addcmul_(before.square(), grad * (rho / (norm + 1e-12)))
            p.grad = None
    try:
        with kept_statistics(model):
            yield
    finally:
        with torch.no_grad():
            for p, before, _ in moved:
                p.copy_(before)


@contextmanager
def kept_statistics(model: nn.Module) -> Iterator[None]:
    """Leave buffers as they were: momentum 0 alone would still count batches.

    Args:
        model: The model.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm | _InstanceNorm)]
    momenta = [norm.momentum for norm in norms]
    buffers = [(b, b.clone()) for b in model.buffers()]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for buffer, value in buffers:
            buffer.copy_(value)


def moving_average(
    decay: float, count: Callable[[], int]
) -> Callable[[list[Tensor], list[Tensor]], None]:
    """Exponential average with decay min(d, (1 + n) / (10 + n)) at update n: no early bias.

    Args:
        decay: d, in [0, 1).
        count: Gives n, the updates before this one; at the first the values are taken as they are.

    Returns:
        A function that changes its first list of tensors, the averages, by its second.
    """

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor]) -> None:
        n = count()
        now = min(decay, (1 + n) / (10 + n))
        pairs = list(zip(averaged, current, strict=True))
        smooth = [(mean, value) for mean, value in pairs if n and mean.is_floating_point()]
        if smooth:  # all in a few kernels
            torch._foreach_lerp_([m for m, _ in smooth], [v for _, v in smooth], 1 - now)
        for mean, value in pairs:
            if not (n and mean.is_floating_point()):
                mean.copy_(value)

    return update
