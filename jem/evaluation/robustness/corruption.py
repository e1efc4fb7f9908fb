"""What becomes of a classifier as its inputs get worse: figures along corruption severity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jem.checks import as_batch
from jem.data.corruptions import CORRUPTIONS, corrupt
from jem.errors import InputError
from jem.evaluation.calibration.report import CalibrationReport, calibration_report
from jem.evaluation.calibration.temperature import TemperatureScaling
from jem.evaluation.ood.detector import OODDetector
from jem.evaluation.statistics import wilson_interval
from jem.model import JEM, batched_logits
from jem.randomness import derive_seed

SEVERITIES = (0, 1, 2, 3, 4, 5)
"""0 is the data as they are."""


def corruption_curves(
    model: JEM,
    x: Tensor,
    y: Tensor,
    temperature: TemperatureScaling | None = None,
    detector: OODDetector | None = None,
    *,
    kinds: Sequence[str] = tuple(CORRUPTIONS),
    severities: Sequence[int] = SEVERITIES,
    num_bootstrap: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
    batch_size: int = 256,
) -> list[dict[str, Any]]:
    """Measure a classifier on images that are damaged more and more.

    Where a classifier loses accuracy it should lose confidence, so that NLL and ECE stay low, and
    a detector should flag more. Images are damaged a batch at a time and let go again; each is
    damaged in the same way, only more, at every severity.

    Args:
        model: The model, K >= 2.
        x: Images in the network's units, shape (N, C, H, W), seen by nothing else.
        y: Class indices, shape (N,).
        temperature: Fitted on undamaged validation images; gives the calibrated figures.
        detector: Fitted on undamaged calibration images; gives the share that is flagged.
        kinds: Names of `jem.data.CORRUPTIONS`.
        severities: From 0 (as they are) to 5.
        num_bootstrap: Replicates behind the intervals of NLL and ECE; 0 leaves these out.
        confidence: Level of the intervals.
        seed: Decides the damage.
        batch_size: Images at once.

    Returns:
        A row of plain values for each kind and severity: `kind`, `severity`, `num_samples`,
        `accuracy`, `nll` (nats), `ece` (15 bins of equal width), `calibrated_nll`,
        `calibrated_ece` (None without `temperature`), `share_flagged` (None without a fitted
        `detector`), `score` (the detector's, or log_density), `mean_score` (higher =
        in-distribution) and `intervals`, figure -> [low, high]: Wilson's for the two shares,
        bootstrap for NLL and ECE.

    Raises:
        InputError: If these are no images with labels, or a kind or severity is unknown.

    References:
        Hendrycks and Dietterich (2019), arXiv:1903.12261. Ovadia et al. (2019), arXiv:1906.02530.
    """
    x = as_batch(x, model.input_shape)
    if x.ndim != 4:
        raise InputError(f"corruptions are for images (N, C, H, W), but got {tuple(x.shape)}")
    if batch_size < 1:
        raise InputError(f"`batch_size` must be at least 1, but got {batch_size}")
    detector = OODDetector(model) if detector is None else detector

    def report(logits: Tensor) -> CalibrationReport:
        return calibration_report(
            logits.softmax(dim=1), y, num_bootstrap=num_bootstrap, confidence=confidence
        )

    def measure(kind: str, severity: int) -> dict[str, Any]:
        batches = (
            _answers(model, _damaged(model, part, kind, severity, seed, place), detector)
            for place, part in enumerate(torch.split(x, batch_size))
        )
        logits, scores = (torch.cat(column) for column in zip(*batches, strict=True))
        plain = report(logits)
        scaled = None if temperature is None else report(temperature.transform(logits))
        flagged = None if detector.threshold is None else detector.verdict(scores).is_ood
        return {
            "kind": kind,
            "severity": int(severity),
            "num_samples": len(logits),
            "accuracy": plain.accuracy,
            "nll": plain.nll,
            "ece": plain.ece,
            "calibrated_nll": None if scaled is None else scaled.nll,
            "calibrated_ece": None if scaled is None else scaled.ece,
            "score": detector.score_name,
            "mean_score": float(scores.double().mean()),
            "share_flagged": None if flagged is None else float(flagged.double().mean()),
            "intervals": _intervals(plain, scaled, flagged, confidence),
        }

    return [measure(kind, severity) for kind in kinds for severity in severities]


def _answers(model: JEM, x: Tensor, detector: OODDetector) -> tuple[Tensor, Tensor]:
    """Logits in double precision (B, K) and scores (B,), on the CPU."""
    logits = batched_logits(model, x, len(x))
    return logits.double().cpu(), detector.score(x, logits).cpu()


def _damaged(model: JEM, x: Tensor, kind: str, severity: int, seed: int, place: int) -> Tensor:
    """Corrupt images of any domain: corruptions know those in [-1, 1]."""
    if severity == 0:
        return x
    low, high = model.bounds(x.device) or (-1.0, 1.0)
    centre, reach = (low + high) / 2, (high - low) / 2
    seed = derive_seed(seed, "corruption", place)  # another for every batch, and for no severity
    return centre + reach * corrupt((x - centre) / reach, kind, severity, seed=seed)


def _intervals(
    plain: CalibrationReport,
    scaled: CalibrationReport | None,
    flagged: Tensor | None,
    confidence: float,
) -> dict[str, list[float]]:
    """Wilson's intervals of the shares, and the bootstrap's where there is one."""
    shares = {"accuracy": round(plain.accuracy * plain.num_samples)}
    if flagged is not None:
        shares["share_flagged"] = int(flagged.sum())
    found = {
        name: [float(end) for end in wilson_interval(hits, plain.num_samples, confidence)]
        for name, hits in shares.items()
    }
    for prefix, report in (("", plain), ("calibrated_", scaled)):
        if report is not None and report.num_bootstrap:
            found |= {prefix + name: list(report.intervals[name]) for name in ("nll", "ece")}
    return found
