"""Completions measured: is the class that was hidden in the missing half there again?"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jem.data.splits import DataPart, LazyPart, draw_subset
from jem.errors import InputError
from jem.evaluation.fidelity.reference_classifier import ReferenceClassifier
from jem.evaluation.statistics import Estimate, difference_estimate, share_estimate
from jem.generation import inpaint
from jem.model import JEM
from jem.randomness import derive_seed

Part = DataPart | LazyPart

REFERENCE_LIMIT = 20_000
"""Training inputs that the mean and the nearest neighbour are taken from; more are sampled."""

ORIGINAL, KEPT = "original", "kept"
MEAN_FILL, NEAREST, ONE_DRAW = "mean fill", "nearest neighbour", "one completion"

SHOWN = 10
"""Inputs in the pictures."""


@dataclass(frozen=True)
class Filling:
    """How well one way to fill the missing half brings the class back.

    Attributes:
        accuracy: Share of filled inputs in which the reference classifier sees the true class;
            higher is better.
        rmse: Root mean square error in the missing half, in the network's units; lower is better.
        gain_over_mean: Accuracy minus that of the mean fill, inputs paired; None for the original
            and the simple fillings.
        gain_over_nearest: Accuracy minus that of the nearest neighbour, likewise.
    """

    accuracy: Estimate
    rmse: float
    gain_over_mean: Estimate | None = None
    gain_over_nearest: Estimate | None = None


@dataclass(frozen=True, eq=False)
class CompletionReport:
    """What `completion_accuracy` measured.

    Attributes:
        reference: Name of the reference classifier.
        num_inputs: N, test inputs completed.
        fillings: Name -> figures; that of the original is what a perfect filling would reach.
        pictures: Name -> the first inputs, (10, *shape): `original`, `kept` (missing
            places are NaN), and each filling.
    """

    reference: str
    num_inputs: int
    fillings: dict[str, Filling]
    pictures: dict[str, Tensor]


def upper_half(shape: Sequence[int]) -> Tensor:
    """The mask that keeps the upper half of images, shape (C, H, W).

    Raises:
        InputError: If inputs are not images.
    """
    if len(shape) != 3 or shape[1] < 2:
        raise InputError(f"completions are of images, but inputs have shape {tuple(shape)}")
    known = torch.zeros(tuple(shape), dtype=torch.bool)
    known[:, : shape[1] // 2] = True
    return known


def completion_accuracy(
    model: JEM,
    *,
    train: Part,
    test: Part,
    seed: int,
    reference: ReferenceClassifier,
    count: int = 128,
) -> CompletionReport:
    """Hide the lower half of test images, fill it, and ask a reference classifier what it sees.

    Fillings: the mean of the training images; what stands there in the training image nearest in
    the upper half; and one completion by the model. No filling is told the class; the nearest
    neighbour sees all training images.

    Args:
        model: A model that can draw.
        train: The training part.
        test: The test part.
        seed: Decides which test images, and noise.
        reference: A classifier trained on whole training images.
        count: Test images at most.

    Returns:
        Accuracies, errors, differences and pictures.

    Raises:
        InputError: If the model draws nothing, or inputs are not images.
    """
    x_train, _ = draw_subset(train, REFERENCE_LIMIT, seed=seed, name="completion reference")
    x, y = draw_subset(test, count, seed=seed, name="completion")
    known = upper_half(x.shape[1:])
    queries, examples = x[:, known], x_train[:, known]
    nearest = torch.cat([torch.cdist(q, examples).argmin(dim=1) for q in queries.split(256)])
    fillings = {
        ORIGINAL: x,
        MEAN_FILL: torch.where(known, x, x_train.mean(dim=0)),
        NEAREST: torch.where(known, x, x_train[nearest]),
        ONE_DRAW: inpaint(model, x, known[None], seed=derive_seed(seed, "completion", 0)),
    }
    correct = {name: reference.predict(z) == y for name, z in fillings.items()}

    def figures_of(name: str) -> Filling:
        error = (fillings[name] - x)[:, ~known].double().square().mean().sqrt()
        simple = name in (ORIGINAL, MEAN_FILL, NEAREST)
        others = () if simple else (correct[MEAN_FILL], correct[NEAREST])
        gains = (difference_estimate(correct[name], other) for other in others)
        return Filling(share_estimate(correct[name]), float(error), *gains)

    pictures = {ORIGINAL: x, KEPT: x.masked_fill(~known, torch.nan)} | fillings
    return CompletionReport(
        reference=reference.name,
        num_inputs=len(x),
        fillings={name: figures_of(name) for name in fillings},
        pictures={name: z[:SHOWN] for name, z in pictures.items()},
    )
