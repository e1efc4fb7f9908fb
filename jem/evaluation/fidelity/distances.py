"""How far two sets of feature vectors are from being drawn from one distribution.

Both distances are low where the sets are alike. Everything runs in double precision.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from jem.evaluation.statistics import (
    UNKNOWN,
    Estimate,
    normal_estimate,
    resampling_counts,
    rows_by_block,
)
from jem.randomness import derive_seed, named_generator

NUM_GROUPS = 20
"""Groups that the standard error of the kernel distance leaves out in turn."""


class Moments(NamedTuple):
    """Mean and unbiased covariance of a set of feature vectors."""

    mean: Tensor  # (F,)
    covariance: Tensor  # (F, F)


def gaussian_distance(first: Moments, second: Moments) -> float:
    r"""Squared Wasserstein-2 distance of two Gaussians.

    .. math:: \lVert\mu_1 - \mu_2\rVert^2 + \mathrm{tr}\big(\Sigma_1 + \Sigma_2
              - 2 (\Sigma_1^{1/2} \Sigma_2 \Sigma_1^{1/2})^{1/2}\big)

    Both roots are of symmetric matrices, by their eigenvalues: no complex numbers, and nothing
    fails where a covariance is singular.

    Args:
        first: Mean and covariance.
        second: The same of the other.

    Returns:
        The distance, at least 0.

    References:
        Dowson and Landau (1982), Journal of Multivariate Analysis 12.
    """
    values, vectors = torch.linalg.eigh(first.covariance)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    inner = root @ second.covariance @ root
    overlap = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp_min(0).sqrt().sum()
    traces = first.covariance.trace() + second.covariance.trace()
    means = (first.mean - second.mean).square().sum()
    return max(0.0, float(means + traces - 2 * overlap))


def frechet_distance(
    real: Tensor, fake: Tensor, *, num_bootstrap: int = 100, seed: int = 0
) -> Estimate:
    r"""Frechet distance between Gaussians fitted to two sets of features; lower is better.

    The formula is that of `gaussian_distance`. **Biased upwards**, by about a constant over the
    size of each set: two sets of one distribution do not give 0. Compare only figures of equal
    sizes, and look at what held-out real inputs give. With no more vectors than features a
    covariance is singular and bias is most of the figure: such sets have no distance.

    Never call it FID: that is this distance in the features of one Inception network.

    Args:
        real: Features of real inputs, shape (N, F).
        fake: Features of samples, shape (M, F).
        num_bootstrap: Replicates, both sets resampled, behind the standard error; below 2 it is
            NaN.
        seed: Decides the replicates.

    Returns:
        The distance, in squared units of the features; `UNKNOWN` unless N > F and M > F. Its
        interval is about what sets of these sizes give on average, bias included. The standard
        error is too large where the two distributions are nearly one, in simulations up to 1.8
        times.

    References:
        Heusel et al. (2017), arXiv:1706.08500. Chong and Forsyth (2020), arXiv:1911.07023, on the
        bias.

    Example:
        >>> x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        >>> round(frechet_distance(x, x + 3).value, 6)  # 3^2 + 3^2
        18.0
    """
    if min(len(real), len(fake)) <= real.shape[1]:
        return UNKNOWN
    centre = real.double().mean(dim=0)  # a common offset would cost digits
    sets = real.double() - centre, fake.double() - centre

    def distance(counts: list[Tensor]) -> float:
        return gaussian_distance(*map(_moments, sets, counts))

    value = distance([torch.ones(len(z)).double() for z in sets])
    drawn = [
        resampling_counts(len(z), num_bootstrap, derive_seed(seed, "frechet", side))
        for side, z in enumerate(sets)
    ]
    replicates = [
        distance([torch.from_numpy(row) for row in rows])
        for rows in zip(*((row for block in side for row in block) for side in drawn), strict=True)
    ]
    # Resampling adds the bias once more, so percentiles would be off; the spread is less so.
    error = float(np.std(replicates, ddof=1)) if len(replicates) > 1 else math.nan
    estimate = normal_estimate(value, error)
    return estimate._replace(low=max(0.0, estimate.low) if error >= 0 else math.nan)


def _moments(z: Tensor, weights: Tensor) -> Moments:
    """Mean and covariance of a set in which each row occurs so often."""
    total = weights.sum()
    mean = weights @ z / total
    second = z.T @ (z * weights[:, None])
    return Moments(mean, (second - total * torch.outer(mean, mean)) / (total - 1))


def kernel_distance(real: Tensor, fake: Tensor, *, seed: int = 0) -> Estimate:
    r"""Unbiased squared maximum mean discrepancy, cubic polynomial kernel; lower is better.

    .. math:: k(a, b) = (a^T b / F + 1)^3, \qquad
              \frac{\sum_{i \ne j} k(x_i, x_j)}{N (N - 1)}
              + \frac{\sum_{i \ne j} k(y_i, y_j)}{M (M - 1)}
              - \frac{2 \sum_{i, j} k(x_i, y_j)}{N M}

    Unbiased at every size, so it may be below 0, and is the figure to read for small sets. All
    pairs enter the estimate. The standard error is a jackknife: rows are dealt at random into
    twenty groups, and each group of both sets is left out in turn. It leans to the large side
    where the distributions are the same.

    Args:
        real: Features of real inputs, shape (N, F), N >= 4.
        fake: Features of samples, shape (M, F), M >= 4.
        seed: Decides the groups; the estimate does not depend on it.

    Returns:
        The squared discrepancy; its scale is that of the features to the power six.

    References:
        Binkowski et al. (2018), arXiv:1801.01401. Gretton et al. (2012), JMLR 13, equation 3.
    """
    real, fake = real.double(), fake.double()
    num_groups = min(NUM_GROUPS, len(real), len(fake))
    generator = named_generator(seed, "kernel distance")
    # Both sets are dealt out alike, so that leaving out a group of each adds their variances.
    one, two = (
        torch.nn.functional.one_hot(
            torch.randperm(len(z), generator=generator) % num_groups, num_groups
        ).double()
        for z in (real, fake)
    )
    sums = [  # of the kernel over all pairs of two groups, each (groups, groups)
        _pair_sums(real, one, real, one) - torch.diag(one.T @ _self_kernel(real)),
        _pair_sums(fake, two, fake, two) - torch.diag(two.T @ _self_kernel(fake)),
        _pair_sums(real, one, fake, two),
    ]
    num_real, num_fake = one.sum(dim=0), two.sum(dim=0)
    value = _discrepancy([part.sum() for part in sums], num_real.sum(), num_fake.sum())
    left = [part.sum() - part.sum(dim=0) - part.sum(dim=1) + part.diagonal() for part in sums]
    without = _discrepancy(left, num_real.sum() - num_real, num_fake.sum() - num_fake)
    spread = (without - without.mean()).square().sum() * (num_groups - 1) / num_groups
    return normal_estimate(float(value), float(spread.sqrt()))


def _self_kernel(z: Tensor) -> Tensor:
    return (z.square().sum(dim=1) / z.shape[1] + 1) ** 3


def _pair_sums(a: Tensor, groups_a: Tensor, b: Tensor, groups_b: Tensor) -> Tensor:
    """Sum the kernel over all pairs of each two groups, shape (groups, groups)."""
    sums = torch.zeros(groups_a.shape[1], groups_b.shape[1], dtype=torch.float64)
    start = 0
    for rows in rows_by_block(len(a), len(b)):
        block = slice(start, start + rows)
        inner = (a[block] @ b.T).div_(a.shape[1]).add_(1)
        sums += groups_a[block].T @ (inner * inner * inner @ groups_b)
        start += rows
    return sums


def _discrepancy(sums: list[Tensor], num_real: Tensor, num_fake: Tensor) -> Tensor:
    within_real, within_fake, across = sums
    real = within_real / (num_real * (num_real - 1))
    fake = within_fake / (num_fake * (num_fake - 1))
    return real + fake - 2 * across / (num_real * num_fake)
