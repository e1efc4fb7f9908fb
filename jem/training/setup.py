"""What a run is made of: domain, batches, objective, and the chains that suit them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from jem.checks import refuse
from jem.data.batches import BatchStream, augment
from jem.data.scaling import range_of
from jem.data.splits import DataPart, LazyPart
from jem.errors import InputError
from jem.model import JEM
from jem.networks import Companion, Factored, FactoredHead
from jem.objectives import (
    OBJECTIVES,
    Batch,
    Classification,
    NoObjective,
    Objective,
    balanced_class_weights,
)
from jem.randomness import named_generator
from jem.sampling.base_distributions import (
    BaseDistribution,
    ContrastBase,
    GaussianBase,
    MixtureBase,
    UniformBase,
)
from jem.sampling.buffer import PersistentChains, ReplayBuffer
from jem.sampling.langevin import LangevinStep
from jem.sampling.outliers import Outliers
from jem.sampling.settings import SamplerSettings
from jem.training.base import fit_base
from jem.training.probe import probe
from jem.training.process import Processes
from jem.training.recipe import Recipe, ResolvedRecipe
from jem.training.steps import StepContext

MOST_EXAMPLES = 5000
"""Examples read of a data set that is not in memory, to fit to what is fitted to data."""


@dataclass(frozen=True)
class Batches:
    """What training sees of the data, changed at random as the recipe says.

    Attributes:
        recipe: The recipe.
        labelled: Examples of the classifier; they make an epoch.
        density: Examples of the density, or None if it sees those of the classifier.
        outliers: Makes outliers, or None.
        ranks: Processes, each of which takes its part of every batch.
    """

    recipe: ResolvedRecipe
    labelled: BatchStream
    density: BatchStream | None
    outliers: Outliers | None
    ranks: Processes

    def __len__(self) -> int:
        """Updates of an epoch."""
        return len(self.labelled)

    def epoch(self, epoch: int, start: int, *, generator: torch.Generator) -> Iterator[Batch]:
        """Give the batches of one epoch.

        Args:
            epoch: Which one, from 0: it decides the order of the examples.
            start: Batches of it that were already seen.
            generator: Source of the random changes.
        """
        recipe, part = self.recipe, self.ranks.part
        seen = epoch * len(self) + start
        other = None if self.density is None else _endless(self.density, seen)

        def changed(x: Tensor) -> Tensor:
            shift, flip, noise = recipe.augment_shift, recipe.augment_flip, recipe.augment_noise
            return augment(x, shift=shift, flip=flip, noise_std=noise, generator=generator)

        for x, labels in self.labelled.epoch(epoch, start):
            x_data = None if other is None else part(next(other)[0])
            x, labels = changed(part(x)), part(labels)
            if x_data is None:
                x_data = x
            elif recipe.augment_density:
                x_data = changed(x_data)
            outliers = None
            if self.outliers is not None:
                count = -(-recipe.outlier_count // self.ranks.count)  # each makes one or more
                outliers = self.outliers.draw(count, x_data, generator=generator)
            yield Batch(x, labels, x_data, outliers)


def _endless(stream: BatchStream, seen: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of a stream, epoch after epoch of its own, after so many of them."""
    epoch, start = divmod(seen, len(stream))
    while True:
        yield from stream.epoch(epoch, start)
        epoch, start = epoch + 1, 0


