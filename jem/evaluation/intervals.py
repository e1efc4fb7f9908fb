"""How sure a figure measured on a finite sample is."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
BLOCK_ENTRIES = 2_000_000  # of resampling counts held at once


class Interval(NamedTuple):
    """Two-sided confidence interval of a figure."""

    low: float
    high: float


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

    References:
        Wilson (1927), JASA 22. Brown, Cai and DasGupta (2001), Statistical Science 16.

    Example:
        >>> low, high = wilson_interval([10], [10], 0.95)
        >>> low.round(3), high
        (array([0.722]), array([1.]))
    """
    hit, count = np.asarray(hits, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = hit + z**2 / 2
    spread = z * np.sqrt(hit * (count - hit) / np.maximum(count, 1) + z**2 / 4)
    low, high = (middle - spread) / (count + z**2), (middle + spread) / (count + z**2)
    return np.where(hit == 0, 0.0, low), np.where(hit == count, 1.0, high)


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
    low, high = np.quantile(replicates, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def error_interval(estimate: float, replicates: FloatArray, confidence: float) -> Interval:
    r"""Bootstrap interval of an error >= 0 that sampling noise, and resampling again, inflates.

    .. math:: \hat\theta \pm \max(q_{high} - \hat\theta, \hat\theta - q_{low}), \quad \ge 0

    with q the ends of the percentile interval: the hull of that interval and of its mirror image,
    which undoes the bias. It holds the estimate, which the percentile interval need not, and leans
    to the wide side. A true error near 0 may still lie below it.

    Args:
        estimate: The figure of the sample.
        replicates: That of each replicate, shape (R,).
        confidence: Level in (0, 1) of the percentile interval.

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
    return Interval(max(0.0, estimate - reach), estimate + reach)
