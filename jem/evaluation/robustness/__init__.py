"""Robustness: accuracy and verdicts when inputs get worse, and under attack."""

from jem.evaluation.robustness.report import RobustnessPoint as RobustnessPoint
from jem.evaluation.robustness.report import RobustnessReport as RobustnessReport
from jem.evaluation.robustness.report import robustness_report as robustness_report
from jem.evaluation.robustness.smoothing import Certificate as Certificate
from jem.evaluation.robustness.smoothing import certify as certify
