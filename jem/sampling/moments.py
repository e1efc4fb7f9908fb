"""Moments of Gaussians of low rank plus a diagonal, fitted to the rows of a class."""

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
