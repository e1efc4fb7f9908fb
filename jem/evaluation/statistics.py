"""How sure a figure measured on a finite sample is: intervals, and figures that carry theirs."""

import dataclasses
import math
from collections.abc import Collection, Iterator
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from torch import Tensor

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

BLOCK_ENTRIES = 2_000_000
"""Entries of a block of resampling counts: 16 MB."""

CONFIDENCE = 0.95
"""Level of every interval of an `Estimate`."""


class Interval(NamedTuple):
    """Two-sided confidence interval of a figure."""

    low: float
    high: float


class Estimate(NamedTuple):
    """A figure measured on a finite sample; NaN where it cannot be measured."""

    value: float
    std_error: float  # one standard error, in the unit of the figure
    low: float  # lower end of the 95 % interval
    high: float  # upper end


UNKNOWN = Estimate(math.nan, math.nan, math.nan, math.nan)
"""What stands where there is nothing to measure."""


def normal_quantile(confidence: float) -> float:
    """z, such that a standard normal lies in [-z, z] with this probability.

    Example:
        >>> round(normal_quantile(0.95), 3)
        1.96
    """
    return NormalDist().inv_cdf((1 + confidence) / 2)


def wilson_interval(
    hits: npt.ArrayLike, counts: npt.ArrayLike, confidence: float
) -> tuple[FloatArray, FloatArray]:
    r"""Wilson score interval of a share: the shares that hits out of counts leave plausible.

    .. math:: \frac{h + z^2/2 \pm z \sqrt{h (n - h) / n + z^2 / 4}}{n + z^2}

    Args:
        hits: h, any shape, between 0 and n.
        counts: n, of the same shape; 0 gives [0, 1].
        confidence: Level in (0, 1); z is the normal quantile at (1 + level) / 2.

    Returns:
        Lower and upper end, in [0, 1].

    References:
        Wilson (1927), JASA 22. Brown, Cai and DasGupta (2001), Statistical Science 16.

    Example:
        >>> low, high = wilson_interval([10], [10], 0.95)
        >>> low.round(3), high
        (array([0.722]), array([1.]))
    """
    hit, count = np.asarray(hits, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    z = normal_quantile(confidence)
    middle = hit + z**2 / 2
    spread = z * np.sqrt(hit * (count - hit) / np.maximum(count, 1) + z**2 / 4)
    low, high = (middle - spread) / (count + z**2), (middle + spread) / (count + z**2)
    return np.where(hit == 0, 0.0, low), np.where(hit == count, 1.0, high)


def share_interval(hits: float, count: int, confidence: float) -> Interval:
    """Wilson's interval of one share, as an `Interval`."""
    low, high = wilson_interval(hits, count, confidence)
    return Interval(float(low), float(high))


def paired_interval(gained: int, lost: int, count: int, confidence: float) -> Interval:
    r"""Score interval of the difference of two shares that are measured on the same inputs.

    It holds the differences d that are plausible, those with

    .. math:: |g - l - n d| \le z \sqrt{n \, (2 q_d + d (1 - d))}

    where q_d is the share lost, by maximum likelihood under that d. Where the two agree on every
    input the interval is no point, but reaches z^2 / (n + z^2) to both sides.

    Args:
        gained: g, inputs on which only the first is right.
        lost: l, inputs on which only the second is right.
        count: n >= 1, inputs in all.
        confidence: Level in (0, 1); z is the normal quantile at (1 + level) / 2.

    Returns:
        Lower and upper end, in [-1, 1].

    References:
        Tango (1998), Statistics in Medicine 17.

    Example:
        >>> low, high = paired_interval(0, 0, 100, 0.95)
        >>> round(low, 3), round(high, 3)
        (-0.037, 0.037)
    """
    z = normal_quantile(confidence)

    def lowest(gained: float, lost: float) -> float:
        def excess(d: float) -> float:
            half = gained + lost - (2 - gained + lost) * d
            share_lost = (half + math.sqrt(max(0.0, half**2 + 8 * lost * d * (1 - d)))) / 4
            variance = max(0.0, 2 * share_lost + d * (1 - d))
            return gained - lost - d - z * math.sqrt(variance / count)

        # The difference found is a root too where it has no variance: look just below it.
        return float(brentq(excess, -1.0, gained - lost - 1e-9, xtol=1e-12)) if lost < 1 else -1.0

    return Interval(lowest(gained / count, lost / count), -lowest(lost / count, gained / count))


def rows_by_block(num_rows: int, row_size: int) -> Iterator[int]:
    """Split many rows into blocks of at most two million entries, at least one row each.

    Args:
        num_rows: Rows in all.
        row_size: Entries of a row.

    Yields:
        Rows of each block.

    Example:
        >>> list(rows_by_block(5, 1_000_000))
        [2, 2, 1]
    """
    at_once = max(1, BLOCK_ENTRIES // row_size)
    for start in range(0, num_rows, at_once):
        yield min(at_once, num_rows - start)


def resampling_counts(num_samples: int, num_replicates: int, seed: int) -> Iterator[FloatArray]:
    """How often each input occurs in each bootstrap replicate, in blocks that fit in memory.

    Args:
        num_samples: N, inputs drawn with replacement for each replicate.
        num_replicates: R.
        seed: Decides the draws.

    Yields:
        Blocks of shape (rows, N), whose rows sum to N and number R in all.

    Example:
        >>> [block.sum(axis=1) for block in resampling_counts(4, 3, seed=0)]
        [array([4., 4., 4.])]
    """
    generator = np.random.default_rng(seed)
    for rows in rows_by_block(num_replicates, num_samples):
        drawn = generator.integers(num_samples, size=(rows, num_samples))
        cells = drawn + num_samples * np.arange(rows)[:, None]
        counts = np.bincount(cells.ravel(), minlength=rows * num_samples)
        yield counts.reshape(rows, num_samples).astype(np.float64)


def percentile_interval(replicates: FloatArray, confidence: float) -> Interval:
    """Percentile bootstrap interval: the central part of the replicates.

    Args:
        replicates: The figure of each replicate, shape (R,).
        confidence: Share of the replicates inside, in (0, 1).

    Returns:
        Lower and upper end, in the unit of the figure.

    Example:
        >>> percentile_interval(np.arange(101.0), 0.5)
        Interval(low=25.0, high=75.0)
    """
    low, high = np.quantile(replicates, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def error_interval(estimate: float, replicates: FloatArray, confidence: float) -> Interval:
    r"""Bootstrap interval of an error in [0, 1] that noise, and resampling again, inflates.

    .. math:: \hat\theta \pm \max(q_{high} - \hat\theta, \hat\theta - q_{low})

    with q the ends of the percentile interval: the hull of that interval and of its mirror image,
    which undoes the bias. It holds the estimate, which the percentile interval need not, and leans
    to the wide side. A true error near 0 may still lie below it.

    Args:
        estimate: The figure of the sample.
        replicates: That of each replicate, shape (R,).
        confidence: Level in (0, 1) of the percentile interval.

    Returns:
        Lower and upper end, in [0, 1].

    References:
        Davison and Hinkley (1997), Bootstrap Methods and their Application, section 5.2.

    Example:
        >>> error_interval(0.3, np.linspace(0, 1, 101), 0.5)
        Interval(low=0.0, high=0.75)
    """
    low, high = percentile_interval(replicates, confidence)
    reach = max(high - estimate, estimate - low)
    return Interval(max(0.0, estimate - reach), min(1.0, estimate + reach))


def smallest_calibration(share: float) -> int:
    """How many calibration inputs a conformal threshold needs to promise a share in (0, 1).

    Example:
        >>> smallest_calibration(0.95), smallest_calibration(0.99)
        (19, 99)
    """
    # 1 - 0.9 is a little less than a tenth in binary: the slack keeps 1 / (1 - 0.9) at 10.
    return max(1, math.ceil((1 - 1e-9) / (1 - share)) - 1)


def largest_acceptance_rate(num_calibration: int, wanted: float = 0.95) -> float:
    """The wanted share, or n / (n + 1) where n >= 1 calibration inputs can promise no more.

    Example:
        >>> largest_acceptance_rate(100), largest_acceptance_rate(9)
        (0.95, 0.9)
    """
    enough = num_calibration >= smallest_calibration(wanted)
    return wanted if enough else 1 - 1 / (num_calibration + 1)


def normal_estimate(value: float, std_error: float) -> Estimate:
    """Attach the interval of the normal approximation, value -+ 1.96 standard errors.

    Args:
        value: The figure.
        std_error: Its standard error.

    Example:
        >>> round(normal_estimate(2.0, 0.5).low, 3)
        1.02
    """
    reach = normal_quantile(CONFIDENCE) * std_error
    return Estimate(value, std_error, value - reach, value + reach)


def mean_estimate(values: Tensor) -> Estimate:
    """Mean of independent values, with the standard error s / sqrt(n).

    A single value, or values that are all equal, do not say how much others would vary: error and
    interval are then NaN, not 0. Shares and their differences have bounds, and so always an
    interval: see `share_estimate` and `difference_estimate`.

    Args:
        values: Shape (n,), n >= 1.

    Example:
        >>> import torch
        >>> mean_estimate(torch.ones(5))
        Estimate(value=1.0, std_error=nan, low=nan, high=nan)
    """
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

    Example:
        >>> import torch
        >>> share = share_estimate(torch.ones(10, dtype=torch.bool))
        >>> share.value, round(share.low, 3), share.high
        (1.0, 0.722, 1.0)
    """
    num, count = len(hits), int(hits.sum())
    share, interval = count / num, share_interval(count, num, CONFIDENCE)
    return Estimate(share, math.sqrt(share * (1 - share) / num), *interval)


def difference_estimate(first: Tensor, second: Tensor) -> Estimate:
    """Difference of two shares of true values measured on the same inputs.

    Args:
        first: Booleans, shape (n,), n >= 1.
        second: Booleans of the same inputs.

    Returns:
        Share of the first less that of the second, with its standard error, which is 0 where the
        two agree everywhere, and the interval of `paired_interval`, which is never a point.

    Example:
        >>> import torch
        >>> right = torch.ones(100, dtype=torch.bool)
        >>> same = difference_estimate(right, right)
        >>> same.value, round(same.low, 3), round(same.high, 3)
        (0.0, -0.037, 0.037)
    """
    num = len(first)
    gained, lost = int((first & ~second).sum()), int((second & ~first).sum())
    value = (gained - lost) / num
    error = math.sqrt(((gained + lost) / num - value**2) / num)
    return Estimate(value, error, *paired_interval(gained, lost, num, CONFIDENCE))


def estimate_of(found: Any, name: str) -> Estimate:  # noqa: ANN401 - any report will do
    """A figure of a report with its interval; NaN for what is not known.

    Args:
        found: A report with a figure of that name, and `intervals` by name.
        name: Of the figure.
    """
    value: float = getattr(found, name)
    low, high = found.intervals.get(name, (math.nan, math.nan))
    return Estimate(value, math.nan, low, high)


def plain(value: Any, leave_out: Collection[str] = ()) -> Any:  # noqa: ANN401 - of many kinds
    """Turn dataclasses, arrays, named tuples and numbers that are not finite into what JSON holds.

    Args:
        value: A figure, or a dataclass, tuple, array or dict of such.
        leave_out: Names of fields of dataclasses to leave out, as tensors and None are.

    Returns:
        Dicts, lists, numbers, texts and None; NaN and infinities become None.

    Example:
        >>> plain({"frechet": UNKNOWN, "counts": (1, 2)})["counts"]
        [1, 2]
    """
    if dataclasses.is_dataclass(value):
        named = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {
            name: plain(entry, leave_out)
            for name, entry in named.items()
            if name not in leave_out and entry is not None and not isinstance(entry, Tensor)
        }
    if hasattr(value, "_asdict") and not isinstance(value, Interval):  # which is a list of two
        value = value._asdict()
    if isinstance(value, dict):
        return {name: plain(entry, leave_out) for name, entry in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, tuple | list):
        return [plain(entry, leave_out) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
