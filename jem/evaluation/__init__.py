"""What a trained model is worth: detection of foreign inputs, calibration, and a summary."""

from jem.evaluation import calibration, conformal, fidelity, ood, temperature

__all__ = ["calibration", "conformal", "fidelity", "ood", "temperature"]
