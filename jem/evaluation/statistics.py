"""How sure a figure measured on a finite sample is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from jem.errors import InputError

FloatArray = npt.NDArray[np.float64]
BLOCK_ENTRIES = 2_000_000  # of resampling counts held at once
BISECTIONS = 50  # leave the end of an interval uncertain by 1e-15


class Interval(NamedTuple):
    """Two-sided confidence interval of a figure."""

    low: float
    high: float


def check_confidence(confidence: float) -> None:
    """Refuse a level that is none.

    Args:
        confidence: Level of an interval.

    Raises:
        InputError: If it does not lie in (0, 1).
    """
    if not 0 < confidence < 1:
        raise InputError(f"`confidence` must lie in (0, 1), but got {confidence}")


def wilson_interval(
    hits: npt.ArrayLike, counts: npt.ArrayLike, confidence: float
) -> tuple[FloatArray, FloatArray]:
    r"""Wilson score interval of a share: the shares that hits out of counts leave plausible.

    .. math:: \frac{h + z^2/2 \pm z \sqrt{h (n - h) / n + z^2 / 4}}{n + z^2}

    Args:
        hits: h, any shape.
        counts: n, of the same shape; 0 gives [0, 1].
        confidence: Level in (0, 1); z is the normal quantile at (1 + level) / 2.

    Returns:
        Lower and upper end, in [0, 1].

    Raises:
        InputError: If hits do not lie between 0 and n, or the level is out of range.

    References:
        Wilson (1927), JASA 22. Brown, Cai and DasGupta (2001), Statistical Science 16.

    Example:
        >>> low, high = wilson_interval([10], [10], 0.95)
        >>> low.round(3), high
        (array([0.722]), array([1.]))
    """
    check_confidence(confidence)
    hit, count = np.asarray(hits, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    if not bool(((hit >= 0) & (hit <= count)).all()):
        raise InputError("`hits` must lie between 0 and `counts`")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = hit + z**2 / 2
    spread = z * np.sqrt(hit * (count - hit) / np.maximum(count, 1) + z**2 / 4)
    low, high = (middle - spread) / (count + z**2), (middle + spread) / (count + z**2)
    return np.where(hit == 0, 0.0, low), np.where(hit == count, 1.0, high)


def paired_interval(gained: int, lost: int, count: int, confidence: float) -> Interval:
    r"""Score interval of the difference of two shares that are measured on the same inputs.

    It holds the differences d that are plausible, those with

    .. math:: |g - l - n d| \le z \sqrt{n \, (2 q_d + d (1 - d))}

    where q_d is the share lost, by maximum likelihood under that d. Where no input tells the two
    apart it is no point, but reaches z^2 / (n + z^2) to both sides.

    Args:
        gained: g, inputs on which the first alone is right.
        lost: l, inputs on which the second alone is right.
        count: n >= 1, inputs in all.
        confidence: Level in (0, 1); z is the normal quantile at (1 + level) / 2.

    Returns:
        Lower and upper end, in [-1, 1].

    Raises:
        InputError: If there is no input, these are no counts of n, or the level is out of range.

    References:
        Tango (1998), Statistics in Medicine 17.

    Example:
        >>> low, high = paired_interval(0, 0, 100, 0.95)
        >>> round(low, 3), round(high, 3)
        (-0.037, 0.037)
    """
    check_confidence(confidence)
    if min(gained, lost) < 0 or count < max(1, gained + lost):
        raise InputError(
            f"expected counts that sum to at most n >= 1, but got {gained} and {lost} of {count}"
        )
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    first, second = gained / count, lost / count
    error = z / math.sqrt(count)
    low, high = _lowest_difference(first, second, error), _lowest_difference(second, first, error)
    return Interval(low, -high)


def _lowest_difference(gained: float, lost: float, error: float) -> float:
    """The lowest difference of shares that is plausible, by bisection below the one found."""
    low, high = -1.0, gained - lost
    for _ in range(BISECTIONS):
        d = (low + high) / 2
        half = gained + lost - (2 - gained + lost) * d
        share_lost = (half + math.sqrt(max(0.0, half**2 + 8 * lost * d * (1 - d)))) / 4
        variance = max(0.0, 2 * share_lost + d * (1 - d))
        if gained - lost - d > error * math.sqrt(variance):
            low = d
        else:
            high = d
    return low


def rows_by_block(num_rows: int, row_size: int) -> Iterator[int]:
    """Split many rows into blocks of at most two million entries, a row at least.

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
    check_confidence(confidence)
    low, high = np.quantile(replicates, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def error_interval(
    estimate: float, replicates: FloatArray, confidence: float, largest: float = math.inf
) -> Interval:
    r"""Bootstrap interval of an error >= 0 that sampling noise, and resampling again, inflates.

    .. math:: \hat\theta \pm \max(q_{high} - \hat\theta, \hat\theta - q_{low}), \quad \ge 0

    with q the ends of the percentile interval: the hull of that interval and of its mirror image,
    which undoes the bias. It holds the estimate, which the percentile interval need not, and leans
    to the wide side. A true error near 0 may still lie below it.

    Args:
        estimate: The figure of the sample.
        replicates: That of each replicate, shape (R,).
        confidence: Level in (0, 1) of the percentile interval.
        largest: What the error cannot exceed; its interval ends there.

    Returns:
        Lower and upper end, in the unit of the figure.

    References:
        Davison and Hinkley (1997), Bootstrap Methods and their Application, section 5.2.

    Example:
        >>> error_interval(30.0, np.arange(101.0), 0.5)
        Interval(low=0.0, high=75.0)
    """
    low, high = percentile_interval(replicates, confidence)
    reach = max(high - estimate, estimate - low)
    return Interval(max(0.0, estimate - reach), min(largest, estimate + reach))
