"""What a trained model is worth: OOD detection, calibration, and a summary beside a plain classifier."""
