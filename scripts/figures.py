"""The figures of a model that benchmarks put in their tables, measured as in a report."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import jem
from jem.data import DataSplits
from jem.evaluation.statistics import largest_acceptance_rate
from jem.model import batched_logits
from jem.report.classification import classification_section
from jem.report.ood import ood_section
from jem.report.subject import Subject


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
    subject, x = Subject(model, splits, ood_sets=ood_sets), splits.test[:][0]
    rate = largest_acceptance_rate(len(splits.calibration), 0.95)
    scorer = jem.fit_scorer(model, splits, acceptance_rate=rate)
    logits = batched_logits(model, x).cpu()
    ood = ood_section(subject, scorer, x, logits, seed)
    found: dict[str, Any] = {"num_test": ood.num_test}
    if scorer.temperature is not None:
        both = classification_section(subject, scorer.temperature, logits).model
        found |= {name: getattr(both.before, name) for name in ("accuracy", "nll", "ece")}
        found |= {f"{name}_scaled": getattr(both.after, name) for name in ("nll", "ece")}
    return found | {
        "auroc": {
            each.name: {
                "value": each.single.get("log_density", each.auroc).value,
                "used_in_training": each.used_in_training,
            }
            for each in ood.sets
        }
    }
