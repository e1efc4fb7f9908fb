"""Which columns of a table make a row foreign."""

import os

import torch
from torch import Tensor

from jem.evaluation.ood.detector import OODDetector
from jem.model import JEM

MOST_NAMED = 3
"""Columns that are named for a row."""
MOST_COLUMNS = 100
"""Columns of a table that can be named: the numbers of an embedding say nothing one by one."""
AT_ONCE = 2**14
"""Changed rows that are scored at once: bounds memory."""


def foreign_columns(detector: OODDetector, x: Tensor) -> list[tuple[str, ...]]:
    """Name the columns that make rows foreign, the worst first.

    A column is put back to a typical value, the mean of the nearest class or what products of
    columns ask for (`Products`), and the one that raises the score most is named; then the next
    one, until the row would pass, or three are named. Parts of a one-hot column are one column.

    Args:
        detector: A fitted detector.
        x: Rows, shape (B, D), in the network's units.

    Returns:
        Names for each row. None for rows that pass, for images, and for more than 100 columns.
    """
    named: list[tuple[str, ...]] = [()] * len(x)
    base = detector.model.base
    if base is None:
        return named
    groups = base.groups.cpu()
    names = column_names(detector.model, groups)
    if len(names) > MOST_COLUMNS:
        return named
    parts = groups == torch.arange(len(names))[:, None]  # (G, D)
    for rows in detector.is_ood(x).nonzero()[:, 0].cpu().split(max(1, AT_ONCE // len(names))):
        current = x[rows]
        typical = base.nearest_mean(current)
        foreign = torch.ones(len(rows), dtype=torch.bool)
        for _ in range(MOST_NAMED):
            values = [typical]
            if base.products is not None:
                values.append(base.products.repaired(current).clamp(base.low, base.high))
            changed = torch.stack(values, dim=1)[:, :, None].where(
                parts.to(x.device), current[:, None, None]
            )
            changed = changed.flatten(1, 2)  # (rows, each value of each column, D)
            scores = detector.score(changed.flatten(0, 1)).view(changed.shape[:2])
            best = scores.max(dim=1)
            for i in foreign.nonzero()[:, 0].tolist():
                found = (*named[int(rows[i])], names[int(best.indices[i]) % len(names)])
                named[int(rows[i])] = tuple(dict.fromkeys(found))
            current = changed[torch.arange(len(rows)), best.indices]
            foreign &= detector.verdict(best.values).is_ood.cpu()
    return named


def column_names(model: JEM, groups: Tensor) -> list[str]:
    """Names of the user's columns; x0, x1 and so on where the table has none.

    Args:
        model: A model of a table.
        groups: Which column each component is part of, shape (D,). One of several parts is called
            by what the names of its parts begin with.
    """
    given = model.columns
    parts = given or [f"x{index}" for index in range(len(groups))]
    names = []
    for group in range(int(groups[-1]) + 1):
        own = list(dict.fromkeys(parts[int(index)] for index in (groups == group).nonzero()))
        shared = os.path.commonprefix(own).rstrip(" _=:.-") if given else ""  # noqa: RUF071
        names.append(own[0] if len(own) == 1 else shared or f"{own[0]} to {own[-1]}")
    return names
