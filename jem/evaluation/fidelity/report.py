"""How good samples are: whether they look real, cover the data, obey their class, and are new.

Completions are measured too: is the class that was hidden in the missing half there again?

All features are those of a reference classifier, whose name belongs to every figure. The same
figures of held-out real inputs stand beside those of samples: no sample can be expected to do
better, and the distances are not 0 for real inputs either.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jem.checks import check_integer
from jem.data.splits import DataPart, LazyPart, choose_rows, draw_subset
from jem.errors import InputError
from jem.evaluation.fidelity.distances import (
    diversity,
    frechet_distance,
    nearest_distances,
    precision_recall,
)
from jem.evaluation.fidelity.reference_classifier import (
    ReferenceClassifier,
    train_reference_classifier,
)
from jem.evaluation.ood.metrics import ood_metrics
from jem.evaluation.statistics import (
    Estimate,
    difference_estimate,
    estimate_of,
    rows_by_block,
    share_estimate,
)
from jem.generation import inpaint
from jem.model import JEM
from jem.randomness import derive_seed

Part = DataPart | LazyPart

REFERENCE_LIMIT = 5_000
"""Training inputs, and samples, that distances in feature space look at."""

REFERENCE_ENTRIES = 16_000_000
"""Numbers that those inputs may hold: fewer are taken of images beyond 32x32 in colour."""

NEIGHBOURS = 5
"""k of precision and recall."""


@dataclass(frozen=True)
class SetFidelity:
    """Figures of one set of inputs, measured against the training data.

    Attributes:
        num: Inputs measured, N.
        agreement: Share in which the reference classifier sees the class asked for (for real
            inputs, the true one: its accuracy); higher is better.
        diversity: Mean distance of pairs within a class, over that of training inputs of the
            class; 1 is as varied as the data, near 0: samples of a class look alike.
        frechet: Frechet distance to the training data; lower is better. NaN where N is no larger
            than the number of features.
        precision: Share inside the support of the training data; higher is better.
        recall: Share of training inputs inside the support of the set; higher is better.
        classification_accuracy: Share of test inputs that a network of the same kind classifies
            rightly after training on the set (for the real row: on as many *training* inputs);
            higher is better.
    """

    num: int
    agreement: Estimate
    diversity: Estimate
    frechet: Estimate
    precision: Estimate
    recall: Estimate
    classification_accuracy: Estimate


@dataclass(frozen=True)
class FidelityReport:
    """What `fidelity` measured.

    Attributes:
        reference: Name of the reference classifier.
        num_features: F, of the reference classifier.
        samples: Figures of the samples.
        real: The same figures of as many test inputs, to compare with.
        nearer: Probability that a sample is nearer to the training data than a test input is, in
            [0, 1]: 0.5 for perfect samples, near 1 for memorised or too smooth ones.
    """

    reference: str
    num_features: int
    samples: SetFidelity
    real: SetFidelity
    nearer: Estimate


def fidelity(
    samples: Tensor,
    labels: Tensor,
    *,
    train: Part,
    test: Part,
    reference: ReferenceClassifier,
    seed: int,
    num_bootstrap: int = 100,
) -> FidelityReport:
    """Measure samples against training data, and as many test inputs in the same way.

    Both rows hold N inputs, the least of the numbers of samples, of test and training inputs, and
    5,000 (less for large images): what more there is, is left out at random, since most figures
    depend on N. Draw labels at the class frequencies of the data, or the difference counts as one
    of the samples.

    Args:
        samples: Samples in the network's units, shape (M, *shape), M > 5.
        labels: The classes asked for, shape (M,).
        train: The training part; all of it is searched for nearest inputs.
        test: The test part.
        reference: A classifier trained on the training part.
        seed: Decides what is left out, bootstrap replicates, and the networks that learn from
            samples.
        num_bootstrap: Replicates behind the standard error of the Frechet distance.

    Raises:
        InputError: If a set holds no more than 5 inputs.

    References:
        Ravuri and Vinyals (2019), arXiv:1905.10887, for the classification accuracy; the
        functions that this one calls name the others.
    """
    num = min(len(samples), len(test), len(train), REFERENCE_LIMIT)
    check_integer("number of samples, test and training inputs", num, NEIGHBOURS + 1)
    x_train, y_train = draw_subset(
        train, REFERENCE_LIMIT, seed=seed, name="reference", max_entries=REFERENCE_ENTRIES
    )
    num, num_classes = min(num, len(x_train)), reference.num_classes
    kept = choose_rows(len(samples), num, seed=seed, name="take")
    x, y = samples.detach().cpu()[kept], labels.cpu()[kept]
    x_test, y_test = draw_subset(test, num, seed=seed, name="test")
    features = reference.features(x_train)
    alike = features[choose_rows(len(x_train), num, seed=seed, name="support")]

    def accuracy_after_training_on(x: Tensor, y: Tensor) -> Estimate:
        learner = train_reference_classifier(x, y, num_classes, seed=seed)
        return share_estimate(learner.predict(x_test) == y_test)

    def figures_of(x: Tensor, y: Tensor, learned: Estimate) -> SetFidelity:
        fake = reference.features(x)
        return SetFidelity(
            num=num,
            agreement=share_estimate(reference.predict(x) == y),
            diversity=diversity(features, y_train, fake, y, num_classes),
            frechet=frechet_distance(features, fake, num_bootstrap=num_bootstrap, seed=seed),
            **precision_recall(alike, fake, NEIGHBOURS)._asdict(),
            classification_accuracy=learned,
        )

    # Training data on disk are read once.
    near, near_test = nearest_distances(torch.cat([x, x_test]), _batches(train)).split(num)
    rows = choose_rows(len(x_train), num, seed=seed, name="take")
    learned = accuracy_after_training_on(x_train[rows], y_train[rows])
    return FidelityReport(
        reference=reference.name,
        num_features=reference.num_features,
        samples=figures_of(x, y, accuracy_after_training_on(x, y)),
        real=figures_of(x_test, y_test, learned),
        nearer=estimate_of(ood_metrics(-near, -near_test), "auroc"),
    )


def _batches(part: Part) -> Iterator[Tensor]:
    start = 0
    for rows in rows_by_block(len(part), part[0][0].numel()):
        yield part[start : start + rows][0]
        start += rows


# -- completions ----------------------------------------------------------------------------------

COMPLETION_LIMIT = 20_000
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
            places are grey), and each filling.
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
    x_train, _ = draw_subset(train, COMPLETION_LIMIT, seed=seed, name="completion reference")
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

    low, high = model.bounds("cpu") or (-1.0, 1.0)
    pictures = {ORIGINAL: x, KEPT: torch.where(known, x, (low + high) / 2)} | fillings
    return CompletionReport(
        reference=reference.name,
        num_inputs=len(x),
        fillings={name: figures_of(name) for name in fillings},
        pictures={name: z[:SHOWN] for name, z in pictures.items()},
    )
