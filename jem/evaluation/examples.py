"""Inputs as evaluation takes them: checked, brought to the CPU, and chosen at random."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jem.data.splits import DataPart, DataSplits, LazyPart
from jem.errors import InputError
from jem.generation.chains import refuse_not_finite
from jem.model import JEM, check_model
from jem.randomness import named_generator

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def check_inputs(
    x: Tensor | ArrayLike, input_shape: tuple[int, ...] | None = None, name: str = "inputs"
) -> Tensor:
    """Bring a batch of inputs to float32 on the CPU, or say what is wrong.

    Args:
        x: Inputs in the network's units, shape (B, *shape), B >= 1.
        input_shape: Shape that one must have; None takes any.
        name: What an error message calls them.

    Raises:
        InputError: If these are no finite numbers, there are none, or the shape does not fit.
    """
    try:
        batch = torch.as_tensor(x).detach().to("cpu", torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"`{name}` must be real numbers: {error}") from error
    fits = batch.ndim >= 2 and (input_shape is None or tuple(batch.shape[1:]) == input_shape)
    if not fits or not batch.numel():
        sizes = "..." if input_shape is None else ", ".join(map(str, input_shape))
        raise InputError(
            f"`{name}` must be of shape (B, {sizes}), B >= 1, but got {tuple(batch.shape)}"
        )
    refuse_not_finite(batch, name)
    return batch


def check_classes(model: JEM, splits: DataSplits) -> None:
    """Refuse a model whose classes are not those of the data, in their order.

    Classes that are only numbered, as training does without names, are those of any data.

    Raises:
        InputError: If they differ, or this is no `JEM`.
    """
    check_model(model)
    classes = tuple(str(name) for name in splits.classes)
    numbered = tuple(str(k) for k in range(len(classes)))
    if model.classes in (None, numbered, classes):
        return
    pairs = zip_longest(model.classes or (), classes)
    k, (own, wanted) = next((k, pair) for k, pair in enumerate(pairs) if pair[0] != pair[1])
    raise InputError(
        f"class {k} must be {wanted!r}, as in `{splits.name}`, but is {own!r} in the model: bring "
        "its outputs into the order of the data's `classes`"
    )


def part_of(splits: DataSplits, name: str) -> DataPart | LazyPart:
    """A part of a data set by its name.

    Raises:
        InputError: If it is empty.
    """
    part: DataPart | LazyPart = getattr(splits, name)
    if not len(part):
        raise InputError(f"the {name} part of `{splits.name}` must hold examples, but is empty")
    return part


def draw_subset(
    part: DataPart | LazyPart,
    limit: int,
    *,
    seed: int,
    name: str = "subset",
    max_entries: int = 64_000_000,
) -> tuple[Tensor, Tensor]:
    """At most so many examples of a part, at random; of large inputs fewer. Only those are read.

    Args:
        part: Part of a data set, in memory or on disk.
        limit: Examples wanted, at least 1; a smaller part is taken whole and in order.
        seed: Decides which.
        name: Separates draws of one seed.
        max_entries: Numbers that all inputs together may hold: bounds memory.

    Returns:
        Inputs (n, *shape) and class indices (n,).

    Raises:
        InputError: If the part is empty.
    """
    if not len(part):
        raise InputError("expected a part of a data set with examples, but it is empty")
    affordable = min(limit, max(1, max_entries // part[0][0].numel()))
    return part[choose_rows(len(part), affordable, seed=seed, name=name)]


def choose_rows(num: int, limit: int, *, seed: int, name: str) -> Tensor:
    """Indices of at most so many of `num` rows, at random; all of them in order if they fit.

    Args:
        num: Rows there are.
        limit: Rows wanted, at least 1.
        seed: Decides which.
        name: Separates draws of one seed.

    Returns:
        Distinct indices, shape (min(num, limit),).
    """
    if limit < 1:
        raise InputError(f"`limit` must be at least 1, but got {limit}")
    if num <= limit:
        return torch.arange(num)
    return torch.randperm(num, generator=named_generator(seed, "rows", name))[:limit]
