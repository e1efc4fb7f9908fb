"""What a run is made of: domain, batches, objective, and the chains that suit them."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from jem.checks import refuse
from jem.data.batches import BatchStream, augment
from jem.errors import InputError
from jem.model import JEM
from jem.networks import Companion, Factored, FactoredHead, Towers
from jem.objectives import OBJECTIVES, Batch, CrossEntropy, Objective, balanced_class_weights
from jem.randomness import named_generator
from jem.sampling.buffer import PersistentChains, ReplayBuffer
from jem.sampling.outliers import Outliers
from jem.training.fitting import domain_of, examples_of, fit_sampler, labels_of
from jem.training.probe import probe
from jem.training.process import Processes
from jem.training.recipe import Recipe, ResolvedRecipe
from jem.training.update import UpdateContext


@dataclass(frozen=True)
class Batches:
    """What training sees of the data, changed at random as the recipe says.

    Attributes:
        recipe: The recipe.
        labelled: Examples of the classifier; they make an epoch.
        density: Examples of the density, or None if it sees those of the classifier.
        outliers: Makes outliers, or None.
        ranks: Processes, each of which takes its part of every batch.
        seed: Decides the random changes, batch by batch, whatever else draws random numbers: so
            towers see the batches of `plain`.
    """

    recipe: ResolvedRecipe
    labelled: BatchStream
    density: BatchStream | None
    outliers: Outliers | None
    ranks: Processes
    seed: int

    def __len__(self) -> int:
        """Updates of an epoch."""
        return len(self.labelled)

    def epoch(self, epoch: int, start: int, *, generator: torch.Generator) -> Iterator[Batch]:
        """Give the batches of one epoch.

        Args:
            epoch: Which one, from 0: it decides the order of the examples.
            start: Batches of it that were already seen.
            generator: Source of the outliers.
        """
        recipe, part = self.recipe, self.ranks.part
        seen = epoch * len(self) + start
        other = None if self.density is None else _endless(self.density, seen)

        def changed(x: Tensor, changes: torch.Generator) -> Tensor:
            shift, flip, noise = recipe.augment_shift, recipe.augment_flip, recipe.augment_noise
            return augment(x, shift=shift, flip=flip, noise_std=noise, generator=changes)

        for number, (x, labels) in enumerate(self.labelled.epoch(epoch, start), seen):
            changes = named_generator(self.seed, "changes", number, device=generator.device)
            x_density = None if other is None else part(next(other)[0])
            x, labels = changed(part(x), changes), part(labels)
            if x_density is None:
                x_density = x
            elif recipe.augment_density:
                x_density = changed(x_density, changes)
            outliers = None
            if self.outliers is not None:
                count = -(-recipe.outlier_count // self.ranks.count)  # each makes one or more
                outliers = self.outliers.draw(count, x_density, generator=generator)
            yield Batch(x, labels, x_density, outliers)


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
) -> tuple[UpdateContext, Batches]:
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
    if recipe.head == "companion" and not isinstance(model.network, Companion):
        raise InputError(
            "the head 'companion' of the recipe needs a companion: give it "
            "jem.JEM(jem.companion(network, input_shape=..., num_classes=...))"
        )
    x, labels = examples_of(train)
    all_labels = labels_of(train, labels, every=recipe.class_weight == "balanced")

    def stream(name: str, batch_size: int) -> BatchStream:
        made = BatchStream(train, batch_size, seed=seed, name=name, device=model.device)
        ranks.share(made.batch_size, "batch_size")
        return made

    labelled = stream("labelled", recipe.batch_size)
    resolved = recipe.resolved(x.shape[1:], len(labelled), model.classes or ())
    if isinstance(model.network, Towers):  # what a run is resumed with
        resolved = replace(resolved, head="towers")
    objective = objective or make_objective(resolved)
    num_classes = probe(model, resolved, objective, x, all_labels, labelled.batch_size)
    _set_up_model(model, x, num_classes)

    density = None
    if recipe.separate_density_batches:
        # The name is part of the seed of the order.
        density = stream("generative", recipe.density_batch_size or recipe.batch_size)
    if class_weight is None and recipe.class_weight == "balanced":
        class_weight = balanced_class_weights(all_labels, num_classes)
    elif class_weight is not None and class_weight.shape != (num_classes,):
        refuse("class_weight", f"have shape ({num_classes},)", tuple(class_weight.shape))
    weight = None if class_weight is None else class_weight.to(model.device)

    context = UpdateContext(
        resolved,
        objective,
        CrossEntropy(recipe.label_smoothing, weight),
        # Of objective and outliers; the name is part of the seed.
        named_generator(ranks.seed(seed), "augmentation", device=model.device),
        ranks=ranks,
    )
    outliers = None
    if context.trains_density:
        labels = labels if num_classes > 1 else torch.zeros_like(labels)
        init, made_up = fit_sampler(model, resolved, x, labels, num_classes)
        if "chains" in objective.needs:
            outliers = made_up
            generator = named_generator(ranks.seed(seed), "chains", 0, device=model.device)
            size = ranks.share(resolved.buffer_size, "buffer_size")
            chains = PersistentChains(
                buffer=ReplayBuffer.from_init(init, size, generator=generator),
                init=deepcopy(init).to(generator.device),  # the model's own stays on the CPU
                count=ranks.share(resolved.num_chains, "num_chains"),
                reinit_prob=resolved.reinit_prob,
                replacement=resolved.replacement,
                step=model.sampler.step,
                bounds=model.bounds() if resolved.clip_to_domain else None,
                generator=generator,
            )
            context = replace(context, chains=chains)
    ranks.copy(model.parameters())
    return context, Batches(resolved, labelled, density, outliers, ranks, ranks.seed(seed))


def head_advice(model: JEM, context: UpdateContext) -> str:
    """What a network with the plain reading misses under a recipe made for the factored head."""
    known = Factored, FactoredHead, Companion, Towers
    plain = not any(isinstance(module, known) for module in model.network.modules())
    useful = context.trains_density and len(model.classes or ()) > 1
    if context.recipe.head not in ("factored", "towers") or not plain or not useful:
        return ""
    return (
        "one network for both may be a worse classifier: jem.networks.towers(network, "
        "input_shape=..., num_classes=...) puts a density beside it that costs no accuracy"
    )


def make_objective(recipe: ResolvedRecipe) -> Objective:
    """The objective that a recipe names; its fields that a recipe has too are taken from there."""
    kind = OBJECTIVES[recipe.objective if recipe.trains_density else "none"]
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
