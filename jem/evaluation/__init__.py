"""What a trained model is worth: detection of foreign inputs, calibration, samples."""

from jem.evaluation import calibration, conformal, fidelity, ood, temperature

__all__ = ["calibration", "conformal", "fidelity", "ood", "temperature"]
