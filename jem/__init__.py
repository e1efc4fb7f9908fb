"""Joint energy models: classifiers that know what they know, and can draw it."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from jem import data, evaluation, export, networks, objectives, plotting, sampling
    from jem.classifier import JEMClassifier
    from jem.errors import (
        InputError,
        JemError,
        RunFolderError,
        TrainingDivergedError,
        TrainingInterrupted,
    )
    from jem.evaluation.calibration import calibration_report
    from jem.evaluation.ood import OODDetector, ood_metrics
    from jem.evaluation.temperature import TemperatureScaling
    from jem.generation import counterfactual, denoise, inpaint, sample
    from jem.model import JEM
    from jem.reporting import write_report
    from jem.scorer import fit_scorer, load_scorer
    from jem.training.recipe import RECIPES, Recipe
    from jem.training.run_folder import load
    from jem.training.trainer import Trainer

# Names are imported when they are first asked for: `jem --help` answers without loading torch, and
# the command line can settle how threads wait before torch starts any.
_HOME = {
    "JEM": "jem.model",
    "InputError": "jem.errors",
    "JEMClassifier": "jem.classifier",
    "JemError": "jem.errors",
    "OODDetector": "jem.evaluation.ood",
    "RECIPES": "jem.training.recipe",
    "Recipe": "jem.training.recipe",
    "RunFolderError": "jem.errors",
    "TemperatureScaling": "jem.evaluation.temperature",
    "Trainer": "jem.training.trainer",
    "TrainingDivergedError": "jem.errors",
    "TrainingInterrupted": "jem.errors",
    "calibration_report": "jem.evaluation.calibration",
    "counterfactual": "jem.generation",
    "denoise": "jem.generation",
    "fit_scorer": "jem.scorer",
    "inpaint": "jem.generation",
    "load": "jem.training.run_folder",
    "load_scorer": "jem.scorer",
    "ood_metrics": "jem.evaluation.ood",
    "sample": "jem.generation",
    "write_report": "jem.reporting",
}
_MODULES = (
    "data", "evaluation", "export", "networks", "objectives", "plotting", "sampling",
)  # fmt: skip

__all__ = [
    "JEM",
    "RECIPES",
    "InputError",
    "JEMClassifier",
    "JemError",
    "OODDetector",
    "Recipe",
    "RunFolderError",
    "TemperatureScaling",
    "Trainer",
    "TrainingDivergedError",
    "TrainingInterrupted",
    "calibration_report",
    "counterfactual",
    "data",
    "denoise",
    "evaluation",
    "export",
    "fit_scorer",
    "inpaint",
    "load",
    "load_scorer",
    "networks",
    "objectives",
    "ood_metrics",
    "plotting",
    "sample",
    "sampling",
    "write_report",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"jem.{name}")
    raise AttributeError(f"module 'jem' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
