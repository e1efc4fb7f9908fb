"""Figures made of distances between single inputs: coverage, memorisation, diversity.

Distances are Euclidean, in double precision, and computed in blocks: memory does not grow with the
number of pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from jem.errors import InputError
from jem.evaluation.fidelity.distances import check_features
from jem.evaluation.ood.metrics import ood_metrics
from jem.evaluation.statistics import (
    UNKNOWN,
    Estimate,
    mean_estimate,
    normal_estimate,
    rows_by_block,
    share_estimate,
)

if TYPE_CHECKING:
    from jem.evaluation.fidelity.distances import Features

ROUNDING = 1e-13
"""Squared distances below this share of the squared lengths are those of equal vectors."""


class PRDC(NamedTuple):
    """Precision, recall, density and coverage; high is good."""

    precision: Estimate  # share of samples inside the support of real inputs
    recall: Estimate  # share of real inputs inside the support of samples
    density: Estimate  # real neighbourhoods that hold a sample, over k; 1 is par
    coverage: Estimate  # share of real neighbourhoods that hold a sample


def prdc(real: Features, fake: Features, k: int = 5) -> PRDC:
    r"""Whether samples lie where real inputs do, and reach everywhere they do.

    B_k(z) is the closed ball around a vector that reaches its k-th nearest neighbour in its own
    set, itself not counted. The support of a set is the union of its balls.

    .. math:: \mathrm{density} = \frac{1}{k M} \sum_{j, i} [y_j \in B_k(x_i)], \qquad
              \mathrm{coverage} = \frac{1}{N} \sum_i [\exists j: y_j \in B_k(x_i)]

    Density is not bounded by 1: samples crowded where real inputs are dense exceed it. All four
    depend on N, M and k: compare only figures of equal sizes. Standard errors and intervals hold
    the balls fixed and count the draw of what is averaged over alone: samples for precision and
    density, real inputs for recall and coverage.

    Args:
        real: Features of real inputs, shape (N, F), N > k.
        fake: Features of samples, shape (M, F), M > k.
        k: Neighbours, at least 1.

    Returns:
        The four figures.

    Raises:
        InputError: If `k` does not leave a k-th neighbour, or the sets are not as said.

    References:
        Kynkaanniemi et al. (2019), arXiv:1904.06991. Naeem et al. (2020), arXiv:2002.09797.

    Example:
        >>> x = torch.arange(6.0)[:, None]
        >>> figures = prdc(x, x[:3], k=1)
        >>> figures.precision.value, figures.recall.value, figures.coverage.value
        (1.0, 0.6666666666666666, 0.6666666666666666)
    """
    real, fake = check_features(real, fake)
    if not 1 <= k < min(len(real), len(fake)):
        raise InputError(
            f"`k` must be at least 1 and below the size of each set, {len(real)} and {len(fake)}, "
            f"but got {k}"
        )
    closed = 1 + 1e-12  # a point on the edge of a ball is in it, whatever the last digit says
    reach_real, reach_fake = closed * _reach(real, k), closed * _reach(fake, k)
    holding = torch.empty(len(fake), dtype=torch.float64)  # real balls around each sample
    recalled = torch.zeros(len(real), dtype=torch.bool)
    covered = torch.zeros(len(real), dtype=torch.bool)
    for rows, squared in squared_distances(fake, real):
        inside = squared <= reach_real
        holding[rows] = inside.sum(dim=1).double()
        covered |= inside.any(dim=0)
        recalled |= (squared <= reach_fake[rows, None]).any(dim=0)
    return PRDC(
        precision=share_estimate(holding > 0),
        recall=share_estimate(recalled),
        density=mean_estimate(holding / k),
        coverage=share_estimate(covered),
    )


def squared_distances(a: Tensor, b: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Squared distances of every row of one set to every row of another, in blocks.

    Args:
        a: Shape (N, F), double precision.
        b: Shape (M, F).

    Yields:
        Which rows of `a`, and their squared distances, shape (rows, M), at least 0. Those that
        rounding could have made are 0, so that copies are recognised.
    """
    centre = b.mean(dim=0)  # a common offset would cost digits
    a, b = a - centre, b - centre
    lengths_a, lengths_b = (z.square().sum(dim=1) for z in (a, b))
    start = 0
    for num in rows_by_block(len(a), len(b)):
        rows = slice(start, start + num)
        lengths = lengths_a[rows, None] + lengths_b
        squared = torch.addmm(lengths, a[rows], b.T, alpha=-2)
        yield rows, squared.masked_fill_(squared <= ROUNDING * lengths, 0.0)
        start += num


