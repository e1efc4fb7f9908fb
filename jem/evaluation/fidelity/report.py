"""How good samples are: whether they look real, cover the data, obey their class, and are new.

All features are those of a reference classifier, whose name belongs to every figure. The same
figures of held-out real inputs stand beside those of samples: no sample can be expected to do
better, and the distances are not 0 for real inputs either.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from jem.checks import check_integer
from jem.data.splits import DataPart, LazyPart, choose_rows, draw_subset
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
    estimate_of,
    rows_by_block,
    share_estimate,
)

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
