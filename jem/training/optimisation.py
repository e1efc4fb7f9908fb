"""What happens to the parameters: learning rate, optimiser, gradient clipping, weight average."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

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
    """Leave buffers, such as running statistics, as they were."""
    buffers = [(b, b.clone()) for b in model.buffers()]
    try:
        yield
    finally:
        for buffer, value in buffers:
            buffer.copy_(value)


@torch.no_grad()
def update_average(averaged: nn.Module, current: nn.Module, decay: float, count: int) -> None:
    """Take parameters and buffers into an exponential average of them, without early bias.

    The decay of update n is min(d, (1 + n) / (10 + n)).

    Args:
        averaged: The module that holds the averages.
        current: The module whose values are taken in.
        decay: d, in [0, 1).
        count: n, the updates before this one; at the first the values are taken as they are.
    """
    now = min(decay, (1 + count) / (10 + count))
    means, values = ([*m.parameters(), *m.buffers()] for m in (averaged, current))
    smooth = [
        (m, v) for m, v in zip(means, values, strict=True) if count and m.is_floating_point()
    ]
    if smooth:  # all in a few kernels
        torch._foreach_lerp_([m for m, _ in smooth], [v for _, v in smooth], 1 - now)
    for mean, value in zip(means, values, strict=True):
        if not (count and mean.is_floating_point()):
            mean.copy_(value)
