"""Robustness: what happens to accuracy and verdicts when inputs get worse."""
