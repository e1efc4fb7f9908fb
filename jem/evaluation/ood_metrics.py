"""How well scores tell foreign inputs from familiar ones: figures, each with its interval.

Every figure is a function of how many inputs of each kind hold each distinct score. So equal
scores are treated rightly by construction, infinite ones are only the outermost, and a bootstrap
replicate needs no sorting.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jem.errors import InputError
from jem.evaluation.intervals import Interval, percentile_interval, wilson_interval

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


class Figures(NamedTuple):
    """The figures alone; `OODMetrics` says what each means."""

    auroc: float
    aupr_in: float
    aupr_out: float
    fpr95_in_positive: float
    fpr95_out_positive: float
    detection_error: float


@dataclass(frozen=True)
class OODMetrics:
    """Figures of one detector on one pair of sets, scored higher for in-distribution.

    The sizes of the sets belong to the figures: the areas under precision-recall curves depend on
    their ratio. The two FPR95 are different numbers: papers print either without naming it.

    Attributes:
        auroc: P(score_in > score_out) + P(equal) / 2, in [0, 1]; 0.5 is chance.
        aupr_in: Average precision with in-distribution as the positive class, in (0, 1]; chance is
            num_in / (num_in + num_out).
        aupr_out: Average precision with OOD as the positive class, in (0, 1].
        fpr95_in_positive: Share of OOD accepted by the strictest threshold that accepts at least
            95 % of in-distribution, in [0, 1]; low is good.
        fpr95_out_positive: Share of in-distribution flagged by the strictest threshold that flags
            at least 95 % of OOD, in [0, 1]; low is good.
        detection_error: Smallest mean of the two error rates (OOD accepted, in-distribution
            flagged) over all thresholds, in [0, 0.5]. The threshold is chosen on the same data:
            optimistic in small sets.
        num_in: Number of in-distribution scores.
        num_out: Number of OOD scores.
        intervals: Figure's name -> (low, high).
        confidence: Nominal coverage of each interval.
    """

    auroc: float
    aupr_in: float
    aupr_out: float
    fpr95_in_positive: float
    fpr95_out_positive: float
    detection_error: float
    num_in: int
    num_out: int
    intervals: dict[str, Interval]
    confidence: float

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and dicts, as JSON takes them."""
        intervals = {name: list(interval) for name, interval in self.intervals.items()}
        return {**asdict(self), "intervals": intervals}


class _Tally(NamedTuple):
    """How many inputs of each kind hold each distinct score, the highest score first."""

    count_in: Counts  # (U,)
    count_out: Counts  # (U,)


