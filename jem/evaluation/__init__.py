"""What a trained model is worth: detection of foreign inputs, calibration, samples."""

from jem.evaluation import calibration, fidelity, ood, robustness

__all__ = ["calibration", "fidelity", "ood", "robustness"]
