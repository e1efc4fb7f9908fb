"""Figures made of distances between single inputs: coverage, memorisation, diversity.

Distances are Euclidean, in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from jem.evaluation.statistics import (
    UNKNOWN,
    Estimate,
    mean_estimate,
    normal_estimate,
    share_estimate,
)


class PRDC(NamedTuple):
    """Precision, recall, density and coverage; higher is better."""

    precision: Estimate  # share of samples inside the support of real inputs
    recall: Estimate  # share of real inputs inside the support of samples
    density: Estimate  # real neighbourhoods that hold a sample, over k; 1 for perfect samples
    coverage: Estimate  # share of real neighbourhoods that hold a sample


def prdc(real: Tensor, fake: Tensor, k: int = 5) -> PRDC:
    r"""Whether samples lie where real inputs do, and reach everywhere they do.

    B_k(z) is the closed ball around a vector that reaches its k-th nearest neighbour in its own
    set, itself not counted. The support of a set is the union of its balls.

    .. math:: \mathrm{density} = \frac{1}{k M} \sum_{j, i} [y_j \in B_k(x_i)], \qquad
              \mathrm{coverage} = \frac{1}{N} \sum_i [\exists j: y_j \in B_k(x_i)]

    Density is not bounded by 1: samples crowded where real inputs are dense exceed it. All four
    depend on N, M and k: compare only figures of equal sizes. Intervals hold the balls fixed and
    count the draw of what is averaged over alone: samples for precision and density, real inputs
    for recall and coverage.

    Args:
        real: Features of real inputs, shape (N, F), N > k.
        fake: Features of samples, shape (M, F), M > k.
        k: Neighbours, at least 1.

    References:
        Kynkaanniemi et al. (2019), arXiv:1904.06991. Naeem et al. (2020), arXiv:2002.09797.

    Example:
        >>> x = torch.arange(6.0)[:, None]
        >>> figures = prdc(x, x[:3], k=1)
        >>> figures.precision.value, figures.recall.value, figures.coverage.value
        (1.0, 0.6666666666666666, 0.6666666666666666)
    """
    away = _distances(fake, real)  # (M, N)
    # Each vector is the nearest to itself.
    reach_real, reach_fake = (_distances(z, z).kthvalue(k + 1, dim=1).values for z in (real, fake))
    inside = away <= reach_real
    return PRDC(
        precision=share_estimate(inside.any(dim=1)),
        recall=share_estimate((away <= reach_fake[:, None]).any(dim=0)),
        density=mean_estimate(inside.double().sum(dim=1) / k),
        coverage=share_estimate(inside.any(dim=0)),
    )


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # Not by a matrix product, which loses the digits that say whether a point is on a ball's edge.
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cdist(a.double(), b.double(), compute_mode=mode)


def nearest_distances(x: Tensor, others: Iterable[Tensor]) -> Tensor:
    """Distance of each input to the nearest of many others, which need not fit in memory.

    Args:
        x: Inputs, shape (N, ...); flattened.
        others: Batches of inputs, each of shape (B, ...); one at least.

    Returns:
        Euclidean distances, shape (N,), in the units of the inputs; exactly 0 for a copy.
    """
    x = x.flatten(1).double()
    nearest = torch.full((len(x),), math.inf, dtype=torch.float64)
    for batch in others:
        rows = batch.flatten(1).double()
        closest = rows[torch.cdist(x, rows).argmin(dim=1)]
        # `cdist` is a matrix product, which loses digits where inputs are close: measure again.
        nearest = torch.minimum(nearest, (x - closest).norm(dim=1))
    return nearest


def mean_pair_distance(z: Tensor) -> Estimate:
    """Mean distance of all pairs in a set: how much it varies.

    Args:
        z: Vectors, shape (N, F).

    Returns:
        The mean over i < j of |z_i - z_j|, with the standard error of the delete-one jackknife;
        `UNKNOWN` for N < 3.

    Example:
        >>> round(mean_pair_distance(torch.tensor([[0.0], [3.0], [6.0]])).value, 6)
        4.0
    """
    num = len(z)
    if num < 3:
        return UNKNOWN
    sums = _distances(z, z).sum(dim=1)
    value = sums.sum() / (num * (num - 1))
    without = (sums.sum() - 2 * sums) / ((num - 1) * (num - 2))
    spread = (without - without.mean()).square().sum() * (num - 1) / num
    return normal_estimate(float(value), float(spread.sqrt()))


def diversity(
    real: Tensor, real_labels: Tensor, fake: Tensor, fake_labels: Tensor, num_classes: int
) -> Estimate:
    """Mean distance of pairs within a class, as a ratio of samples to real inputs.

    Args:
        real: Features of real inputs, shape (N, F).
        real_labels: Their classes, shape (N,).
        fake: Features of samples, shape (M, F).
        fake_labels: Their classes, shape (M,).
        num_classes: K.

    Returns:
        The ratio, averaged over the classes of which both sets hold at least three: 1 for samples
        that vary as much as real inputs, near 0 for samples that look alike. Standard error by
        the jackknife and the delta method.
    """
    ratios, errors = [], []
    for label in range(num_classes):
        ours = mean_pair_distance(fake[fake_labels == label])
        theirs = mean_pair_distance(real[real_labels == label])
        if math.isfinite(ours.value) and theirs.value > 0:
            ratios.append(ours.value / theirs.value)
            error = math.hypot(ours.std_error, ratios[-1] * theirs.std_error)
            errors.append(error / theirs.value)
    if not ratios:
        return UNKNOWN
    return normal_estimate(sum(ratios) / len(ratios), math.hypot(*errors) / len(ratios))
