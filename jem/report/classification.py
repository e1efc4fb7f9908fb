"""The section of a report on classes: probabilities, and which class is taken for which."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from jem.errors import InputError
from jem.evaluation.calibration.errors import share_answered
from jem.evaluation.calibration.report import CalibrationReport, calibration_report
from jem.evaluation.calibration.temperature import TemperatureScaling
from jem.evaluation.statistics import UNKNOWN, Estimate, difference_estimate, share_estimate
from jem.model import batched_logits
from jem.report.subject import SHOWN, Subject, names_of

WANTED = (0.9, 0.95, 0.99)
"""Accuracies of the answers that are given, for which it is said how many are given."""


@dataclass(frozen=True)
class Classifier:
    """Probabilities of one classifier on the test part.

    Attributes:
        before: Accuracy and calibration as they are.
        after: The same after temperature scaling.
        temperature: T, fitted on the validation part; 1 where scaling did not help there.
        improved: Whether it did.
    """

    before: CalibrationReport
    after: CalibrationReport
    temperature: float
    improved: bool


@dataclass(frozen=True)
class ClassFigures:
    """Figures of one class.

    Attributes:
        name: Of the class.
        precision: Share of the inputs called so that are of this class.
        recall: Share of the inputs of this class that are called so.
        support: Test inputs of this class.
    """

    name: str
    precision: Estimate
    recall: Estimate
    support: int


@dataclass(frozen=True)
class Mistake:
    """A test input that is taken for another class.

    Attributes:
        source: Its file, with the folder that it is in; or its row in the data, from 0.
        true: Its class.
        predicted: The class it is taken for.
        probability: Of that class, after temperature scaling.
    """

    source: str
    true: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class Classification:
    """Accuracy and calibration of the model and its control, and the mistakes of the model.

    Attributes:
        model: Of the model.
        control: Of the control, where there is one.
        accuracy_difference: Accuracy of the model minus that of the control, inputs paired.
        majority: Accuracy of always naming the class that is most frequent in the test part.
        answered: (accuracy, share of inputs): how many may be answered, the most confident, so
            that the answers are as accurate.
        confusion: Test inputs of class i that are taken for class j, K lists of K.
        classes: Figures of each class.
        confused: (class, taken for, how often) of the most frequent mistakes.
        mistakes: The mistakes of the highest probability, the worst first.
        mistaken: Their inputs.
    """

    model: Classifier
    control: Classifier | None
    accuracy_difference: Estimate | None
    majority: Estimate
    answered: list[tuple[float, float]]
    confusion: list[list[int]]
    classes: list[ClassFigures]
    confused: list[tuple[str, str, int]]
    mistakes: list[Mistake]
    mistaken: Tensor


def classification_section(
    subject: Subject, temperature: TemperatureScaling, logits: Tensor
) -> Classification:
    """Measure classes and probabilities on the test part.

    Args:
        subject: The model, its data and its control.
        temperature: Fitted on the validation part.
        logits: Of the test inputs, shape (N, K).

    Raises:
        InputError: If the control has no classes.
    """
    x, y = subject.splits.test[:]

    def measured(logits: Tensor, temperature: TemperatureScaling) -> Classifier:
        logits = logits.double()  # probabilities near 0 and 1 decide calibration
        before, after = (
            calibration_report(each.softmax(dim=1), y)
            for each in (logits, temperature.transform(logits))
        )
        return Classifier(before, after, temperature.temperature, temperature.improved)

    own, control, difference = measured(logits, temperature), None, None
    predicted, num_classes = logits.argmax(dim=1), logits.shape[1]
    if (other := subject.control_scorer) is not None:
        other_temperature = other.temperature
        if other_temperature is None:
            raise InputError("the control must be a classifier, but has no classes (K = 1)")
        others = batched_logits(other.model, x).cpu()
        control = measured(others, other_temperature)
        difference = difference_estimate(predicted == y, others.argmax(dim=1) == y)
    names = names_of(subject.splits.classes, num_classes)
    counts = torch.bincount(y * num_classes + predicted, minlength=num_classes**2)
    wrong = counts.view(num_classes, num_classes).clone().fill_diagonal_(0)
    pairs = wrong.flatten().argsort(descending=True, stable=True)[:SHOWN].tolist()
    stated = temperature.transform(logits).softmax(dim=1).amax(dim=1)
    order = stated.argsort(descending=True, stable=True)
    worst = order[(predicted != y)[order]][:SHOWN]
    places = subject.splits.test.sources or range(len(y))
    sources = ["/".join(Path(str(places[i])).parts[-2:]) for i in worst.tolist()]
    return Classification(
        model=own,
        control=control,
        accuracy_difference=difference,
        majority=share_estimate(y == y.mode().values),
        answered=[(wanted, share_answered(own.before.risk_coverage, wanted)) for wanted in WANTED],
        confusion=counts.view(num_classes, num_classes).tolist(),
        classes=[_class_figures(k, name, y, predicted) for k, name in enumerate(names)],
        confused=[
            (names[pair // num_classes], names[pair % num_classes], int(wrong.flatten()[pair]))
            for pair in pairs
            if wrong.flatten()[pair]
        ],
        mistakes=[
            Mistake(source, names[int(y[i])], names[int(predicted[i])], float(stated[i]))
            for i, source in zip(worst.tolist(), sources, strict=True)
        ],
        mistaken=x[worst],
    )


def _class_figures(k: int, name: str, y: Tensor, predicted: Tensor) -> ClassFigures:
    both, own, called = (y == k) & (predicted == k), y == k, predicted == k
    precision, recall = (
        share_estimate(both[rows]) if rows.any() else UNKNOWN for rows in (called, own)
    )
    return ClassFigures(name, precision, recall, int(own.sum()))
