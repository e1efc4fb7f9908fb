"""A figure and how sure it is, in one value, and how it is written down."""

from __future__ import annotations

import dataclasses
import math
from statistics import NormalDist
from typing import Any, NamedTuple

from torch import Tensor

from jem.evaluation.intervals import wilson_interval

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

    Args:
        values: Shape (n,), n >= 1; the error of a single value is NaN.
    """
    values = values.double()
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return normal_estimate(values.mean().item(), error)


def share_estimate(hits: Tensor) -> Estimate:
    """Share of true values among independent ones, with Wilson's interval.

    Args:
        hits: Booleans, shape (n,), n >= 1.

    Returns:
        The share; its standard error is sqrt(p (1 - p) / n), its interval never a point.

    Example:
        >>> import torch
        >>> share = share_estimate(torch.ones(10, dtype=torch.bool))
        >>> share.value, round(share.low, 3), share.high
        (1.0, 0.722, 1.0)
    """
    num, count = len(hits), int(hits.sum())
    low, high = wilson_interval(count, num, CONFIDENCE)
    share = count / num
    return Estimate(share, math.sqrt(share * (1 - share) / num), float(low), float(high))


def plain(value: Any) -> Any:  # noqa: ANN401 - a report holds many kinds of value
    """Turn dataclasses, named tuples and numbers that are not finite into what JSON can hold.

    Args:
        value: A figure, or a dataclass, tuple or dict of such.

    Returns:
        Dicts, lists, numbers, texts and None; NaN and infinities become None.

    Example:
        >>> plain({"frechet": UNKNOWN, "counts": (1, 2)})["counts"]
        [1, 2]
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = (field.name for field in dataclasses.fields(value))
        return {name: plain(getattr(value, name)) for name in names}
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, dict):
        return {name: plain(entry) for name, entry in value.items()}
    if isinstance(value, tuple | list):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
