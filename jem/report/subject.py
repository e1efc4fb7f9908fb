"""What a report is about, and what was found of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from jem.data.splits import DataSplits
from jem.evaluation.calibration.report import CalibrationReport
from jem.model import JEM


@dataclass
class Subject:
    """What is reported on.

    Attributes:
        model: The trained model.
        splits: Its data.
        control: A plain classifier trained on the same data, to compare with; or None.
        chains: Persistent chains at the end of training, (M, *shape); None without any.
        chain_labels: Their classes (M,), where chains are conditional.
        ood_sets: More foreign sets, name -> inputs in the network's units.
        run: Plain values that say what was trained and how; kept as they are. Under `"as_given"`
            why the model is as it was given, if it is: it then has seen no foreign set, and
            neither samples nor chains are looked at.
        records: Lines of `metrics.jsonl`, oldest first.
    """

    model: JEM
    splits: DataSplits
    control: JEM | None = None
    chains: Tensor | None = None
    chain_labels: Tensor | None = None
    ood_sets: dict[str, Tensor] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Measured:
    """What `measure` found.

    Attributes:
        figures: Plain values: `report.json`.
        reports: Calibration before and after temperature, for diagrams.
        scores: Log-density of the test part ("test") and of each foreign set, (N,).
        images: Inputs worth looking at, by what they are examples of, (B, *shape).
    """

    figures: dict[str, Any]
    reports: dict[str, CalibrationReport] = field(default_factory=dict)
    scores: dict[str, Tensor] = field(default_factory=dict)
    images: dict[str, Tensor] = field(default_factory=dict)
