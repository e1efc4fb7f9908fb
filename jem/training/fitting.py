"""What follows from the data of a run: model, base density, sampler, and where chains begin."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any

import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn

from jem.data.scaling import Scaling, range_of
from jem.data.splits import DataPart, DataSplits, LazyPart
from jem.model import JEM
from jem.networks import NetworkFactory, is_embedding, make_network
from jem.randomness import named_generator
from jem.sampling.base_density import BaseDensity
from jem.sampling.base_distributions import (
    BaseDistribution,
    ContrastBase,
    GaussianBase,
    MixtureBase,
    SamplerSettings,
    UniformBase,
)
from jem.sampling.langevin import LangevinStep
from jem.sampling.outliers import Outliers, column_groups
from jem.training.recipe import Recipe, ResolvedRecipe

MOST_EXAMPLES = 5000
"""Examples read of a data set that is not in memory, to fit to what is fitted to data."""


EMBEDDING_SHRINKAGE = 0.9
"""Shrinkage of the covariance for embeddings. A class that is not known differs from those that
are along their own directions of large variance, which a full covariance forgives."""


def examples_of(train: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    """Inputs and labels to fit base distributions on: all in memory, or some that are read.

    Those are spread over all of it, for a data set may be sorted by class; always the same.
    """
    if isinstance(train, DataPart):
        return train.x, train.y
    order = torch.randperm(len(train), generator=named_generator(0, "examples"))
    pairs = [train[i] for i in order[:MOST_EXAMPLES].sort().values.tolist()]
    return torch.stack([x for x, _ in pairs]), torch.tensor([int(y) for _, y in pairs])


def labels_of(train: Any, some: Tensor, *, every: bool) -> Tensor:  # noqa: ANN401
    """All labels where they are at hand or needed, for the examples may lack a rare class."""
    if isinstance(train, DataPart | LazyPart):
        return train.y
    return torch.tensor([int(train[i][1]) for i in range(len(train))]) if every else some


def domain_of(x: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of inputs: [0, 1] or [-1, 1] for images in it, else each range widened by a tenth.

    Args:
        x: Training inputs, shape (N, *shape).

    Returns:
        (low, high), scalars for images, of one input's shape otherwise.
    """
    if x.ndim == 4:
        x = x.reshape(-1)
        low, high = x.aminmax()
        if low >= -1 and high <= 1:
            return torch.tensor(0.0 if low >= 0 else -1.0), torch.tensor(1.0)
    return range_of(x)


def model_for(
    given: nn.Module | NetworkFactory | str | None, splits: DataSplits, recipe: Recipe, seed: int
) -> JEM:
    """Make the model of a run.

    Args:
        given: Its network, as `make_network` takes it.
        splits: Its data.
        recipe: Its recipe, which names the head; a run that trains no density needs none.
        seed: Seed of new weights.
    """
    head = recipe.head or (None if recipe.trains_density else "joint")
    return JEM(
        make_network(given, splits.input_shape, len(splits.classes), head, seed),
        input_shape=splits.input_shape,
        classes=None if recipe.head == "density" else splits.classes,
        domain=splits.domain,
        scaling=splits.scaling,
    )


def fit_sampler(
    model: JEM, recipe: ResolvedRecipe, x: Tensor, labels: Tensor, num_classes: int
) -> tuple[BaseDistribution, Outliers | None]:
    """Leave the sampler's settings in a model, and for vectors the base density.

    Args:
        model: The model, which has a domain.
        recipe: The recipe.
        x: Training inputs, shape (N, *shape).
        labels: Class indices, shape (N,).
        num_classes: K.

    Returns:
        Where chains of training begin, and what makes outliers where the recipe wants any.
    """
    assert model.domain is not None, "set before anything is fitted to the data"
    domain, shape = model.domain, x.shape[1:]

    @cache
    def base(kind: str) -> BaseDistribution:
        if kind == "gaussian":
            return GaussianBase.fit(x, labels, num_classes, bounds=domain)
        if kind == "mixed":
            return MixtureBase([base("uniform"), base("contrast"), base("gaussian")])
        return {"uniform": UniformBase, "contrast": ContrastBase}[kind](*domain, shape)

    begins_at_noise = recipe.init != "gaussian"
    step = LangevinStep(
        recipe.step_size,
        recipe.noise_std,
        recipe.langevin_grad_clamp,
        recipe.gradient_blur,
        recipe.normalize_gradient,
    )
    frequencies = torch.bincount(labels, minlength=num_classes).float() / len(labels)
    model.sampler = SamplerSettings(
        base(recipe.sample_init),
        recipe.sample_steps,
        step,
        frequencies,
        trained_on_outliers=bool(recipe.outlier_count),
        trained_on_noise=begins_at_noise,
    )
    if x.ndim == 2 and recipe.clip_to_domain:
        model.base = fit_base(x, labels, domain, step, model.scaling).to(model.device)
    if not recipe.outlier_count:
        return base(recipe.init), None
    kinds = ["uniform", "contrast", *["gaussian"] * begins_at_noise]
    noise = [deepcopy(base(kind)) for kind in kinds]  # the model's own stays on the CPU
    return base(recipe.init), Outliers(domain, noise, frequencies, x, model.columns).to(
        model.device
    )


def fit_base(
    x: Tensor,
    labels: Tensor,
    domain: tuple[Tensor, Tensor],
    step: LangevinStep,
    scaling: Scaling | None = None,
) -> BaseDensity:
    """Fit the base density of vectors; for embeddings with ten nearly round Gaussians a class.

    These would take a row of two levels, or of none, for one of the data: a table that has one-hot
    columns is no embedding, however many numbers it has.

    Args:
        x: Training rows, shape (N, D).
        labels: Class indices, shape (N,).
        domain: Bounds of the inputs.
        step: The step of the chains.
        scaling: What made them, with the names of their columns.
    """
    columns = None if scaling is None else scaling.columns
    zero = None if scaling is None else -scaling.shift / scaling.scale
    if not is_embedding(x.shape[1:]) or int(column_groups(x, columns)[-1]) < x.shape[1] - 1:
        return BaseDensity.fit(x, labels, domain, step, columns, zero=zero)
    parts = prototypes(x, labels)
    return BaseDensity.fit(x, parts, domain, step, columns, shrinkage=EMBEDDING_SHRINKAGE)


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
