"""Out-of-distribution (OOD) detection: scores, a detector with a threshold, and its figures."""

from jem.evaluation.ood.detector import OODDetector as OODDetector
from jem.evaluation.ood.detector import OODVerdict as OODVerdict
from jem.evaluation.ood.metrics import OODMetrics as OODMetrics
from jem.evaluation.ood.metrics import ood_metrics as ood_metrics
from jem.evaluation.ood.scores import REASONS as REASONS
from jem.evaluation.ood.scores import SCORES as SCORES
from jem.evaluation.ood.scores import SUMS as SUMS
from jem.evaluation.ood.scores import Score as Score
