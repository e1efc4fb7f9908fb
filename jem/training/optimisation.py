"""What happens to the parameters: learning rate, optimiser, gradient clipping, weight average."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from jem.training.recipe import Recipe


def learning_rate(recipe: Recipe, iteration: int, total: int) -> float:
    """Learning rate of an iteration: linear warm-up from zero, then the recipe's schedule.

    Args:
        recipe: The recipe.
        iteration: From 0; with a warm-up of W iterations the rate is multiplied by min(1,
            iteration / W).
        total: Iterations of the run.

    Returns:
        The rate, >= 0.

    Example:
        >>> recipe = Recipe(learning_rate=1.0, warmup=0.1, schedule="constant")
        >>> [learning_rate(recipe, i, 100) for i in (0, 5, 50)]
        [0.0, 0.5, 1.0]
    """
    warmup = round(recipe.warmup * total)
    progress = iteration / max(total, 1)
    scale = min(1.0, iteration / warmup) if warmup else 1.0
    if recipe.schedule == "cosine":
        scale *= (1 + math.cos(math.pi * progress)) / 2
    elif recipe.schedule == "step":
        scale *= 0.3 ** ((progress >= 0.8) + (progress >= 0.9))
    return recipe.learning_rate * scale


def make_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """Optimiser of a recipe over all parameters of a model."""
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), rate, recipe.momentum, weight_decay=decay)
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(model.parameters(), rate, betas=(recipe.momentum, 0.999), weight_decay=decay)


def clip_gradients(model: nn.Module, max_norm: float | None) -> Tensor:
    """Clip the gradient of all parameters to a norm, and return the norm it had, a scalar."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if max_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, norm)
    return norm


def moving_average(decay: float) -> Callable[..., None]:
    """Exponential average with decay min(d, (1 + n) / (10 + n)) at update n: no early bias."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], num_averaged: Tensor | int) -> None:
        n = int(num_averaged)
        now = min(decay, (1 + n) / (10 + n))
        for mean, value in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - now)
            else:
                mean.copy_(value)

    return update