def ood_metrics(
    scores_in: Tensor | ArrayLike,
    scores_out: Tensor | ArrayLike,
    *,
    confidence: float = 0.95,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> OODMetrics:
    """Compare the scores of in-distribution and out-of-distribution (OOD) inputs.

    Intervals: AUROC by DeLong's variance on the logit scale. The others by the percentile
    bootstrap, each set resampled for itself; those of the two FPR95 are widened to Wilson's
    interval at the threshold found, so that a share of 0 is not reported as certain. All are
    approximate, and those of average precision and detection error shrink to a point where the
    sets separate perfectly.

    Args:
        scores_in: Scores of in-distribution inputs, shape (M,), M >= 1; higher = more
            in-distribution. May be infinite.
        scores_out: Scores of OOD inputs, shape (N,), N >= 1, same sign.
        confidence: Nominal coverage of the intervals, in (0, 1).
        num_bootstrap: Bootstrap replicates, >= 1.
        seed: Seed of the bootstrap, >= 0; the global random state is left alone.

    Returns:
        Figures, set sizes and intervals.

    Raises:
        InputError: If a set is empty, not one-dimensional or holds NaN.

    References:
        DeLong, DeLong and Clarke-Pearson (1988), Biometrics 44. Sun and Xu (2014), IEEE Signal
        Processing Letters 21, for its O(n log n) form. Hendrycks and Gimpel (2017),
        arXiv:1610.02136. Liang et al. (2018), arXiv:1706.02690.

    Example:
        >>> metrics = ood_metrics([3.0, 2.0, 2.0, 1.0], [2.0, 0.0], num_bootstrap=10)
        >>> metrics.auroc, metrics.fpr95_in_positive, metrics.fpr95_out_positive
        (0.75, 0.5, 0.75)
        >>> metrics.num_in, metrics.num_out
        (4, 2)
    """
    _check_options(confidence, num_bootstrap, seed)
    values_in, values_out = _scores(scores_in, "scores_in"), _scores(scores_out, "scores_out")
    tally, places_in, places_out = _tally(values_in, values_out)
    figures = _figures(tally)
    intervals = _bootstrap(
        places_in, places_out, len(tally.count_in), confidence, num_bootstrap, seed
    )
    intervals["auroc"] = _auroc_interval(tally, confidence)
    for name, size in (
        ("fpr95_in_positive", len(values_out)),
        ("fpr95_out_positive", len(values_in)),
    ):
        low, high = wilson_interval(getattr(figures, name) * size, size, confidence)
        intervals[name] = _hull(intervals[name], Interval(float(low), float(high)))
    return OODMetrics(
        **figures._asdict(),
        num_in=len(values_in),
        num_out=len(values_out),
        intervals=intervals,
        confidence=float(confidence),
    )


def _check_options(confidence: float, num_bootstrap: int, seed: int) -> None:
    if not 0 < confidence < 1:
        raise InputError(f"`confidence` must lie in (0, 1), but got {confidence}")
    if num_bootstrap < 1:
        raise InputError(f"`num_bootstrap` must be at least 1, but got {num_bootstrap}")
    if seed < 0:
        raise InputError(f"`seed` must be at least 0, but got {seed}")


def _scores(scores: Tensor | ArrayLike, name: str) -> Floats:
    """Convert to float64, or say what is wrong."""
    if isinstance(scores, Tensor):
        scores = scores.detach().to("cpu", torch.float64).numpy()
    try:
        values = np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"`{name}` must hold real numbers: {error}") from error
    if values.ndim != 1 or not len(values):
        raise InputError(f"`{name}` must be of shape (N,), N >= 1, but got {values.shape}")
    if np.isnan(values).any():
        raise InputError(f"`{name}` holds NaN, first at position {int(np.isnan(values).argmax())}")
    return values


def _tally(values_in: Floats, values_out: Floats) -> tuple[_Tally, Counts, Counts]:
    """Count scores by distinct value, and say at which of them each input stands."""
    distinct, places = np.unique(np.concatenate([values_in, values_out]), return_inverse=True)
    places = len(distinct) - 1 - places  # from the highest to the lowest
    places_in, places_out = places[: len(values_in)], places[len(values_in) :]
    return _count(places_in, places_out, len(distinct)), places_in, places_out


def _count(places_in: Counts, places_out: Counts, size: int) -> _Tally:
    return _Tally(np.bincount(places_in, minlength=size), np.bincount(places_out, minlength=size))


def _figures(tally: _Tally) -> Figures:
    """Compute every figure from one tally."""
    high_first = tally.count_in, tally.count_out
    low_first = tally.count_out[::-1], tally.count_in[::-1]
    return Figures(
        auroc=_auroc(tally),
        aupr_in=_average_precision(*high_first),
        aupr_out=_average_precision(*low_first),
        fpr95_in_positive=_fpr95(*high_first),
        fpr95_out_positive=_fpr95(*low_first),
        detection_error=_detection_error(tally),
    )


def _placements(tally: _Tally) -> tuple[Floats, Floats]:
    """Share of OOD below, and of in-distribution above, each distinct score; equals count half."""
    count_in, count_out = tally
    below = count_out.sum() - np.cumsum(count_out) + count_out / 2
    above = np.cumsum(count_in) - count_in / 2
    return below / count_out.sum(), above / count_in.sum()


