"""What a trained model is worth: detection of foreign inputs, calibration, samples."""

from jem.evaluation import calibration, chains, fidelity, likelihood, ood, robustness

__all__ = ["calibration", "chains", "fidelity", "likelihood", "ood", "robustness"]
