"""Every check that scikit-learn has for estimators, with none expected to fail."""

from sklearn.utils.estimator_checks import parametrize_with_checks

from jem import JEMClassifier


@parametrize_with_checks([JEMClassifier(epochs=15, random_state=0)])
def test_scikit_learn_protocol(estimator, check):
    check(estimator)  # holds the assertions of one rule of scikit-learn
