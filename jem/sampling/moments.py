"""Moments of Gaussians, one for each class: of low rank, or with one covariance for all."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SUBSPACE_ITERATIONS = 10
"""Until the directions of largest variance of photographs are right to four digits."""


def low_rank_moments(
    rows: Tensor, rank: int, floor: float = 1e-4
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (D,), top scaled directions (D, rank) and remaining variances (D,) of rows (N, D)."""
    mean = rows.mean(dim=0)
    centred = (rows - mean) / math.sqrt(max(len(rows) - 1, 1))
    found = min(rank, *centred.shape)
    factor = torch.zeros(rows.shape[1], rank)
    if found:
        # The smaller Gram matrix has the same non-zero spectrum as the covariance.
        wide = centred.shape[0] < centred.shape[1]
        gram = centred @ centred.T if wide else centred.T @ centred
        values, vectors = top_eigenpairs(gram.double(), found)
        values = values.clamp_min(0)
        directions = centred.T.double() @ vectors if wide else vectors * values.sqrt()
        factor[:, :found] = directions.float()
    variance = centred.square().sum(dim=0) - factor.square().sum(dim=1)
    return mean, factor, variance.clamp_min(floor)


def centred_by_class(rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Take the mean of its class off each row.

    Args:
        rows: Shape (N, D), N >= 1.
        labels: Class indices, shape (N,).

    Returns:
        Means (K, D) of the classes that occur, rows less the mean of their class (N, D), both in
        double precision, and the sizes of the classes (K,); on the CPU.
    """
    z = rows.detach().cpu().double()
    _, groups, counts = torch.unique(labels.cpu(), return_inverse=True, return_counts=True)
    means = z.new_zeros(len(counts), z.shape[1]).index_add_(0, groups, z) / counts[:, None]
    return means, z - means[groups], counts


def ledoit_wolf(z: Tensor) -> Tensor:
    r"""Covariance of rows whose mean is 0, shrunk.

    .. math:: \Sigma = (1 - \lambda) S + \lambda \, (\mathrm{tr}\, S / D) \, I

    S is their covariance, lambda the Ledoit-Wolf intensity: Sigma can be inverted also with fewer
    rows than components, unless all rows are 0.

    Args:
        z: Rows less the mean of their class, shape (N, D).

    Returns:
        Sigma, shape (D, D).

    References:
        Ledoit and Wolf (2004), Journal of Multivariate Analysis 88.
    """
    count, dim = z.shape
    covariance = z.T @ z / count
    mean_variance = covariance.diagonal().mean()
    identity = mean_variance * torch.eye(dim, dtype=z.dtype)
    spread = (covariance - identity).square().sum()
    error = (z.square().sum(dim=1).square().mean() - covariance.square().sum()) / count
    intensity = (error / spread).clamp(0, 1) if spread > 0 else 0.0
    return (1 - intensity) * covariance + intensity * identity


def top_eigenpairs(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Largest eigenvalues of a Gram matrix, and their eigenvectors.

    Large matrices (512 rows and more) go through subspace iteration: a whole decomposition for
    each class of colour photographs takes minutes.

    Args:
        matrix: Symmetric and positive semi-definite, shape (N, N).
        count: How many.

    Returns:
        Eigenvalues (count,), ascending, and eigenvectors (N, count).
    """
    size, block = len(matrix), 2 * count + 16
    if size < 512 or size < 4 * block:
        values, vectors = torch.linalg.eigh(matrix)
        return values[-count:], vectors[:, -count:]
    generator = torch.Generator(matrix.device).manual_seed(0)
    basis = torch.empty(size, block, dtype=matrix.dtype, device=matrix.device)
    basis.normal_(generator=generator)
    for _ in range(SUBSPACE_ITERATIONS):
        basis = torch.linalg.qr(matrix @ basis).Q
    values, rotation = torch.linalg.eigh(basis.T @ matrix @ basis)
    return values[-count:], basis @ rotation[:, -count:]
