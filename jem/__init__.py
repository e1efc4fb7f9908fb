"""Joint energy models: classifiers that know what they know, and can draw it."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from jem import data, evaluation, networks, objectives, plotting, sampling
    from jem.errors import (
        InputError,
        JemError,
        RunFolderError,
        TrainingDivergedError,
        TrainingInterrupted,
    )
    from jem.estimator.classifier import JEMClassifier
    from jem.evaluation.calibration.report import calibration_report
    from jem.evaluation.calibration.temperature import TemperatureScaling
    from jem.evaluation.ood.detector import OODDetector
    from jem.evaluation.ood.metrics import ood_metrics
    from jem.generation import counterfactual, denoise, inpaint, sample
    from jem.model import JEM
    from jem.report.page import write_report
    from jem.runs.model_file import load, save
    from jem.serving.export import export_onnx
    from jem.serving.scorer import fit_scorer, load_scorer
    from jem.training.recipe import Recipe
    from jem.training.recipes import RECIPES
    from jem.training.trainer import Trainer

# Names are imported when they are first asked for: `jem --help` answers without loading torch, and
# the command line can settle how threads wait before torch starts any.
_HOME = {
    "JEM": "jem.model",
    "InputError": "jem.errors",
    "JEMClassifier": "jem.estimator.classifier",
    "JemError": "jem.errors",
    "OODDetector": "jem.evaluation.ood.detector",
    "RECIPES": "jem.training.recipes",
    "Recipe": "jem.training.recipe",
    "RunFolderError": "jem.errors",
    "TemperatureScaling": "jem.evaluation.calibration.temperature",
    "Trainer": "jem.training.trainer",
    "TrainingDivergedError": "jem.errors",
    "TrainingInterrupted": "jem.errors",
    "calibration_report": "jem.evaluation.calibration.report",
    "counterfactual": "jem.generation",
    "denoise": "jem.generation",
    "export_onnx": "jem.serving.export",
    "fit_scorer": "jem.serving.scorer",
    "inpaint": "jem.generation",
    "load": "jem.runs.model_file",
    "load_scorer": "jem.serving.scorer",
    "ood_metrics": "jem.evaluation.ood.metrics",
    "sample": "jem.generation",
    "save": "jem.runs.model_file",
    "write_report": "jem.report.page",
}
_MODULES = (
    "data", "evaluation", "networks", "objectives", "plotting", "sampling",
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
    "export_onnx",
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
    "save",
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
