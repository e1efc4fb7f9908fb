"""A figure and how sure it is, in one value, and how it is written down."""

from __future__ import annotations

import dataclasses
import math
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from jem.errors import InputError
from jem.evaluation.statistics import Interval, paired_interval, wilson_interval

CONFIDENCE = 0.95
"""Level of every interval of an `Estimate`."""

Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


class Estimate(NamedTuple):
    """A figure measured on a finite sample; NaN where it cannot be measured."""

    value: float
    std_error: float  # one standard error, in the unit of the figure
    low: float  # lower end of the 95 % interval
    high: float  # upper end


UNKNOWN = Estimate(math.nan, math.nan, math.nan, math.nan)
"""What stands where there is nothing to measure."""


def normal_estimate(value: float, std_error: float) -> Estimate:
    """Attach the interval of the normal approximation, value -+ 1.96 standard errors.

    Args:
        value: The figure.
        std_error: Its standard error.

    Example:
        >>> round(normal_estimate(2.0, 0.5).low, 3)
        1.02
    """
    return Estimate(value, std_error, value - Z * std_error, value + Z * std_error)


def mean_estimate(values: Tensor) -> Estimate:
    """Mean of independent values, with the standard error s / sqrt(n).

    A single value, or values that are all equal, do not say how much others would vary: error and
    interval are then NaN, not 0. Shares and their differences have bounds, and so always an
    interval: see `share_estimate` and `difference_estimate`.

    Args:
        values: Shape (n,), n >= 1.

    Raises:
        InputError: If there is none.

    Example:
        >>> import torch
        >>> mean_estimate(torch.ones(5))
        Estimate(value=1.0, std_error=nan, low=nan, high=nan)
    """
    _refuse_none(values)
    values = values.double()
    varies = bool((values != values[0]).any())
    error = values.std().item() / math.sqrt(len(values)) if varies else math.nan
    return normal_estimate(values.mean().item(), error)


def share_estimate(hits: Tensor) -> Estimate:
    """Share of true values among independent ones, with Wilson's interval.

    Args:
        hits: Booleans, shape (n,), n >= 1.

    Returns:
        The share; its standard error is sqrt(p (1 - p) / n), its interval never a point.

    Raises:
        InputError: If there is none.

    Example:
        >>> import torch
        >>> share = share_estimate(torch.ones(10, dtype=torch.bool))
        >>> share.value, round(share.low, 3), share.high
        (1.0, 0.722, 1.0)
    """
    _refuse_none(hits)
    num, count = len(hits), int(hits.sum())
    low, high = wilson_interval(count, num, CONFIDENCE)
    share = count / num
    return Estimate(share, math.sqrt(share * (1 - share) / num), float(low), float(high))


def difference_estimate(first: Tensor, second: Tensor) -> Estimate:
    """Difference of two shares of true values measured on the same inputs.

    Args:
        first: Booleans, shape (n,), n >= 1.
        second: Booleans of the same inputs.

    Returns:
        Share of the first less that of the second, with its standard error, which is 0 where the
        two agree everywhere, and the interval of `paired_interval`, which is never a point.

    Raises:
        InputError: If there is none, or they are not as many.

    Example:
        >>> import torch
        >>> right = torch.ones(100, dtype=torch.bool)
        >>> same = difference_estimate(right, right)
        >>> same.value, round(same.low, 3), round(same.high, 3)
        (0.0, -0.037, 0.037)
    """
    _refuse_none(first)
    if first.shape != second.shape:
        raise InputError(f"expected as many values twice, but got {len(first)} and {len(second)}")
    num = len(first)
    gained, lost = int((first & ~second).sum()), int((second & ~first).sum())
    value = (gained - lost) / num
    error = math.sqrt(((gained + lost) / num - value**2) / num)
    return Estimate(value, error, *paired_interval(gained, lost, num, CONFIDENCE))


def _refuse_none(values: Tensor) -> None:
    if not len(values):
        raise InputError("expected at least one value to measure, but got none")


def plain(value: Any) -> Any:  # noqa: ANN401 - a report holds many kinds of value
    """Turn dataclasses, arrays, named tuples and numbers that are not finite into what JSON holds.

    Args:
        value: A figure, or a dataclass, tuple, array or dict of such.

    Returns:
        Dicts, lists, numbers, texts and None; NaN and infinities become None.

    Example:
        >>> plain({"frechet": UNKNOWN, "counts": (1, 2)})["counts"]
        [1, 2]
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = (field.name for field in dataclasses.fields(value))
        return {name: plain(getattr(value, name)) for name in names}
    if hasattr(value, "_asdict") and not isinstance(value, Interval):  # which is a list of two
        return plain(value._asdict())
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {name: plain(entry) for name, entry in value.items()}
    if isinstance(value, tuple | list):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
