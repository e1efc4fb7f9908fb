"""Figures of an OOD detector as functions of counts.

Every figure is a function of how many inputs of each kind hold each distinct score. So equal
scores are treated rightly by construction, infinite ones are only the outermost, and a bootstrap
replicate needs no sorting.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

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


class Tally(NamedTuple):
    """How many inputs of each kind hold each distinct score, the highest score first."""

    count_in: Counts  # (U,)
    count_out: Counts  # (U,)


def tally_of(values_in: Floats, values_out: Floats) -> tuple[Tally, Counts, Counts]:
    """Count scores by distinct value, and say at which of them each input stands."""
    distinct, places = np.unique(np.concatenate([values_in, values_out]), return_inverse=True)
    places = len(distinct) - 1 - places  # from the highest to the lowest
    places_in, places_out = places[: len(values_in)], places[len(values_in) :]
    return count(places_in, places_out, len(distinct)), places_in, places_out


def count(places_in: Counts, places_out: Counts, size: int) -> Tally:
    """Count inputs by the place of their score among `size` distinct ones."""
    return Tally(np.bincount(places_in, minlength=size), np.bincount(places_out, minlength=size))


def figures_of(tally: Tally) -> Figures:
    """Compute every figure from one tally."""
    high_first = tally.count_in, tally.count_out
    low_first = tally.count_out[::-1], tally.count_in[::-1]
    return Figures(
        auroc=auroc(tally),
        aupr_in=_average_precision(*high_first),
        aupr_out=_average_precision(*low_first),
        fpr95_in_positive=_fpr95(*high_first),
        fpr95_out_positive=_fpr95(*low_first),
        detection_error=sum(error_shares(tally)) / 2,
    )


def placements(tally: Tally) -> tuple[Floats, Floats]:
    """Share of OOD below, and of in-distribution above, each distinct score; equals count half."""
    count_in, count_out = tally
    below = count_out.sum() - np.cumsum(count_out) + count_out / 2
    above = np.cumsum(count_in) - count_in / 2
    return below / count_out.sum(), above / count_in.sum()


def auroc(tally: Tally) -> float:
    """P(score_in > score_out) + P(equal) / 2."""
    below, _ = placements(tally)
    return dot(tally.count_in, below) / int(tally.count_in.sum())


def _average_precision(count_positive: Counts, count_negative: Counts) -> float:
    """Sum the precision at each threshold, weighted by the recall gained there.

    The most positive scores come first.
    """
    found = np.cumsum(count_positive)
    accepted = found + np.cumsum(count_negative)
    return float(dot(count_positive, found / np.maximum(accepted, 1)) / found[-1])


def _fpr95(count_positive: Counts, count_negative: Counts) -> float:
    """Share of negatives accepted by the strictest threshold that accepts 95 % of positives."""
    found = np.cumsum(count_positive)
    wanted = -(-19 * int(found[-1]) // 20)  # ceil(0.95 M) without rounding
    place = int(np.searchsorted(found, wanted))
    return float(count_negative[: place + 1].sum() / count_negative.sum())


def error_shares(tally: Tally) -> tuple[float, float]:
    """Shares of in-distribution flagged and of OOD accepted, where their mean is smallest."""
    flagged = np.append(1.0, 1 - np.cumsum(tally.count_in) / tally.count_in.sum())
    accepted = np.append(0.0, np.cumsum(tally.count_out) / tally.count_out.sum())
    best = int((flagged + accepted).argmin())
    return float(flagged[best]), float(accepted[best])


def dot(counts: Counts, values: Floats) -> float:
    """Sum of values, each counted so often."""
    return float((counts * values).sum())  # a BLAS product is slower here when cores are busy
