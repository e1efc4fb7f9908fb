"""A trained model in production: classes, probabilities and verdicts for new inputs."""
