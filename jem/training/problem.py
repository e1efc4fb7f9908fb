"""What a training problem is made of: device, domain, examples, and the chains that suit them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jem.errors import InputError
from jem.sampling.starts import (
    ClassGaussianStart,
    ContrastStart,
    MixtureStart,
    Start,
    UniformStart,
)


def choose_device(name: str) -> torch.device:
    """Device by name; `"auto"` is the accelerator that torch finds, else the CPU.

    Raises:
        InputError: If it is unknown or not there.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if found is None else found
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {name!r} cannot be used: {reason}") from error
    return device


def domain_of(x: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of inputs: [0, 1] or [-1, 1] for images in it, else each range widened by a tenth.

    Args:
        x: Training inputs, shape (N, *shape).

    Returns:
        (low, high), scalars for images, of one input's shape otherwise.
    """
    if x.ndim == 4:
        low, high = x.min(), x.max()
        if low >= -1 and high <= 1:
            return torch.tensor(0.0 if low >= 0 else -1.0), torch.tensor(1.0)
    else:
        low, high = x.amin(dim=0), x.amax(dim=0)
    # A constant component gets room too, enough to be seen beside a large constant in float32.
    width = torch.where(high > low, high - low, high.abs().clamp_min(10.0))
    return low - 0.1 * width, high + 0.1 * width


def make_start(
    kind: str, domain: tuple[Tensor, Tensor], x: Tensor, labels: Tensor, num_classes: int
) -> Start:
    """Start of a recipe, fitted to training data where it needs any.

    Args:
        kind: `Recipe.start`.
        domain: Bounds of the inputs.
        x: Training inputs, shape (N, *shape).
        labels: Class indices, shape (N,).
        num_classes: K.
    """
    low, high = domain
    shape = tuple(x.shape[1:])
    if kind == "uniform":
        return UniformStart(low, high, shape)
    if kind == "contrast":
        return ContrastStart(low, high, shape)
    gaussian = ClassGaussianStart.fit(x, labels, num_classes, bounds=domain)
    if kind == "gaussian":
        return gaussian
    parts: list[Start] = [
        UniformStart(low, high, shape),
        ContrastStart(low, high, shape),
        gaussian,
    ]
    return MixtureStart(parts, [1.0, 1.0, 1.0])


def examples_of(train: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    """Inputs and labels to fit starts on: all in memory, or the first 5,000 of a stream."""
    if isinstance(getattr(train, "x", None), Tensor):
        return train.x, train.y
    pairs = [train[i] for i in range(min(len(train), 5000))]
    return torch.stack([x for x, _ in pairs]), torch.tensor([int(y) for _, y in pairs])
