"""Calibration: how far stated probabilities can be trusted, and how to mend them."""

from jem.evaluation.calibration.conformal import ConformalSets
from jem.evaluation.calibration.report import CalibrationReport, calibration_report
from jem.evaluation.calibration.temperature import TemperatureScaling

__all__ = ["CalibrationReport", "ConformalSets", "TemperatureScaling", "calibration_report"]
