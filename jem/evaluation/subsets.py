"""A few examples of many, chosen at random."""

from __future__ import annotations

import torch
from torch import Tensor

from jem.data.splits import DataPart, LazyPart
from jem.randomness import named_generator


def choose_rows(num: int, limit: int, *, seed: int, name: str) -> Tensor:
    """Indices of at most `limit` of `num` rows, at random; all of them in order if they fit.

    Args:
        num: Rows there are.
        limit: Rows wanted.
        seed: Decides which.
        name: Separates draws of one seed.

    Returns:
        Distinct indices, shape (min(num, limit),).
    """
    if num <= limit:
        return torch.arange(num)
    return torch.randperm(num, generator=named_generator(seed, "rows", name))[:limit]


def draw_subset(
    part: DataPart | LazyPart,
    limit: int,
    *,
    seed: int,
    name: str,
    max_entries: int = 64_000_000,
) -> tuple[Tensor, Tensor]:
    """Draw at most `limit` examples of a part, at random. Of data on disk only those are read.

    Args:
        part: Part of a data set, in memory or on disk, not empty.
        limit: Examples wanted; a smaller part is taken whole and in order.
        seed: Decides which.
        name: Separates draws of one seed.
        max_entries: Numbers that all inputs together may hold: bounds memory.

    Returns:
        Inputs (n, *shape) and class indices (n,).
    """
    affordable = min(limit, max(1, max_entries // part[0][0].numel()))
    return part[choose_rows(len(part), affordable, seed=seed, name=name)]
