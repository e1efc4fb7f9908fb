"""What a trained model is worth: detection of foreign inputs, calibration, and a summary."""