def build(
    model: JEM,
    recipe: Recipe,
    train: Any,  # noqa: ANN401
    seed: int,
    ranks: Processes,
    objective: Objective | None = None,
    class_weight: Tensor | None = None,
) -> tuple[StepContext, Batches]:
    """Make what training needs of a recipe, now that the data are known.

    Args:
        model: The model, on its device; it is given input shape, class names and domain where it
            has none, and the settings of its sampler.
        recipe: The recipe; what it leaves open is filled in.
        train: Training examples, a Dataset of (x, y).
        seed: The run's seed.
        ranks: The processes of the run.
        objective: What trains the density, in place of the recipe's.
        class_weight: Weight of each class, shape (K,), in place of the recipe's.

    Returns:
        What stays the same from update to update, and the batches.

    Raises:
        InputError: If the data do not fit the model.
    """
    if recipe.head == "companion" and model.marginal is model:
        raise InputError(
            "the recipe trains the density beside a classifier that stays as it is: give it "
            "jem.JEM(jem.companion(network, input_shape=..., num_classes=...))"
        )
    x, labels = examples_of(train)
    all_labels = _labels_of(train, labels, every=recipe.class_weight == "balanced")

    def stream(name: str, batch_size: int) -> BatchStream:
        made = BatchStream(train, batch_size, seed=seed, name=name, device=model.device)
        ranks.share(made.batch_size, "batch_size")
        return made

    labelled = stream("labelled", recipe.batch_size)
    resolved = recipe.resolved(x.shape[1:], len(labelled), model.classes or ())
    objective = objective or make_objective(resolved)
    num_classes = probe(model, resolved, objective, x, all_labels, labelled.batch_size)
    _set_up_model(model, x, num_classes)

    density = None
    if recipe.separate_density_batches:
        density = stream("generative", recipe.density_batch_size or recipe.batch_size)
    if class_weight is None and recipe.class_weight == "balanced":
        class_weight = balanced_class_weights(all_labels, num_classes)
    elif class_weight is not None and class_weight.shape != (num_classes,):
        refuse("class_weight", f"have shape ({num_classes},)", tuple(class_weight.shape))
    weight = None if class_weight is None else class_weight.to(model.device)

    chains, outliers = None, None
    if not isinstance(objective, NoObjective):
        labels = labels if num_classes > 1 else torch.zeros_like(labels)
        init = _settle_sampler(model, resolved, x, labels, num_classes)
        if x.ndim == 2 and resolved.clip_to_domain:
            base = fit_base(x, labels, _domain(model), model.sampler.step, _columns(model))
            model.base = base.to(model.device)
        if "chains" in objective.needs:
            generator = named_generator(ranks.seed(seed), "chains", 0, device=model.device)
            chains = _make_chains(model, resolved, init, ranks, generator)
            outliers = _make_outliers(model, resolved, x, labels, num_classes)
    context = StepContext(
        resolved,
        objective,
        Classification(recipe.label_smoothing, weight),
        named_generator(ranks.seed(seed), "augmentation", device=model.device),
        chains,
        ranks,
    )
    example = x[:1].to(model.device)
    wrapped = ranks.synchronised(model.marginal, context.forward, example)
    return replace(context, wrapped=wrapped), Batches(resolved, labelled, density, outliers, ranks)


def head_advice(model: JEM, recipe: ResolvedRecipe) -> str:
    """What a network with the plain reading misses under a recipe made for the factored head."""
    known = Factored, FactoredHead, Companion
    plain = not any(isinstance(module, known) for module in model.network.modules())
    if recipe.head != "factored" or not recipe.generative or not plain:
        return ""
    if len(model.classes or ()) < 2:
        return ""
    return (
        "the network has the plain head: jem.networks.factored(network) gives it the factored "
        "one, whose log-density tells foreign inputs better"
    )


def make_objective(recipe: ResolvedRecipe) -> Objective:
    """The objective that a recipe names; its fields that a recipe has too are taken from there."""
    kind = OBJECTIVES[recipe.objective]
    names: list[str] = [f.name for f in fields(kind)] if is_dataclass(kind) else []
    return kind(**{name: getattr(recipe, name) for name in names if hasattr(recipe, name)})


def _set_up_model(model: JEM, x: Tensor, num_classes: int) -> None:
    """Give the model what it does not say of its inputs, and hold the data to its domain."""
    if model.input_shape is None:
        model.input_shape = tuple(x.shape[1:])
    if model.classes is None:
        model.classes = tuple(str(k) for k in range(num_classes))
    if model.domain is None:
        model.domain = domain_of(x)
    low, high = (bound.to(x.device) for bound in model.domain)
    try:
        torch.broadcast_to(low + high, x.shape[1:])
    except RuntimeError:
        refuse("domain", f"fit inputs of shape {tuple(x.shape[1:])}", tuple((low + high).shape))
    slack = 1e-3 * (high - low)  # more than rounding explains; chains never get beyond the domain
    if ((x < low - slack) | (x > high + slack)).any():
        refuse(
            "domain",
            f"hold the inputs of training, which lie in [{x.min():.4g}, {x.max():.4g}]",
            f"[{low.min():.4g}, {high.max():.4g}]",
            "scale them as the network expects, or set `domain`",
        )


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