def _reach(z: Tensor, k: int) -> Tensor:
    """Squared distance of each vector to its k-th nearest neighbour, itself not counted."""
    reach = torch.empty(len(z), dtype=torch.float64)
    for rows, squared in squared_distances(z, z):
        own = torch.arange(rows.start, rows.stop)
        squared[torch.arange(len(own)), own] = math.inf
        reach[rows] = squared.kthvalue(k, dim=1).values
    return reach


def nearest_distances(x: Tensor, others: Iterable[Tensor]) -> Tensor:
    """Distance of each input to the nearest of many others, which need not fit in memory.

    Args:
        x: Inputs, shape (N, ...); flattened.
        others: Batches of inputs, each of shape (B, ...).

    Returns:
        Euclidean distances, shape (N,), in the units of the inputs; exactly 0 for a copy.

    Raises:
        InputError: If there are no others.
    """
    x = x.flatten(1).double()
    nearest = torch.full((len(x),), math.inf, dtype=torch.float64)
    for batch in others:
        rows = batch.flatten(1).double()
        for part, squared in squared_distances(x, rows):
            closest = rows[squared.argmin(dim=1)]
            # The matrix product loses digits where inputs are close: measure that pair again.
            exact = (x[part] - closest).square().sum(dim=1)
            nearest[part] = torch.minimum(nearest[part], exact)
    if len(x) and not bool(nearest.isfinite().all()):
        raise InputError("expected other inputs to measure distances to, but got none")
    return nearest.sqrt()


def probability_nearer(distances: Tensor, reference: Tensor) -> Estimate:
    """Probability that one distance is smaller than one of a reference, ties counting half.

    The rank statistic of Mann and Whitney, in [0, 1]; 0.5 where both follow one law.

    Args:
        distances: Shape (M,), M >= 2.
        reference: Shape (N,), N >= 2.

    Returns:
        The probability, with the standard error of DeLong et al. and the interval of
        `ood_metrics`.

    Raises:
        InputError: If either has fewer than two, or holds NaN.
    """
    if min(len(distances), len(reference)) < 2:
        raise InputError(
            f"expected two distances of each kind, but got {len(distances)} and {len(reference)}"
        )
    metrics = ood_metrics(-distances, -reference)
    variance = sum(
        float(_share_above(one, other).var()) / len(one)
        for one, other in ((distances, reference), (reference, distances))
    )
    return Estimate(metrics.auroc, math.sqrt(variance), *metrics.intervals["auroc"])


def _share_above(values: Tensor, others: Tensor) -> Tensor:
    """Share of the others above each value, equals counting half."""
    others = others.sort().values
    below = torch.searchsorted(others, values) + torch.searchsorted(others, values, right=True)
    return 1 - below.double() / (2 * len(others))


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
    num, z = len(z), z.double()
    if num < 3:
        return UNKNOWN
    sums = torch.empty(num, dtype=torch.float64)
    for rows, squared in squared_distances(z, z):
        sums[rows] = squared.sqrt().sum(dim=1)
    value = sums.sum() / (num * (num - 1))
    without = (sums.sum() - 2 * sums) / ((num - 1) * (num - 2))
    spread = (without - without.mean()).square().sum() * (num - 1) / num
    error = float(spread.sqrt())
    return normal_estimate(float(value), error)


class Diversity(NamedTuple):
    """How much a set varies within classes, over how much real inputs do; 1 is par, low is bad."""

    mean: Estimate  # over the classes that could be measured
    by_class: tuple[Estimate, ...]  # (K,); NaN where a class has fewer than three inputs


def diversity(
    real: Tensor, real_labels: Tensor, fake: Tensor, fake_labels: Tensor, num_classes: int
) -> Diversity:
    """Mean distance of pairs within a class, as a ratio of samples to real inputs.

    Args:
        real: Features of real inputs, shape (N, F).
        real_labels: Their classes, shape (N,).
        fake: Features of samples, shape (M, F).
        fake_labels: Their classes, shape (M,).
        num_classes: K.

    Returns:
        The ratio of each class and its mean over classes. Standard errors by the jackknife and
        the delta method.
    """
    ratios = tuple(
        _ratio(
            mean_pair_distance(fake[fake_labels == label]),
            mean_pair_distance(real[real_labels == label]),
        )
        for label in range(num_classes)
    )
    known = [ratio for ratio in ratios if math.isfinite(ratio.value)]
    if not known:
        return Diversity(UNKNOWN, ratios)
    value = math.fsum(ratio.value for ratio in known) / len(known)
    error = math.sqrt(math.fsum(ratio.std_error**2 for ratio in known)) / len(known)
    return Diversity(normal_estimate(value, error), ratios)


def _ratio(fake: Estimate, real: Estimate) -> Estimate:
    if not (math.isfinite(fake.value) and real.value > 0):
        return UNKNOWN
    ratio = fake.value / real.value
    error = math.hypot(fake.std_error, ratio * real.std_error) / real.value
    return normal_estimate(ratio, error)
