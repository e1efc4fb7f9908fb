"""How good samples are: whether they look real, cover the data, obey their class, and are new.

All features are those of a judge (`train_judge`), a small network of its own, whose name belongs
to every figure. The same figures of held-out real inputs stand beside those of samples: no sample
can be expected to do better, and the distances are not 0 for real inputs either.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from jem.checks import as_labels
from jem.data.splits import DataPart, LazyPart
from jem.errors import InputError
from jem.evaluation.examples import check_inputs, choose_rows, draw_subset
from jem.evaluation.fidelity.distances import frechet_distance, kernel_distance
from jem.evaluation.fidelity.neighbours import (
    diversity,
    nearest_distances,
    prdc,
    probability_nearer,
)
from jem.evaluation.fidelity.reference_classifier import Judge, train_judge
from jem.evaluation.statistics import (
    UNKNOWN,
    Estimate,
    mean_estimate,
    plain,
    rows_by_block,
    share_estimate,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    Part = DataPart | LazyPart

REFERENCE_LIMIT = 5_000
"""Training inputs, and samples, that distances in feature space look at."""

REFERENCE_ENTRIES = 16_000_000
"""Numbers that those inputs may hold: fewer are taken of images beyond 32x32 in colour."""

CLOSEST_SHARE = 0.01
"""A sample nearer to the training data than this share of test inputs counts as a copy."""


@dataclass(frozen=True)
class SetFidelity:
    """Figures of one set of inputs, measured against the training data.

    Attributes:
        num: Inputs measured, N.
        frechet: Frechet distance to the training data in the judge's features; low is good. NaN
            where N is no larger than the number of features.
        kernel: Kernel distance to the training data (unbiased MMD^2); low is good.
        precision: Share inside the support of the training data; high is good.
        recall: Share of training inputs inside the support of the set; high is good.
        density: Neighbourhoods of training inputs that hold an input, over k; 1 is par.
        coverage: Share of neighbourhoods of training inputs that hold one; high is good.
        agreement: Share in which the judge sees the class asked for (for real inputs, the true
            one: the judge's accuracy); high is good. NaN for samples without labels.
        agreement_by_class: The same of each class, shape (K,).
        classification_accuracy: Share of test inputs that a network of the judge's kind classifies
            rightly after training on the set (for the real row: on as many *training* inputs);
            high is good. NaN for samples without labels.
        nearest_distance: Mean Euclidean distance to the nearest training input, in the network's
            units. Much below that of test inputs: copies, or inputs smoother than real ones.
        diversity: Mean distance of pairs within a class in the judge's features, over that of
            training inputs of the class; 1 is par, near 0: samples of a class look alike.
        diversity_by_class: The same of each class, shape (K,).
        input_diversity: As `diversity`, of the inputs themselves, not their features.
    """

    num: int
    frechet: Estimate
    kernel: Estimate
    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate
    agreement: Estimate
    agreement_by_class: tuple[Estimate, ...]
    classification_accuracy: Estimate
    nearest_distance: Estimate
    diversity: Estimate
    diversity_by_class: tuple[Estimate, ...]
    input_diversity: Estimate


@dataclass(frozen=True)
class FidelityReport:
    """What `fidelity` measured; every `Estimate` has a standard error and a 95 % interval.

    Attributes:
        judge: Name of the judge: belongs to the name of every figure measured in its features.
        judge_checksum: SHA-256 of its weights.
        num_features: F, of the judge.
        num_given: Samples given; the rows measure `num` of them.
        num_train: Training inputs among which nearest ones were looked for.
        num_reference: Training inputs that Frechet and kernel distance and diversity compare
            with.
        k: Neighbours of precision, recall, density and coverage, which compare `num` inputs with
            `num` training inputs.
        samples: Figures of the samples.
        real: The same figures of as many test inputs: what to hold those of the samples against.
        nearer: Probability that a sample is nearer to the training data than a test input is, in
            [0, 1]; 0.5 is par, near 1 says memorised or smoother than real.
        copies: Share of samples nearer to the training data than 1 % of test inputs are; 0.01 is
            par.
    """

    judge: str
    judge_checksum: str
    num_features: int
    num_given: int
    num_train: int
    num_reference: int
    k: int
    samples: SetFidelity
    real: SetFidelity
    nearer: Estimate
    copies: Estimate

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values for JSON: an `Estimate` as a dict, what is unknown as None.

        Returns:
            One entry an attribute.
        """
        values: dict[str, Any] = plain(self)
        return values


class _Examples(NamedTuple):
    """Inputs with their classes, or None where nobody knows them."""

    x: Tensor  # (N, *shape)
    y: Tensor | None  # (N,)

    def take(self, count: int, seed: int) -> _Examples:
        """So many of them at random."""
        rows = choose_rows(len(self.x), count, seed=seed, name="take")
        return _Examples(self.x[rows], None if self.y is None else self.y[rows])


def fidelity(
    samples: Tensor | ArrayLike,
    labels: Tensor | ArrayLike | None,
    *,
    train: Part,
    test: Part,
    judge: Judge,
    seed: int,
    k: int = 5,
    num_bootstrap: int = 100,
    real: SetFidelity | None = None,
) -> FidelityReport:
    """Measure samples against training data, and as many test inputs in the same way.

    Both rows hold N inputs, the least of the numbers of samples, of test and training inputs, and
    5,000 (less for large images): what more there is, is left out at random, since most figures
    depend on N. Draw labels at the class frequencies of the data, or the difference counts as one
    of the samples. Fresh samples and persistent chains are different sets: measure each for
    itself.

    Stratified parts have the same class frequencies by construction, more alike than independent
    sets: the kernel distance of the real row may then lie a little below 0.

    Args:
        samples: Samples in the network's units, shape (M, *shape), M > k.
        labels: The classes asked for, shape (M,), of at least two classes; None for samples of no
            class (marginal chains), whose diversity is measured within classes the judge sees.
        train: The training part; all of it is searched for nearest inputs.
        test: The test part.
        judge: What `train_judge` made of the training part.
        seed: Decides what is left out, bootstrap replicates, and the networks that learn from
            samples.
        k: Neighbours of precision, recall, density and coverage.
        num_bootstrap: Replicates behind the standard error of the Frechet distance.
        real: The row of real inputs in a report with the same other arguments, on other samples;
            taken over if it holds as many inputs, which saves the time of measuring it again.

    Returns:
        Two rows of figures, and how near samples are to the training data.

    Raises:
        InputError: If samples, labels or parts do not fit each other, are too few, or not finite.

    References:
        Ravuri and Vinyals (2019), arXiv:1905.10887, for the classification accuracy score; the
        functions that this one calls name the others.
    """
    given = _checked(samples, labels, judge)
    x_train, y_train = draw_subset(
        train, REFERENCE_LIMIT, seed=seed, name="reference", max_entries=REFERENCE_ENTRIES
    )
    check_inputs(x_train, judge.input_shape, "train")
    num = _row_size(len(given.x), len(test), len(x_train), k)
    drawn = given.take(num, seed)
    held_out = _Examples(*draw_subset(test, num, seed=seed, name="test"))
    check_inputs(held_out.x, judge.input_shape, "test")
    both = torch.cat([drawn.x, held_out.x])  # training data on disk are read once
    near_samples, near_test = nearest_distances(both, _batches(train)).split(num)
    yardstick = _Yardstick(judge, x_train, y_train, held_out, k, num_bootstrap, seed)
    if real is None or real.num != num:
        lesson = _Examples(x_train, y_train).take(num, seed)
        real = yardstick.measure(held_out, lesson, near_test)
    return FidelityReport(
        judge=judge.name,
        judge_checksum=judge.checksum,
        num_features=judge.num_features,
        num_given=len(given.x),
        num_train=len(train),
        num_reference=len(x_train),
        k=k,
        samples=yardstick.measure(drawn, drawn, near_samples),
        real=real,
        nearer=probability_nearer(near_samples, near_test),
        copies=share_estimate(near_samples <= near_test.quantile(CLOSEST_SHARE)),
    )


@dataclass(frozen=True, eq=False)
class _Yardstick:
    """What a row of figures is measured with."""

    judge: Judge
    x_train: Tensor
    y_train: Tensor
    test: _Examples
    k: int
    num_bootstrap: int
    seed: int

    @cached_property
    def features(self) -> Tensor:
        """Features of the training inputs."""
        return self.judge.features(self.x_train)

    def measure(self, of: _Examples, lesson: _Examples, nearest: Tensor) -> SetFidelity:
        """Fill a row; the lesson is what a network learns from for the accuracy score."""
        fake, seen = self.judge.features(of.x), self.judge.predict(of.x)
        num, num_classes, seed = len(fake), self.judge.num_classes, self.seed
        alike = choose_rows(len(self.features), num, seed=seed, name="support")
        agreement, agreement_by_class = _agreement(seen, of.y, num_classes)
        classes = seen if of.y is None else of.y
        varied = diversity(self.features, self.y_train, fake, classes, num_classes)
        pixels = self.x_train.flatten(1), of.x.flatten(1)
        return SetFidelity(
            num=num,
            frechet=self._frechet(fake),
            kernel=kernel_distance(self.features, fake, seed=seed),
            **prdc(self.features[alike], fake, self.k)._asdict(),
            agreement=agreement,
            agreement_by_class=agreement_by_class,
            classification_accuracy=self._classification_accuracy(lesson),
            nearest_distance=mean_estimate(nearest),
            diversity=varied.mean,
            diversity_by_class=varied.by_class,
            input_diversity=diversity(
                pixels[0], self.y_train, pixels[1], classes, num_classes
            ).mean,
        )

    def _frechet(self, fake: Tensor) -> Estimate:
        if min(len(fake), len(self.features)) <= self.judge.num_features:
            return UNKNOWN
        return frechet_distance(
            self.features, fake, num_bootstrap=self.num_bootstrap, seed=self.seed
        )

    def _classification_accuracy(self, lesson: _Examples) -> Estimate:
        (x, y), (x_test, y_test) = lesson, self.test
        if y is None or y_test is None or len(y.unique()) < 2:
            return UNKNOWN
        return classification_accuracy_score(
            x, y, x_test, y_test, num_classes=self.judge.num_classes, seed=self.seed
        )


def classification_accuracy_score(
    samples: Tensor | ArrayLike,
    labels: Tensor | ArrayLike,
    x_test: Tensor | ArrayLike,
    y_test: Tensor | ArrayLike,
    *,
    num_classes: int,
    seed: int,
) -> Estimate:
    """Accuracy on real inputs of a classifier that learned from samples alone; high is good.

    The classifier is a fresh network of the judge's kind, trained as a judge is. Compare with one
    that learned from as many real inputs.

    Args:
        samples: Samples in the network's units, shape (N, *shape).
        labels: The classes asked for, shape (N,), of at least two classes.
        x_test: Real inputs that no sampler was trained on, shape (M, *shape).
        y_test: Their classes, shape (M,).
        num_classes: K.
        seed: Decides first weights and batches.

    Returns:
        The share classified rightly, with Wilson's interval over test inputs.

    Raises:
        InputError: As `train_judge`, or if the test inputs do not fit.

    References:
        Ravuri and Vinyals (2019), arXiv:1905.10887.
    """
    learner = train_judge(samples, labels, num_classes, seed=seed, data="samples")
    said = learner.predict(x_test)
    true = as_labels("y_test", y_test, len(said), num_classes)
    return share_estimate(said == true)


def _checked(
    samples: Tensor | ArrayLike, labels: Tensor | ArrayLike | None, judge: Judge
) -> _Examples:
    x = check_inputs(samples, judge.input_shape, "samples")
    if labels is None:
        return _Examples(x, None)
    y = as_labels("labels", labels, len(x), judge.num_classes)
    if len(y.unique()) < 2:
        raise InputError(
            f"expected samples of at least two classes, but all {len(y)} labels are {int(y[0])}"
        )
    return _Examples(x, y)


def _row_size(num_samples: int, num_test: int, num_reference: int, k: int) -> int:
    num = min(num_samples, num_test, num_reference)
    if k < 1 or num <= max(k, 3):
        raise InputError(
            f"expected 1 <= k below the number of samples, test and training inputs, and at least "
            f"4 of each, but got k={k} with {num_samples}, {num_test} and {num_reference}"
        )
    return num


def _batches(part: Part) -> Iterator[Tensor]:
    start = 0
    for rows in rows_by_block(len(part), part[0][0].numel()):
        yield part[start : start + rows][0]
        start += rows


def _agreement(
    seen: Tensor, asked: Tensor | None, num_classes: int
) -> tuple[Estimate, tuple[Estimate, ...]]:
    if asked is None:
        return UNKNOWN, (UNKNOWN,) * num_classes
    right = seen == asked
    groups = (right[asked == label] for label in range(num_classes))
    by_class = tuple(share_estimate(group) if len(group) else UNKNOWN for group in groups)
    return share_estimate(right), by_class
