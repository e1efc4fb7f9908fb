"""Joint energy models: classifiers that also reject inputs unlike their data and draw new ones."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from jem import attacks as attacks
    from jem import data as data
    from jem import errors as errors
    from jem import evaluation as evaluation
    from jem import networks as networks
    from jem import objectives as objectives
    from jem import plotting as plotting
    from jem import sampling as sampling
    from jem.errors import InputError as InputError
    from jem.errors import JemError as JemError
    from jem.errors import RunFolderError as RunFolderError
    from jem.errors import TrainingDivergedError as TrainingDivergedError
    from jem.errors import TrainingInterrupted as TrainingInterrupted
    from jem.estimator.classifier import JEMClassifier as JEMClassifier
    from jem.estimator.pipeline import TableEncoder as TableEncoder
    from jem.estimator.pipeline import make_pipeline as make_pipeline
    from jem.evaluation.calibration.conformal import ConformalSets as ConformalSets
    from jem.evaluation.calibration.report import calibration_report as calibration_report
    from jem.evaluation.calibration.temperature import TemperatureScaling as TemperatureScaling
    from jem.evaluation.likelihood import log_partition as log_partition
    from jem.evaluation.ood.detector import OODDetector as OODDetector
    from jem.evaluation.ood.metrics import ood_metrics as ood_metrics
    from jem.evaluation.robustness.report import robustness_report as robustness_report
    from jem.generation import counterfactual as counterfactual
    from jem.generation import inpaint as inpaint
    from jem.generation import sample as sample
    from jem.model import JEM as JEM
    from jem.networks.companion import companion as companion
    from jem.report.page import write_report as write_report
    from jem.runs.model_file import load as load
    from jem.runs.model_file import save as save
    from jem.runs.official import load_official as load_official
    from jem.serving.export import export_onnx as export_onnx
    from jem.serving.scorer import fit_scorer as fit_scorer
    from jem.serving.scorer import load_scorer as load_scorer
    from jem.training.recipe import Recipe as Recipe
    from jem.training.recipes import RECIPES as RECIPES
    from jem.training.trainer import Trainer as Trainer

# What the type checker sees above is imported when it is first asked for: `jem --help` answers
# without loading torch, and the command line can settle how threads wait before torch starts any.
_NAMES = {
    "jem": "attacks data errors evaluation networks objectives plotting sampling",
    "jem.errors": "InputError JemError RunFolderError TrainingDivergedError TrainingInterrupted",
    "jem.estimator.classifier": "JEMClassifier",
    "jem.estimator.pipeline": "TableEncoder make_pipeline",
    "jem.evaluation.calibration.conformal": "ConformalSets",
    "jem.evaluation.calibration.report": "calibration_report",
    "jem.evaluation.calibration.temperature": "TemperatureScaling",
    "jem.evaluation.likelihood": "log_partition",
    "jem.evaluation.ood.detector": "OODDetector",
    "jem.evaluation.ood.metrics": "ood_metrics",
    "jem.evaluation.robustness.report": "robustness_report",
    "jem.generation": "counterfactual inpaint sample",
    "jem.model": "JEM",
    "jem.networks.companion": "companion",
    "jem.report.page": "write_report",
    "jem.runs.model_file": "load save",
    "jem.runs.official": "load_official",
    "jem.serving.export": "export_onnx",
    "jem.serving.scorer": "fit_scorer load_scorer",
    "jem.training.recipe": "Recipe",
    "jem.training.recipes": "RECIPES",
    "jem.training.trainer": "Trainer",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in _HOME:
        raise AttributeError(f"module 'jem' has no attribute {name!r}")
    home = _HOME[name]
    if home == "jem":
        return importlib.import_module(f"jem.{name}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