def _auroc(tally: _Tally) -> float:
    below, _ = _placements(tally)
    return _dot(tally.count_in, below) / int(tally.count_in.sum())


def _average_precision(count_positive: Counts, count_negative: Counts) -> float:
    """Sum the precision at each threshold, weighted by the recall gained there.

    The most positive scores come first.
    """
    found = np.cumsum(count_positive)
    accepted = found + np.cumsum(count_negative)
    return float(_dot(count_positive, found / np.maximum(accepted, 1)) / found[-1])


def _fpr95(count_positive: Counts, count_negative: Counts) -> float:
    """Share of negatives accepted by the strictest threshold that accepts 95 % of positives."""
    found = np.cumsum(count_positive)
    wanted = -(-19 * int(found[-1]) // 20)  # ceil(0.95 M) without rounding
    place = int(np.searchsorted(found, wanted))
    return float(count_negative[: place + 1].sum() / count_negative.sum())


def _detection_error(tally: _Tally) -> float:
    flagged = 1 - np.cumsum(tally.count_in) / tally.count_in.sum()
    accepted = np.cumsum(tally.count_out) / tally.count_out.sum()
    return float(min(1.0, (flagged + accepted).min()) / 2)


def _auroc_interval(tally: _Tally, confidence: float) -> Interval:
    r"""DeLong's interval on the logit scale.

    .. math:: \mathrm{var} = S_{10}/M + S_{01}/N, \qquad
              \mathrm{logit}\,A \pm z \sqrt{\mathrm{var}} / (A (1 - A))

    Where the sets separate perfectly the variance is 0. Then min(M, N) disjoint pairs were all in
    order, each with probability A: the exact binomial bound (alpha/2)^(1/min(M, N)) holds. One
    input alone in its set has no variance to estimate: (0, 1), unless the sets separate.
    """
    size_in, size_out = int(tally.count_in.sum()), int(tally.count_out.sum())
    smaller = min(size_in, size_out)
    auroc = _auroc(tally)
    exact = ((1 - confidence) / 2) ** (1 / smaller)
    if auroc in (0.0, 1.0):
        return Interval(exact, 1.0) if auroc else Interval(0.0, 1 - exact)
    if smaller == 1:
        return Interval(0.0, 1.0)
    below, above = _placements(tally)
    spread_in = _dot(tally.count_in, (below - auroc) ** 2) / (size_in - 1)
    spread_out = _dot(tally.count_out, (above - auroc) ** 2) / (size_out - 1)
    error = math.sqrt(spread_in / size_in + spread_out / size_out) / (auroc * (1 - auroc))
    logit, z = math.log(auroc / (1 - auroc)), _quantile(confidence)
    low, high = (logit + side * z * error for side in (-1, 1))
    return Interval(_sigmoid(low), _sigmoid(high))


def _dot(counts: Counts, values: Floats) -> float:
    return float((counts * values).sum())  # a BLAS product is slower here when cores are busy


def _sigmoid(logit: float) -> float:
    return (1 + math.tanh(logit / 2)) / 2


def _quantile(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _hull(first: Interval, second: Interval) -> Interval:
    return Interval(min(first.low, second.low), max(first.high, second.high))


def _bootstrap(
    places_in: Counts,
    places_out: Counts,
    size: int,
    confidence: float,
    num_bootstrap: int,
    seed: int,
) -> dict[str, Interval]:
    """Percentile intervals of every figure, each set resampled with replacement for itself."""
    rng = np.random.default_rng(seed)
    drawn = np.empty((num_bootstrap, len(Figures._fields)))
    for row in drawn:
        again_in = places_in[rng.integers(len(places_in), size=len(places_in))]
        again_out = places_out[rng.integers(len(places_out), size=len(places_out))]
        row[:] = _figures(_count(again_in, again_out, size))
    return {
        name: percentile_interval(column, confidence)
        for name, column in zip(Figures._fields, drawn.T, strict=True)
    }
