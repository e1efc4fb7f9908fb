"""Out-of-distribution (OOD) detection: scores, a detector with a threshold, and its figures."""

from jem.evaluation.ood.detector import OODDetector, OODVerdict
from jem.evaluation.ood.metrics import OODMetrics, ood_metrics
from jem.evaluation.ood.pytorch_ood import PytorchOODAdapter
from jem.evaluation.ood.scores import SCORES, Score

__all__ = [
    "SCORES",
    "OODDetector",
    "OODMetrics",
    "OODVerdict",
    "PytorchOODAdapter",
    "Score",
    "ood_metrics",
]
