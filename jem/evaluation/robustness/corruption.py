"""What happens to a classifier as its inputs get worse: figures along corruption severity."""

from dataclasses import dataclass

import torch
from torch import Tensor

from jem.data.shifts import CORRUPTIONS, corrupt
from jem.evaluation.calibration.report import calibration_report
from jem.evaluation.calibration.temperature import TemperatureScaling
from jem.evaluation.ood.detector import OODDetector
from jem.model import JEM, batched_logits
from jem.randomness import derive_seed

SEVERITIES = range(6)
"""0 is the data as they are."""

BATCH_SIZE = 256


@dataclass(frozen=True)
class CorruptionCurves:
    """Figures of a classifier by kind of damage, a value for each severity.

    Attributes:
        severities: From 0 (none) to 5.
        accuracy: Share classified rightly.
        ece: Expected calibration error after temperature scaling, 15 bins of equal width.
        share_flagged: Share that the detector flags as OOD.
    """

    severities: list[int]
    accuracy: dict[str, list[float]]
    ece: dict[str, list[float]]
    share_flagged: dict[str, list[float]]


def corruption_curves(
    model: JEM,
    x: Tensor,
    y: Tensor,
    temperature: TemperatureScaling,
    detector: OODDetector,
    *,
    seed: int = 0,
) -> CorruptionCurves:
    """Measure a classifier on images that are damaged more and more.

    Where a classifier loses accuracy it should lose confidence, so that the ECE stays low, and a
    detector should flag more. An image is damaged in the same way, only more, at every severity;
    one batch of damaged images is held at a time.

    Args:
        model: The model, K >= 2.
        x: Images in the network's units, shape (N, C, H, W), seen by nothing else.
        y: Class indices, shape (N,).
        temperature: Fitted on undamaged validation images.
        detector: Fitted on undamaged calibration images.
        seed: Decides the damage.

    Returns:
        Figures by kind of `jem.data.CORRUPTIONS`.

    References:
        Hendrycks and Dietterich (2019), arXiv:1903.12261. Ovadia et al. (2019), arXiv:1906.02530.
    """
    low, high = model.bounds(x.device) or (-1.0, 1.0)
    centre, reach = (low + high) / 2, (high - low) / 2

    def measure(kind: str, severity: int) -> tuple[float, float, float]:
        logits, scores = [], []
        for place, part in enumerate(torch.split(x, BATCH_SIZE)):
            shown = part
            if severity:  # corruptions know images in [-1, 1]; the seed differs by batch alone
                own = derive_seed(seed, "corruption", place)
                shown = corrupt((part - centre) / reach, kind, severity, seed=own)
                shown = centre + reach * shown
            logits.append(batched_logits(model, shown))
            scores.append(detector.score(shown, logits[-1]).cpu())
        probabilities = temperature.transform(torch.cat(logits).double().cpu()).softmax(dim=1)
        report = calibration_report(probabilities, y, num_bootstrap=0)
        flagged = detector.verdict(torch.cat(scores)).is_ood.double().mean()
        return report.accuracy, report.ece, float(flagged)

    curves = CorruptionCurves(list(SEVERITIES), {}, {}, {})
    for kind in CORRUPTIONS:
        figures = zip(*(measure(kind, severity) for severity in SEVERITIES), strict=True)
        for of_kind in (curves.accuracy, curves.ece, curves.share_flagged):
            of_kind[kind] = list(next(figures))
    return curves
