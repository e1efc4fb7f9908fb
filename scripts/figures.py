"""The figures of a model that benchmarks put in their tables, from a quick report."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import jem
from jem.data import DataSplits
from jem.report.measure import Subject, measure


def figures_of(
    model: jem.JEM, splits: DataSplits, ood_sets: dict[str, Tensor], seed: int
) -> dict[str, Any]:
    """Accuracy, calibration and OOD detection on the test part, as plain values.

    Args:
        model: A trained model.
        splits: Its data.
        ood_sets: OOD sets beside those that are made up.
        seed: Decides the made-up sets.
    """
    report = measure(
        Subject(model, splits, ood_sets=ood_sets), quick=True, num_bootstrap=0, seed=seed
    )
    found: dict[str, Any] = {"num_test": report.ood.num_test}
    if report.classification:
        before, after = report.classification.model.before, report.classification.model.after
        found |= {"accuracy": before.accuracy, "nll": before.nll, "ece": before.ece}
        found |= {"nll_scaled": after.nll, "ece_scaled": after.ece}
    return found | {
        "auroc": {
            each.name: {
                "value": each.single.get("log_density", each.auroc).value,
                "used_in_training": each.used_in_training,
            }
            for each in report.ood.sets
        }
    }
