"""What a training problem is made of: device, domain, batches, and the chains that suit them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from jem.data.batches import BatchStream, augment
from jem.data.splits import DataPart, LazyPart
from jem.errors import InputError
from jem.model import JEM, check_no_softmax
from jem.objectives.classification import balanced_class_weights
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
from jem.training.distributed import Processes
from jem.training.method import Batch, StepContext
from jem.training.problem_checks import (
    check_batch_size,
    check_domain,
    check_gradient,
    check_images,
    check_network,
)
from jem.training.process import lowered
from jem.training.recipe import Recipe
from jem.training.steps import forward_of

MOST_EXAMPLES = 5000
"""Examples read of a data set that is not in memory, to fit to what is fitted to data."""


@dataclass(frozen=True)
class Batches:
    """What training sees of the data, changed at random as the recipe says.

    Attributes:
        recipe: The recipe, with nothing left open.
        labelled: Examples of the classifier; they make an epoch.
        generative: Examples of the density, or None where it sees what the classifier sees.
        outliers: Makes outliers, or None.
        ranks: Processes, each of which takes its part of every batch.
    """

    recipe: Recipe
    labelled: BatchStream
    generative: BatchStream | None
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
        other = None if self.generative is None else _endless(self.generative, seen)
        for x, labels in self.labelled.epoch(epoch, start):
            x_data = None if other is None else part(next(other)[0])
            x, labels = part(x), part(labels)
            x = _augmented(recipe, x, generator)
            if x_data is None:
                x_data = x
            elif recipe.augment_density:
                x_data = _augmented(recipe, x_data, generator)
            outliers = None
            if self.outliers is not None:
                count = self.ranks.share(recipe.outlier_count or 0, "outlier_count")
                outliers = self.outliers.draw(count, x_data, generator=generator)
            yield Batch(x, labels, x_data, outliers)


def _augmented(recipe: Recipe, x: Tensor, generator: torch.Generator) -> Tensor:
    return augment(
        x,
        shift=recipe.augment_shift,
        flip=recipe.augment_flip,
        noise_std=recipe.augment_noise or 0.0,
        generator=generator,
    )


def _endless(stream: BatchStream, seen: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of a stream, epoch after epoch of its own, after so many of them."""
    epoch, start = divmod(seen, len(stream))
    while True:
        yield from stream.epoch(epoch, start)
        epoch, start = epoch + 1, 0


def set_up(
    model: JEM,
    recipe: Recipe,
    train: Any,  # noqa: ANN401
    seed: int,
    ranks: Processes,
) -> tuple[StepContext, Batches]:
    """Make what training needs of a recipe, now that the data are known.

    Args:
        model: The model, on its device; it is given input shape, class names and domain where it
            has none, and the settings of its chains.
        recipe: The recipe; what it leaves open is settled here.
        train: Training examples, a Dataset of (x, y).
        seed: The run's seed.
        ranks: The processes of the run.

    Returns:
        The method (with the settled recipe, chains and class weights) and the batches.

    Raises:
        InputError: If the data do not fit the model.
    """
    x, labels = examples_of(train)
    all_labels = _labels_of(train, labels, every=recipe.class_weight == "balanced")
    num_classes = check_network(model, x[:2], all_labels)
    with lowered(recipe.precision, model.device):
        check_no_softmax(model, x[:2].to(model.device))
    check_images(recipe, x[:1])
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(
            "the network has no parameter to train: set `requires_grad` of those that may change"
        )
    if model.input_shape is None:
        model.input_shape = tuple(x.shape[1:])
    if model.classes is None:
        model.classes = tuple(str(k) for k in range(num_classes))
    if model.domain is None:
        model.domain = domain_of(x)
    check_domain(model.domain, x)

    def stream(name: str, batch_size: int) -> BatchStream:
        made = BatchStream(train, batch_size, seed=seed, name=name, device=model.device)
        ranks.share(made.batch_size, "batch_size")
        return made

    labelled = stream("labelled", recipe.batch_size)
    recipe = _settled(recipe, x.shape[1:], len(labelled), ranks)
    generative = None
    if recipe.separate_density_batches:
        generative = stream("generative", recipe.density_batch_size or recipe.batch_size)
    check_batch_size(model, recipe, labelled.batch_size, x[:1])
    class_weight = None
    if recipe.class_weight == "balanced":
        class_weight = balanced_class_weights(all_labels, num_classes).to(model.device)
    negatives, outliers = None, None
    if recipe.generative:
        if recipe.epochs:
            check_gradient(model, x[:2], recipe.precision)
        outliers = make_outliers(model, recipe, x, labels, num_classes)
        generator = named_generator(ranks.seed(seed), "chains", 0, device=model.device)
        negatives = make_negatives(
            model, recipe, x, labels, num_classes, ranks, generator=generator
        )
    forward = ranks.synchronised(model, forward_of(recipe), x[:1].to(model.device))
    method = StepContext(recipe, negatives, class_weight, ranks=ranks, forward=forward)
    return method, Batches(recipe, labelled, generative, outliers, ranks)


