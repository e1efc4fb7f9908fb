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
    r"""Wilson score interval of a share: which shares would not be surprised by hits out of counts.

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
    rows_at_once = max(1, BLOCK_ENTRIES // num_samples)
    for start in range(0, num_replicates, rows_at_once):
        rows = min(rows_at_once, num_replicates - start)
        drawn = generator.integers(num_samples, size=(rows, num_samples))
        cells = drawn + num_samples * np.arange(rows)[:, None]
        counts = np.bincount(cells.ravel(), minlength=rows * num_samples)
        yield counts.reshape(rows, num_samples).astype(np.float64)


def percentile_interval(replicates: FloatArray, confidence: float) -> Interval:
    """Percentile bootstrap interval: the central part of the replicates.

    A figure that resampling inflates, as it does every calibration error of a well calibrated
    model, has an interval that leans upwards.

    Args:
        replicates: The figure of each replicate, shape (R,).
        confidence: Share of the replicates inside, in (0, 1).

    Returns:
        Lower and upper end, in the unit of the figure.

    Example:
        >>> percentile_interval(np.arange(101.0), 0.9)
        Interval(low=5.0, high=95.0)
    """
    low, high = np.quantile(replicates, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))
