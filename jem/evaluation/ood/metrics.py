"""How well scores tell foreign inputs from familiar ones: figures, each with its interval."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from jem.errors import InputError
from jem.evaluation.ood.figures import Figures, Floats, figures_of, tally_of
from jem.evaluation.ood.intervals import bootstrap_figures, figure_intervals
from jem.evaluation.statistics import Interval, check_confidence

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["Figures", "OODMetrics", "ood_metrics"]


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


def ood_metrics(
    scores_in: Tensor | ArrayLike,
    scores_out: Tensor | ArrayLike,
    *,
    confidence: float = 0.95,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> OODMetrics:
    """Compare the scores of in-distribution and out-of-distribution (OOD) inputs.

    Intervals: AUROC by DeLong's variance, average precision by the bootstrap's, both on the logit
    scale. The two FPR95 by the percentile bootstrap, widened to Wilson's interval at the threshold
    found. Detection error by Wilson's intervals of its two shares, combined and raised by what the
    choice of its threshold gains on replicates. None shrinks to a point where the sets separate
    perfectly. All are approximate: with fewer than fifty scores on a side those of FPR95 are
    somewhat short.

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
    tally, places_in, places_out = tally_of(values_in, values_out)
    figures = figures_of(tally)
    drawn = bootstrap_figures(places_in, places_out, len(tally.count_in), num_bootstrap, seed)
    return OODMetrics(
        **figures._asdict(),
        num_in=len(values_in),
        num_out=len(values_out),
        intervals=figure_intervals(tally, figures, drawn, confidence),
        confidence=float(confidence),
    )


def _check_options(confidence: float, num_bootstrap: int, seed: int) -> None:
    check_confidence(confidence)
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
