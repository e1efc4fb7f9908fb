"""What a report is about, and what its sections share: pictures, and names of classes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from jem.data.splits import DataSplits
from jem.model import JEM
from jem.serving.scorer import Scorer, fit_scorer

SHOWN = 12
"""Inputs shown of each kind of example, and pairs of classes."""


@dataclass(frozen=True)
class TrainingRun:
    """What is known of a model's training; everything may be left out.

    Attributes:
        sentence: What was trained, on what, and for how long, in one sentence.
        as_given: Why nothing was trained, if nothing was: the model then has used no OOD set in
            training, and neither samples nor chains are measured.
        iterations: Updates made.
        seconds: Time of training.
        control_seconds: Time of training the control.
        command: How to train again: a command line, or a call in Python.
        control_command: How to train again with a control.
        config: Plain values: the configuration, shown as it is.
        chains: Persistent chains at the end of training, (M, *shape), if there are any.
        records: Lines of `metrics.jsonl`, oldest first.
    """

    sentence: str = ""
    as_given: str = ""
    iterations: int | None = None
    seconds: float | None = None
    control_seconds: float | None = None
    command: str = ""
    control_command: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    chains: Tensor | None = None
    records: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        model: The trained model.
        splits: Its data.
        control: A plain classifier trained on the same data, to compare with, or None.
        ood_sets: More OOD sets, name -> inputs (N, *shape) in the network's units.
        run: What is known of the training.
    """

    model: JEM
    splits: DataSplits
    control: JEM | None = None
    ood_sets: dict[str, Tensor] = field(default_factory=dict)
    run: TrainingRun = field(default_factory=TrainingRun)

    @cached_property
    def control_scorer(self) -> Scorer | None:
        """Threshold, by the score of joint energy models, and temperature of the control."""
        if self.control is None:
            return None
        return fit_scorer(self.control, self.splits, score="combined")


@dataclass(frozen=True)
class Pictures:
    """Inputs to show, with a line under each.

    Attributes:
        x: Inputs, shape (N, *shape).
        captions: Their lines.
    """

    x: Tensor
    captions: list[str]


def names_of(classes: Sequence[str], num_classes: int) -> list[str]:
    """Names of K classes, "" for the one of K = 1; their numbers where there are other names."""
    if num_classes == 1:
        return [""]
    return list(classes) if len(classes) == num_classes else [str(k) for k in range(num_classes)]
