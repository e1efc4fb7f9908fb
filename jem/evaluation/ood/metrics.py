"""How well a score separates OOD inputs from in-distribution ones: figures with intervals."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit
from torch import Tensor

from jem.checks import as_tensor, check_integer, check_number, refuse
from jem.evaluation.statistics import (
    FloatArray,
    Interval,
    normal_quantile,
    percentile_interval,
    share_interval,
)

NUM_BOOTSTRAP = 1000


@dataclass(frozen=True)
class OODMetrics:
    """Figures of one score on one pair of sets, higher for in-distribution.

    The two FPR95 are different numbers: papers print either without naming it.

    Attributes:
        auroc: P(score_in > score_out) + P(equal) / 2, in [0, 1]; 0.5 is chance.
        fpr95_in_positive: Share of OOD accepted by the strictest threshold that accepts at least
            95 % of in-distribution, in [0, 1]; low is good.
        fpr95_out_positive: Share of in-distribution flagged by the strictest threshold that flags
            at least 95 % of OOD, in [0, 1]; low is good.
        num_in: Number of in-distribution scores.
        num_out: Number of OOD scores.
        intervals: Figure's name -> (low, high).
        confidence: Nominal coverage of each interval.
    """

    auroc: float
    fpr95_in_positive: float
    fpr95_out_positive: float
    num_in: int
    num_out: int
    intervals: dict[str, Interval]
    confidence: float


def ood_metrics(
    scores_in: Tensor | ArrayLike,
    scores_out: Tensor | ArrayLike,
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> OODMetrics:
    """Compare the scores of in-distribution and out-of-distribution (OOD) inputs.

    The interval of the AUROC is DeLong's, on the logit scale; those of the FPR95 are percentiles
    of the stratified bootstrap, widened to Wilson's interval at the threshold found. None shrinks
    to a point where the sets separate perfectly. All are approximate: with fewer than fifty scores
    on a side those of FPR95 are somewhat short.

    Args:
        scores_in: Scores of in-distribution inputs, shape (M,), M >= 1; higher = more
            in-distribution. May be infinite.
        scores_out: Scores of OOD inputs, shape (N,), N >= 1, same sign.
        confidence: Nominal coverage of the intervals, in (0, 1).
        seed: Decides the bootstrap; the global random state is left alone.

    Returns:
        Figures, set sizes and intervals.

    Raises:
        InputError: If a set is empty, not one-dimensional or holds NaN.

    References:
        DeLong, DeLong and Clarke-Pearson (1988), Biometrics 44. Hendrycks and Gimpel (2017),
        arXiv:1610.02136. Liang et al. (2018), arXiv:1706.02690.

    Example:
        >>> metrics = ood_metrics([3.0, 2.0, 2.0, 1.0], [2.0, 0.0])
        >>> metrics.auroc, metrics.fpr95_in_positive, metrics.fpr95_out_positive
        (0.75, 0.5, 0.75)
        >>> metrics.num_in, metrics.num_out
        (4, 2)
    """
    check_number("confidence", confidence, "(0, 1)")
    check_integer("seed", seed, 0)
    inside, outside = _sorted("scores_in", scores_in), _sorted("scores_out", scores_out)
    rng = np.random.default_rng(seed)
    found = {
        "auroc": _auroc(inside, outside, confidence),
        "fpr95_in_positive": _fpr95(inside, outside, confidence, rng),
        "fpr95_out_positive": _fpr95(-outside[::-1], -inside[::-1], confidence, rng),
    }
    return OODMetrics(
        **{name: figure for name, (figure, _) in found.items()},
        num_in=len(inside),
        num_out=len(outside),
        intervals={name: interval for name, (_, interval) in found.items()},
        confidence=confidence,
    )


def _sorted(name: str, scores: Tensor | ArrayLike) -> FloatArray:
    values = as_tensor(name, scores).cpu().double().numpy()
    if values.ndim != 1 or not len(values):
        refuse(name, "have shape (N,) with N >= 1", values.shape)
    if np.isnan(values).any():
        refuse(name, "hold numbers", f"NaN at position {int(np.isnan(values).argmax())}")
    return np.sort(values)


def _auroc(inside: FloatArray, outside: FloatArray, confidence: float) -> tuple[float, Interval]:
    """Area under the ROC curve with DeLong's interval on the logit scale.

    Its variance is that of the placements: the share of the other set that each score beats. Where
    none varies, or a set has one input, the interval is Wilson's of as many pairs as can be made
    without using an input twice.
    """
    below, above = _placements(inside, outside), 1 - _placements(outside, inside)
    area, smaller = float(below.mean()), min(len(inside), len(outside))
    variance = 0.0
    if smaller > 1:
        variance = float(below.var(ddof=1) / len(inside) + above.var(ddof=1) / len(outside))
    if variance == 0:
        return area, share_interval(area * smaller, smaller, confidence)
    reach = normal_quantile(confidence) * math.sqrt(variance) / (area * (1 - area))
    return area, Interval(float(expit(logit(area) - reach)), float(expit(logit(area) + reach)))


def _placements(scores: FloatArray, others: FloatArray) -> FloatArray:
    """Share of the other, sorted scores that lie below each score; equal ones count half."""
    below, up_to = (others.searchsorted(scores, side) for side in ("left", "right"))
    return np.asarray((below + up_to) / (2 * len(others)))


def _fpr95(
    positive: FloatArray, negative: FloatArray, confidence: float, rng: np.random.Generator
) -> tuple[float, Interval]:
    """Share of negatives accepted by the strictest threshold that accepts 95 % of positives.

    Both are sorted. The bootstrap needs no resampling: the rank of a replicate's threshold among
    the M positives is that of an order statistic of M uniform draws, which has a Beta law, and the
    count of negatives at or above it is binomial.
    """
    size, num_negative = len(positive), len(negative)
    rank = size // 20  # how many positives may lie below the threshold

    def accepted(ranks: int | np.ndarray[Any, Any]) -> FloatArray:
        below = negative.searchsorted(positive[ranks], "left")
        return np.asarray((num_negative - below) / num_negative)

    share = float(accepted(rank))
    ranks = (size * rng.beta(rank + 1, size - rank, NUM_BOOTSTRAP)).astype(int).clip(max=size - 1)
    replicates = rng.binomial(num_negative, accepted(ranks)) / num_negative
    drawn = percentile_interval(replicates, confidence)
    wilson = share_interval(share * num_negative, num_negative, confidence)
    return share, Interval(min(wilson.low, drawn.low), max(wilson.high, drawn.high))
