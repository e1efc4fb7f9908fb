"""Whether inputs look as if they were in other units than the training data."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from jem.data.scaling import Scaling

FACTOR = 4
"""Images whose largest absolute value differs from that of training by more are doubted."""
FEWEST = 10
"""Inputs that tell of their units together: fewer may be dark, or foreign, each for itself."""


def doubt_units(
    raw: npt.NDArray[Any], x: Tensor, scaling: Scaling, domain: tuple[Tensor, Tensor] | None
) -> str | None:
    """Say why a batch looks as if it were in other units, such as 0 to 1 for 0 to 255.

    Images are doubted where the largest absolute value of the batch is above 4 times that of the
    training range, or below a quarter of it. Any of them may be dark: below, it takes 10 images
    that are not all 0, or fractions of at most 1 where training went to 4 or more. Rows of a table
    are doubted where there are 10, and in each more than half of the columns lie outside the
    range of the training data.

    Args:
        raw: Inputs as they came, shape (N, ...).
        x: The same in network units, shape (N, *input_shape).
        scaling: What made them.
        domain: Bounds of the training data in network units, for tables.

    Returns:
        One sentence, or None where nothing is suspicious.
    """
    if scaling.layout == "table":
        return None if domain is None else _doubt_rows(x, domain)
    largest = max(float(raw.max()), -float(raw.min()))
    usual = float((scaling.shift.abs() + scaling.scale).max())
    fractions = largest <= 1 <= usual / FACTOR and bool((raw != np.round(raw)).any())
    dark = 0 < FACTOR * largest < usual and (len(raw) >= FEWEST or fractions)
    if not dark and largest <= FACTOR * usual:
        return None
    return (
        f"Expected images in the units of the training data, whose largest absolute value is "
        f"{usual:.4g}, got {largest:.4g}: check that they are in the same units."
    )


def _doubt_rows(x: Tensor, domain: tuple[Tensor, Tensor]) -> str | None:
    low, high = (bound.to(x.device) for bound in domain)
    outside = ((x < low) | (x > high)).float().mean(dim=1)
    if len(x) < FEWEST or float(outside.min()) <= 0.5:
        return None
    return (
        f"Expected rows in the units of the training data, got {len(x):,} that all lie outside of "
        f"its range in more than half of the columns: check units and order of the columns."
    )
