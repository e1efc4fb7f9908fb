"""How sure the figures of an OOD detector are."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from jem.evaluation.ood.figures import (
    Counts,
    Figures,
    Floats,
    Tally,
    auroc,
    count,
    dot,
    error_shares,
    figures_of,
    placements,
)
from jem.evaluation.statistics import Interval, percentile_interval, wilson_interval


def figure_intervals(
    tally: Tally, figures: Figures, replicates: dict[str, Floats], confidence: float
) -> dict[str, Interval]:
    """Interval of every figure; `ood_metrics` says how each is made.

    Args:
        tally: The scores of both sets.
        figures: Their figures.
        replicates: Name -> figure of bootstrap replicates, shape (R,).
        confidence: Level in (0, 1).
    """
    size_in, size_out = int(tally.count_in.sum()), int(tally.count_out.sum())
    intervals = {
        "auroc": auroc_interval(tally, confidence),
        "detection_error": error_interval(tally, replicates["detection_error"], confidence),
    }
    for side, positive, negative in (("in", size_in, size_out), ("out", size_out, size_in)):
        name = f"aupr_{side}"
        found, drawn = getattr(figures, name), replicates[name]
        intervals[name] = precision_interval(found, drawn, positive, negative, confidence)
        name = f"fpr95_{side}_positive"
        found, drawn = getattr(figures, name), replicates[name]
        intervals[name] = share_interval(found, drawn, negative, confidence)
    return intervals


def bootstrap_figures(
    places_in: Counts, places_out: Counts, size: int, num_bootstrap: int, seed: int
) -> dict[str, Floats]:
    """Figures of replicates, name -> shape (R,); every set is resampled for itself.

    Args:
        places_in: Which distinct score each in-distribution input holds.
        places_out: The same of OOD inputs.
        size: How many distinct scores there are.
        num_bootstrap: R.
        seed: Decides the draws.
    """
    rng = np.random.default_rng(seed)
    drawn = np.empty((num_bootstrap, len(Figures._fields)))
    for row in drawn:
        again_in = places_in[rng.integers(len(places_in), size=len(places_in))]
        again_out = places_out[rng.integers(len(places_out), size=len(places_out))]
        row[:] = figures_of(count(again_in, again_out, size))
    return dict(zip(Figures._fields, drawn.T, strict=True))


def auroc_interval(tally: Tally, confidence: float) -> Interval:
    r"""DeLong's interval on the logit scale.

    .. math:: \mathrm{var} = S_{10}/M + S_{01}/N, \qquad
              \mathrm{logit}\,A \pm z \sqrt{\mathrm{var}} / (A (1 - A))

    Where the sets separate perfectly the variance is 0. Then min(M, N) disjoint pairs were all in
    order, each with probability A: the exact binomial bound (alpha/2)^(1/min(M, N)) holds. It does
    for the share of ties where all scores are one, and A is half of that at least. One input alone
    in its set has no variance to estimate: (0, 1), unless the sets separate.
    """
    size_in, size_out = int(tally.count_in.sum()), int(tally.count_out.sum())
    smaller, area = min(size_in, size_out), auroc(tally)
    exact = ((1 - confidence) / 2) ** (1 / smaller)
    if area in (0.0, 1.0):
        return Interval(exact, 1.0) if area else Interval(0.0, 1 - exact)
    if smaller == 1:
        return Interval(0.0, 1.0)
    below, above = placements(tally)
    spread_in = dot(tally.count_in, (below - area) ** 2) / (size_in - 1)
    spread_out = dot(tally.count_out, (above - area) ** 2) / (size_out - 1)
    if spread_in == spread_out == 0:
        return Interval(exact / 2, 1 - exact / 2)
    error = math.sqrt(spread_in / size_in + spread_out / size_out) / (area * (1 - area))
    logit, reach = math.log(area / (1 - area)), _quantile(confidence) * error
    return Interval(_sigmoid(logit - reach), _sigmoid(logit + reach))


def share_interval(share: float, replicates: Floats, size: int, confidence: float) -> Interval:
    """Percentile bootstrap of a share, widened to Wilson's interval at the threshold found.

    So a share of 0 is not reported as certain, and the threshold is not taken for known.

    Args:
        share: Share of `size` inputs.
        replicates: That of replicates, shape (R,).
        size: Number of inputs.
        confidence: Level in (0, 1).
    """
    low, high = (float(end) for end in wilson_interval(share * size, size, confidence))
    bootstrap = percentile_interval(replicates, confidence)
    return Interval(min(low, bootstrap.low), max(high, bootstrap.high))


def precision_interval(
    average: float, replicates: Floats, num_positive: int, num_negative: int, confidence: float
) -> Interval:
    r"""Interval of an average precision: normal on the logit scale, its width by the bootstrap.

    Replicates lean upwards, as an input drawn twice is ranked above itself; so only their spread
    is used. Values of 1 are taken for half the smallest gap to it, 1 / (2 P (P + 1)).

    Where the sets separate perfectly, a share of at most v of all positives lies below the lowest
    found, and u of all negatives above it, each with probability 1 - alpha/2: v = 1 -
    (alpha/2)^(1/P), u likewise. The bound is the average precision of that case at its worst. One
    positive alone, with negatives above it, says nothing: (0, 1).

    Args:
        average: Average precision of the sample.
        replicates: That of replicates, shape (R,).
        num_positive: P.
        num_negative: Number of negatives.
        confidence: Level in (0, 1).

    References:
        Boyd, Eng and Page (2013), ECML PKDD, for the logit scale.
    """
    if average == 1:
        lost, above = (1 - ((1 - confidence) / 2) ** (1 / n) for n in (num_positive, num_negative))
        kept = num_positive * (1 - lost)
        return Interval((1 - lost) * kept / (kept + num_negative * above), 1.0)
    if num_positive == 1:
        return Interval(0.0, 1.0)
    gap = 1 / (2 * num_positive * (num_positive + 1))
    values = np.minimum(np.append(replicates, average), 1 - gap)
    *drawn, centre = np.log(values / (1 - values))
    reach = _quantile(confidence) * float(np.std(drawn))
    return Interval(_sigmoid(float(centre) - reach), _sigmoid(float(centre) + reach))


def error_interval(tally: Tally, replicates: Floats, confidence: float) -> Interval:
    r"""Interval of the detection error: Wilson's of its two shares, combined by squares.

    .. math:: \tfrac{1}{2} \Bigl(f + a \pm \sqrt{(f - f_\pm)^2 + (a - a_\pm)^2}\Bigr)

    for the shares f flagged and a accepted at the best threshold. As it was chosen on the same
    scores, the upper end is raised by what choosing gains once more on replicates.

    Args:
        tally: The scores of both sets.
        replicates: Detection errors of replicates, shape (R,).
        confidence: Level in (0, 1).

    References:
        Newcombe (1998), Statistics in Medicine 17, method 10.
    """
    shares = error_shares(tally)
    error = sum(shares) / 2
    reach = np.zeros(2)
    for share, size in zip(shares, (tally.count_in.sum(), tally.count_out.sum()), strict=True):
        ends = wilson_interval(share * size, size, confidence)
        reach += [(share - float(end)) ** 2 for end in ends]
    low, high = error - np.sqrt(reach) / 2 * [1, -1]
    flattery = max(0.0, error - float(replicates.mean()))
    return Interval(max(0.0, float(low)), min(0.5, float(high) + flattery))


def _sigmoid(logit: float) -> float:
    return (1 + math.tanh(logit / 2)) / 2


def _quantile(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)
