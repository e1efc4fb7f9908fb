"""Figures made of distances between sets of feature vectors, and between single inputs.

Everything runs in double precision.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from jem.evaluation.statistics import (
    UNKNOWN,
    Estimate,
    normal_estimate,
    resampling_counts,
    share_estimate,
)
from jem.randomness import derive_seed


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


class PrecisionRecall(NamedTuple):
    """Precision and recall of samples; higher is better."""

    precision: Estimate  # share of samples inside the support of real inputs
    recall: Estimate  # share of real inputs inside the support of samples


def precision_recall(real: Tensor, fake: Tensor, k: int = 5) -> PrecisionRecall:
    """Whether samples lie where real inputs do, and reach everywhere they do.

    The support of a set is the union of closed balls around its vectors, each of which reaches
    the k-th nearest neighbour in the set, itself not counted. Both figures depend on N, M and k:
    compare only figures of equal sizes. Intervals hold the balls fixed and count the draw of what
    is averaged over alone: samples for precision, real inputs for recall.

    Args:
        real: Features of real inputs, shape (N, F), N > k.
        fake: Features of samples, shape (M, F), M > k.
        k: Neighbours, at least 1.

    References:
        Kynkaanniemi et al. (2019), arXiv:1904.06991.

    Example:
        >>> x = torch.arange(6.0)[:, None]
        >>> figures = precision_recall(x, x[:3], k=1)
        >>> figures.precision.value, figures.recall.value
        (1.0, 0.6666666666666666)
    """
    away = _distances(fake, real)  # (M, N)
    # Each vector is the nearest to itself.
    reach_real, reach_fake = (_distances(z, z).kthvalue(k + 1, dim=1).values for z in (real, fake))
    return PrecisionRecall(
        precision=share_estimate((away <= reach_real).any(dim=1)),
        recall=share_estimate((away <= reach_fake[:, None]).any(dim=0)),
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