def _settled(recipe: Recipe, shape: Sequence[int], steps: int, ranks: Processes) -> Recipe:
    """The recipe with nothing left open, and an outlier or more for each process if for any."""
    asked, recipe = recipe.outlier_count, recipe.resolved(shape, steps)
    count = recipe.outlier_count or 0
    if asked is None:
        count = ranks.count * -(-count // ranks.count)
    ranks.share(count, "outlier_count")
    return replace(recipe, outlier_count=count)


def make_outliers(
    model: JEM, recipe: Recipe, x: Tensor, labels: Tensor, num_classes: int
) -> Outliers | None:
    """What makes the outliers of a run, or None where it has none; see `make_negatives`."""
    if not recipe.outlier_count:
        return None
    assert model.domain is not None, "set before outliers are made"
    known = labels if num_classes > 1 else torch.zeros_like(labels)
    gaussians = recipe.init != "gaussian"
    outliers = Outliers(*model.domain, x, known, num_classes, gaussians=gaussians)
    return outliers.to(model.device)


def make_negatives(
    model: JEM,
    recipe: Recipe,
    x: Tensor,
    labels: Tensor,
    num_classes: int,
    ranks: Processes,
    *,
    generator: torch.Generator,
) -> PersistentChains:
    """Chains of a run; their settings are left in the model, for sampling from it.

    Args:
        model: The model, whose domain is known.
        recipe: The recipe.
        x: Training inputs, shape (N, *shape).
        labels: Class indices, shape (N,).
        num_classes: K.
        ranks: Processes that the chains are divided among.
        generator: Source of all randomness of the chains, on the model's device.
    """
    assert model.domain is not None, "set before chains are made"
    assert recipe.init is not None, "settled"
    assert recipe.step_size is not None, "settled"
    assert recipe.noise_std is not None, "settled"
    assert recipe.sample_steps is not None, "settled"
    assert recipe.buffer_size is not None, "settled"
    assert recipe.reinit_prob is not None, "settled"
    labels = labels if num_classes > 1 else torch.zeros_like(labels)
    frequencies = torch.bincount(labels, minlength=num_classes).float() / len(labels)
    init = fresh = make_start(recipe.init, model.domain, x, labels, num_classes)
    if recipe.sample_init != recipe.init:
        fresh = make_start(recipe.sample_init, model.domain, x, labels, num_classes)
    model.sampler = SamplerSettings(
        init=fresh,
        num_steps=recipe.sample_steps,
        step=LangevinStep(
            recipe.step_size,
            recipe.noise_std,
            recipe.langevin_grad_clamp,
            recipe.max_rms,
            recipe.gradient_blur or 0.0,
        ),
        class_frequencies=frequencies,
        class_conditional_chains=recipe.class_conditional_chains,
        trained_on_outliers=bool(recipe.outlier_count),
        trained_on_noise=recipe.init != "gaussian",
    )
    buffer = ReplayBuffer.from_init(
        init,
        ranks.share(recipe.buffer_size, "buffer_size"),
        generator=generator,
        class_frequencies=frequencies if recipe.class_conditional_chains else None,
    )
    return PersistentChains(
        buffer=buffer,
        init=deepcopy(init).to(generator.device),  # the model keeps its own, which stays here
        count=ranks.share(recipe.num_chains, "num_chains"),
        reinit_prob=recipe.reinit_prob,
        replacement=recipe.replacement,
        step=model.sampler.step,
        bounds=model.bounds() if recipe.clip_to_domain else None,
        generator=generator,
    )


def domain_of(x: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of inputs: [0, 1] or [-1, 1] for images in it, else each range widened by a tenth.

    Args:
        x: Training inputs, shape (N, *shape).

    Returns:
        (low, high), scalars for images, of one input's shape otherwise.
    """
    if x.ndim == 4:
        low, high = x.min(), x.max()
        if low >= -1 and high <= 1:
            return torch.tensor(0.0 if low >= 0 else -1.0), torch.tensor(1.0)
    else:
        low, high = x.amin(dim=0), x.amax(dim=0)
    # A constant component gets room too, enough to be seen beside a large constant in float32.
    width = torch.where(high > low, high - low, high.abs().clamp_min(10.0))
    return low - 0.1 * width, high + 0.1 * width


def make_start(
    kind: str, domain: tuple[Tensor, Tensor], x: Tensor, labels: Tensor, num_classes: int
) -> BaseDistribution:
    """Start of a recipe, fitted to training data where it needs any.

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
    if kind == "contrast":
        return ContrastBase(low, high, shape)
    gaussian = GaussianBase.fit(x, labels, num_classes, bounds=domain)
    if kind == "gaussian":
        return gaussian
    parts: list[BaseDistribution] = [
        UniformBase(low, high, shape),
        ContrastBase(low, high, shape),
        gaussian,
    ]
    return MixtureBase(parts, [1.0, 1.0, 1.0])


def _labels_of(train: Any, some: Tensor, *, every: bool) -> Tensor:  # noqa: ANN401
    """All labels where they are at hand or needed, for the examples may lack a rare class."""
    if isinstance(train, DataPart | LazyPart):
        return train.y
    return torch.tensor([int(train[i][1]) for i in range(len(train))]) if every else some


def examples_of(train: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    """Inputs and labels to fit starts on: all in memory, or some of a data set that is read.

    Those are spread over all of it, for a data set may be sorted by class; always the same.

    Raises:
        InputError: If an input that was read is not finite.
    """
    if isinstance(train, DataPart):
        return train.x, train.y
    order = torch.randperm(len(train), generator=named_generator(0, "examples"))
    rows = order[:MOST_EXAMPLES].sort().values.tolist()
    pairs = [train[i] for i in rows]
    x = torch.stack([x for x, _ in pairs])
    bad = (~x.flatten(1).isfinite().all(dim=1)).nonzero()
    if len(bad):
        raise InputError(
            f"training inputs must be finite, but example {rows[int(bad[0])]} holds NaN or "
            "infinity: mend it or leave it out"
        )
    return x, torch.tensor([int(y) for _, y in pairs])
