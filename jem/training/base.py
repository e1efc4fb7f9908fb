"""The base density of a run, fitted to its training data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from sklearn.cluster import KMeans
from torch import Tensor

from jem.networks import is_embedding
from jem.sampling.base_density import BaseDensity
from jem.sampling.langevin import LangevinStep

EMBEDDING_SHRINKAGE = 0.9
"""Shrinkage of the covariance for embeddings. A class that is not known differs from those that
are along their own directions of large variance, which a full covariance forgives."""


def fit_base(
    x: Tensor,
    labels: Tensor,
    domain: tuple[Tensor, Tensor],
    step: LangevinStep,
    columns: Sequence[str] | None = None,
) -> BaseDensity:
    """Fit the base density of vectors; for embeddings with ten nearly round Gaussians a class.

    Args:
        x: Training rows, shape (N, D).
        labels: Class indices, shape (N,).
        domain: Bounds of the inputs.
        step: The step of the chains.
        columns: As `column_groups` takes them.
    """
    groups, shrinkage = labels, 0.0
    if is_embedding(x.shape[1:]):
        groups, shrinkage = prototypes(x, labels), EMBEDDING_SHRINKAGE
    return BaseDensity.fit(
        x, groups, domain,
        shrinkage=shrinkage, noise_std=step.noise_std, temperature=step.temperature,
        columns=columns,
    )  # fmt: skip


def prototypes(rows: Tensor, labels: Tensor, most: int = 10) -> Tensor:
    """Divide each class into clusters by k-means: one for each eight rows, ten at most.

    Args:
        rows: Shape (N, D).
        labels: Class indices, shape (N,).
        most: Largest number of clusters of a class.

    Returns:
        Cluster indices, shape (N,), no cluster shared by two classes.
    """
    x, classes = rows.cpu().numpy(), labels.cpu()
    found = torch.zeros(len(x), dtype=torch.long)
    count = 0
    for k in classes.unique():
        members = (classes == k).nonzero()[:, 0]
        means = KMeans(max(1, min(most, len(members) // 8)), n_init=1, random_state=0)
        found[members] = count + torch.from_numpy(means.fit_predict(x[members])).long()
        count += means.n_clusters
    return found
