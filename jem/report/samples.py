"""Sections of a report on what chains draw: samples, completions, and chains that run on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jem.data.splits import draw_subset
from jem.errors import InputError
from jem.evaluation.chains import ChainHealth, chain_health
from jem.evaluation.fidelity.reference_classifier import (
    LARGEST_SIDE,
    ReferenceClassifier,
    train_reference_classifier,
)
from jem.evaluation.fidelity.report import (
    CompletionReport,
    FidelityReport,
    completion_accuracy,
    fidelity,
)
from jem.generation import sample
from jem.model import JEM
from jem.report.subject import Subject

AFFORDABLE = 20_000_000
"""Pixels times Langevin steps that samples may cost; completions as much; chains as much."""

LARGEST_TRAINING_SET, REFERENCE_PIXELS = 20_000, 8_000_000
"""Inputs that the reference classifier learns from, and pixels of all of them as it sees them."""

MOST_SAMPLES, FEWEST_SAMPLES = 500, 100
"""Fresh samples; the Frechet distance needs more than there are features."""

SHOWN_OF_CLASS = 10
"""Samples of a class that are shown, and that are drawn of every class at the least."""

MOST_COMPLETED, FEWEST_COMPLETED = 96, 32
"""Test images whose lower half is removed and completed once: whole blocks of chains."""

MOST_CHAINS, FEWEST_CHAINS, CHAIN_STEPS = 64, 16, 400
"""Persistent chains that are run on, and their steps."""


@dataclass(frozen=True)
class Samples:
    """Quality of samples.

    Attributes:
        fresh: Figures of new samples.
        fresh_by_class: Fresh samples to show, ten of each class.
        persistent: Persistent chains to show.
    """

    fresh: FidelityReport
    fresh_by_class: Tensor
    persistent: Tensor | None


def reference_classifier_of(subject: Subject, seed: int) -> ReferenceClassifier:
    """Train the reference classifier that looks at samples and completions.

    Raises:
        InputError: If the model draws no samples, or has no classes.
    """
    model, splits = subject.model, subject.splits
    if model.sampler is None:
        raise InputError("the model was trained without chains: it draws no samples")
    num_classes = len(splits.classes)
    if num_classes < 2 or len(model.sampler.class_frequencies) < 2:
        raise InputError("samples are measured by a classifier, and the model has no classes")
    pixels = math.prod(min(side, LARGEST_SIDE) for side in splits.input_shape[1:])
    limit = min(LARGEST_TRAINING_SET, REFERENCE_PIXELS // pixels)
    x, y = draw_subset(splits.train, limit, seed=seed, name="judge")
    return train_reference_classifier(x, y, num_classes, seed=seed, data=splits.name)


def samples_section(subject: Subject, reference: ReferenceClassifier, seed: int) -> Samples:
    """Measure fresh samples, and keep some of them and of the persistent chains to show."""
    model, splits, run = subject.model, subject.splits, subject.run
    frequencies = model.sampler.class_frequencies.cpu()
    fewest = max(FEWEST_SAMPLES, SHOWN_OF_CLASS * len(frequencies))
    wanted = affordable(splits.input_shape, model.sampler.num_steps, fewest, MOST_SAMPLES)
    count = min(wanted, len(splits.test))
    labels = _labels(frequencies, count, seed)
    drawn = sample(model, labels, seed=seed).cpu()
    return Samples(
        fresh=fidelity(
            drawn, labels, train=splits.train, test=splits.test, reference=reference, seed=seed
        ),
        fresh_by_class=_by_class(model, drawn, labels, seed),
        persistent=None if run.chains is None else run.chains[:100].cpu(),
    )


def affordable(shape: Sequence[int], num_steps: int, fewest: int, most: int) -> int:
    """How many inputs of a shape may take so many steps: fewer large images, never too few.

    Args:
        shape: Of one input; channels do not count, and a row of a table counts as one pixel.
        num_steps: Langevin steps of each.
        fewest: What the figures need, wherever it is below `most`.
        most: More tells little.

    Example:
        >>> [affordable((1, side, side), 200, 100, 500) for side in (8, 28, 64)]
        [500, 127, 100]
    """
    paid = AFFORDABLE // max(1, num_steps * math.prod(shape[1:]))
    return min(most, max(fewest, paid))


def _labels(frequencies: Tensor, count: int, seed: int) -> Tensor:
    """Classes to draw (count,), each as often as its frequency says, give or take one."""
    generator = torch.Generator().manual_seed(seed)
    edges = frequencies.double().cumsum(dim=0) / frequencies.double().sum()
    offset = torch.rand(1, generator=generator, dtype=torch.double)
    places = (torch.arange(count) + offset) / count
    labels = torch.searchsorted(edges, places).clamp(max=len(frequencies) - 1)
    return labels[torch.randperm(count, generator=generator)]


def _by_class(model: JEM, drawn: Tensor, labels: Tensor, seed: int) -> Tensor:
    """Samples to show, as many of each of the first classes; more are drawn where some lack."""
    num_classes = len(model.sampler.class_frequencies)
    counts = torch.bincount(labels, minlength=num_classes)[:10]
    classes = torch.arange(len(counts))
    lacking = classes.repeat_interleave((SHOWN_OF_CLASS - counts).clamp(min=0))
    if len(lacking):
        more = sample(model, lacking, seed=seed + 1).cpu()
        drawn, labels = torch.cat([drawn, more]), torch.cat([labels, lacking])
    return torch.cat([drawn[labels == k][:SHOWN_OF_CLASS] for k in classes])


def completions_section(
    subject: Subject, reference: ReferenceClassifier, seed: int
) -> CompletionReport:
    """Measure completions of the lower half of test images."""
    model, splits = subject.model, subject.splits
    steps = model.sampler.num_steps
    return completion_accuracy(
        model,
        train=splits.train,
        test=splits.test,
        seed=seed,
        reference=reference,
        count=affordable(splits.input_shape, steps, FEWEST_COMPLETED, MOST_COMPLETED),
    )


def chains_section(subject: Subject, x: Tensor, seed: int) -> ChainHealth:
    """Compare the persistent chains with test inputs `x`, and run them on."""
    if subject.run.chains is None:
        raise InputError("the run kept no chains")
    return chain_health(
        subject.model,
        x,
        subject.run.chains,
        num_steps=CHAIN_STEPS,
        max_chains=affordable(x.shape[1:], CHAIN_STEPS, FEWEST_CHAINS, MOST_CHAINS),
        seed=seed,
    )
