"""The scikit-learn estimator."""

from jem.estimator.classifier import JEMClassifier

__all__ = ["JEMClassifier"]