def _settle_sampler(
    model: JEM, recipe: ResolvedRecipe, x: Tensor, labels: Tensor, num_classes: int
) -> BaseDistribution:
    """Leave the sampler's settings in the model; return where chains of training begin."""
    init = fresh = make_base(recipe.init, _domain(model), x, labels, num_classes)
    if recipe.sample_init != recipe.init:
        fresh = make_base(recipe.sample_init, _domain(model), x, labels, num_classes)
    model.sampler = SamplerSettings(
        init=fresh,
        num_steps=recipe.sample_steps,
        step=LangevinStep(
            recipe.step_size,
            recipe.noise_std,
            recipe.langevin_grad_clamp,
            gradient_blur=recipe.gradient_blur,
        ),
        class_frequencies=torch.bincount(labels, minlength=num_classes).float() / len(labels),
        trained_on_outliers=bool(recipe.outlier_count),
        trained_on_noise=recipe.init != "gaussian",
    )
    return init


def _make_chains(
    model: JEM,
    recipe: ResolvedRecipe,
    init: BaseDistribution,
    ranks: Processes,
    generator: torch.Generator,
) -> PersistentChains:
    size = ranks.share(recipe.buffer_size, "buffer_size")
    return PersistentChains(
        buffer=ReplayBuffer.from_init(init, size, generator=generator),
        init=deepcopy(init).to(generator.device),  # the model keeps its own, which stays here
        count=ranks.share(recipe.num_chains, "num_chains"),
        reinit_prob=recipe.reinit_prob,
        replacement=recipe.replacement,
        step=model.sampler.step,
        bounds=model.bounds() if recipe.clip_to_domain else None,
        generator=generator,
    )


def _make_outliers(
    model: JEM, recipe: ResolvedRecipe, x: Tensor, labels: Tensor, num_classes: int
) -> Outliers | None:
    if not recipe.outlier_count:
        return None
    gaussians = recipe.init != "gaussian"
    columns = _columns(model)
    outliers = Outliers(
        *_domain(model), x, labels, num_classes, gaussians=gaussians, columns=columns
    )
    return outliers.to(model.device)


def _columns(model: JEM) -> Sequence[str] | None:
    return None if model.scaling is None else model.scaling.columns


def _domain(model: JEM) -> tuple[Tensor, Tensor]:
    assert model.domain is not None, "set before anything is fitted to the data"
    return model.domain


def make_base(
    kind: str, domain: tuple[Tensor, Tensor], x: Tensor, labels: Tensor, num_classes: int
) -> BaseDistribution:
    """Base distribution of a recipe, fitted to training data where it needs any.

    Args:
        kind: `Recipe.init` or `Recipe.sample_init`.
        domain: Bounds of the inputs.
        x: Training inputs, shape (N, *shape).
        labels: Class indices, shape (N,).
        num_classes: K.
    """
    low, high = domain
    shape = tuple(x.shape[1:])
    if kind == "uniform":
        return UniformBase(low, high, shape)
    gaussian = GaussianBase.fit(x, labels, num_classes, bounds=domain)
    if kind == "gaussian":
        return gaussian
    uniform, contrast = UniformBase(low, high, shape), ContrastBase(low, high, shape)
    return MixtureBase([uniform, contrast, gaussian])


def _labels_of(train: Any, some: Tensor, *, every: bool) -> Tensor:  # noqa: ANN401
    """All labels where they are at hand or needed, for the examples may lack a rare class."""
    if isinstance(train, DataPart | LazyPart):
        return train.y
    return torch.tensor([int(train[i][1]) for i in range(len(train))]) if every else some


def examples_of(train: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    """Inputs and labels to fit base distributions on: all in memory, or some that are read.

    Those are spread over all of it, for a data set may be sorted by class; always the same.
    """
    if isinstance(train, DataPart):
        return train.x, train.y
    order = torch.randperm(len(train), generator=named_generator(0, "examples"))
    pairs = [train[i] for i in order[:MOST_EXAMPLES].sort().values.tolist()]
    return torch.stack([x for x, _ in pairs]), torch.tensor([int(y) for _, y in pairs])
