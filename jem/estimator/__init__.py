"""The scikit-learn estimator: `jem.JEMClassifier`."""
