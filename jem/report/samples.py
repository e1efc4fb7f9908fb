"""Sections of a report on what chains draw: samples, completions, and chains that run on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from jem.errors import InputError
from jem.evaluation.chains import chain_health
from jem.evaluation.examples import choose_rows, draw_subset
from jem.evaluation.fidelity.completion import completion_accuracy
from jem.evaluation.fidelity.reference_classifier import (
    LARGEST_SIDE,
    LARGEST_TRAINING_SET,
    Judge,
    train_judge,
)
from jem.evaluation.fidelity.report import fidelity
from jem.generation import sample
from jem.model import JEM
from jem.report.subject import Measured, Subject

AFFORDABLE = 20_000_000
"""Pixels times moves that samples may cost, completions as much, and chains that run on."""

JUDGED_PIXELS = 8_000_000
"""Pixels of all training inputs that the judge learns from, as large as it sees them."""

MOST_SAMPLES, FEWEST_SAMPLES = 500, 100
"""Fresh samples; the Frechet distance needs more of them than the judge has features."""

SHOWN_OF_CLASS = 10
"""Samples of a class that are shown, and that are drawn of every class at the least."""

MOST_COMPLETED, FEWEST_COMPLETED = 96, 32
"""Test images whose lower half is removed and completed, once each: whole blocks of chains."""

MOST_CHAINS, FEWEST_CHAINS, CHAIN_MOVES = 64, 16, 400
"""Persistent chains that are run on, and their moves."""


def judge_of(subject: Subject, seed: int) -> Judge:
    """The independent classifier that looks at samples and completions."""
    model, splits = subject.model, subject.splits
    if model.sampler is None:
        raise InputError("the model was trained without chains: it draws no samples")
    num_classes = len(splits.classes)
    if num_classes < 2 or len(model.sampler.class_frequencies) < 2:
        raise InputError("samples are judged by a classifier, and the model has no classes")
    pixels = math.prod(min(side, LARGEST_SIDE) for side in splits.input_shape[1:])
    limit = min(LARGEST_TRAINING_SET, JUDGED_PIXELS // pixels)
    x_train, y_train = draw_subset(splits.train, limit, seed=seed, name="judge")
    return train_judge(x_train, y_train, num_classes, seed=seed, data=splits.name)


def samples_section(
    subject: Subject, measured: Measured, judge: Judge, seed: int
) -> dict[str, Any]:
    """Fidelity of fresh samples (`fresh`), and of persistent chains where there are any."""
    model, splits = subject.model, subject.splits
    frequencies = model.sampler.class_frequencies.cpu()
    fewest = max(FEWEST_SAMPLES, SHOWN_OF_CLASS * len(frequencies))
    wanted = affordable(splits.input_shape, model.sampler.num_steps, fewest, MOST_SAMPLES)
    count = min(wanted, len(splits.test))
    labels = _labels(frequencies, count, seed)
    drawn = sample(model, labels, seed=seed).cpu()
    measured.images["fresh samples by class"] = _by_class(model, drawn, labels, seed)
    parts: dict[str, Any] = {"train": splits.train, "test": splits.test, "judge": judge}
    fresh = fidelity(drawn, labels, **parts, seed=seed)
    found = {"fresh": fresh.to_dict()}
    if subject.chains is not None:
        chains, of_class = subject.chains.cpu(), subject.chain_labels
        measured.images["persistent chains"] = chains[:100]
        rows = choose_rows(len(chains), count, seed=seed, name="report chains")
        of_class = None if of_class is None else of_class.cpu()[rows]
        found["chains"] = fidelity(
            chains[rows], of_class, **parts, seed=seed, real=fresh.real
        ).to_dict()
    return found


def affordable(shape: Sequence[int], num_moves: int, fewest: int, most: int) -> int:
    """How many inputs of a shape may be moved so often: fewer of large images, never too few.

    Args:
        shape: Of one input; channels do not count, and a row of a table counts as one pixel.
        num_moves: Langevin moves of each.
        fewest: What the figures need, wherever it is below `most`.
        most: More tells little.

    Example:
        >>> [affordable((1, side, side), 200, 100, 500) for side in (8, 28, 64)]
        [500, 127, 100]
    """
    paid = AFFORDABLE // max(1, num_moves * math.prod(shape[1:]))
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
    classes = torch.arange(min(len(model.sampler.class_frequencies), 10))
    lacking = torch.cat(
        [k.repeat(max(0, SHOWN_OF_CLASS - int((labels == k).sum()))) for k in classes]
    )
    if len(lacking):
        more = sample(model, lacking, seed=seed + 1).cpu()
        drawn, labels = torch.cat([drawn, more]), torch.cat([labels, lacking])
    return torch.cat([drawn[labels == k][:SHOWN_OF_CLASS] for k in classes])


def completions_section(
    subject: Subject, measured: Measured, judge: Callable[[], Judge], seed: int
) -> dict[str, Any]:
    """Accuracy and error of fillings of the lower half of test images."""
    model, splits = subject.model, subject.splits
    if splits.kind != "image":
        raise InputError("completions are of images")
    seen_by, moves = judge(), model.sampler.num_steps
    found = completion_accuracy(
        model,
        train=splits.train,
        test=splits.test,
        seed=seed,
        judge=seen_by,
        count=affordable(splits.input_shape, moves, FEWEST_COMPLETED, MOST_COMPLETED),
        num_draws=1,
    )
    low, high = model.bounds("cpu") or (-1.0, 1.0)
    shown = [
        torch.where(x.isnan(), (low + high) / 2, x)  # what was removed is grey
        for x in found.pictures.values()
    ]
    measured.images["completions"] = torch.cat(shown)
    figures = found.to_dict()
    figures["pictures"] = list(found.pictures)
    figures["rows"] = {row["name"]: _completion_row(row) for row in found.rows}
    return figures


def _completion_row(row: dict[str, Any]) -> dict[str, Any]:
    """The accuracy beside its interval."""
    accuracy = {"value": row["accuracy"], "low": row["low"], "high": row["high"]}
    return {"accuracy": accuracy, "rmse": row["rmse"]}


def chains_section(subject: Subject, x: Tensor, seed: int) -> dict[str, Any]:
    """Whether persistent chains, run on, stay level with the data."""
    if subject.chains is None:
        raise InputError("the run kept no chains")
    health = chain_health(
        subject.model,
        x,
        subject.chains,
        labels=subject.chain_labels,
        num_steps=CHAIN_MOVES,
        max_chains=affordable(x.shape[1:], CHAIN_MOVES, FEWEST_CHAINS, MOST_CHAINS),
        seed=seed,
    )
    return health.to_dict()
