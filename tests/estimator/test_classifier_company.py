"""The scikit-learn estimator in company: pipelines, searches, calibration, files, data frames."""

import pickle
from dataclasses import replace

import joblib
import numpy as np
import pandas
import pytest
import sklearn
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from torch import nn

from jem import RECIPES, JEMClassifier
from jem.networks import mlp

VERSION = tuple(int(part) for part in sklearn.__version__.split(".")[:2])


@pytest.fixture(scope="module")
def iris():
    return load_iris(return_X_y=True)


def quick(**changes):
    return JEMClassifier(**({"epochs": 8, "random_state": 0} | changes))


def test_a_fitted_one_survives_pickle_and_joblib_bit_by_bit(iris, tmp_path):
    fitted = quick().fit(*iris)
    joblib.dump(fitted, tmp_path / "model.joblib")
    for copy in (pickle.loads(pickle.dumps(fitted)), joblib.load(tmp_path / "model.joblib")):
        assert np.array_equal(copy.predict_proba(iris[0]), fitted.predict_proba(iris[0]))
        assert np.array_equal(copy.is_ood(iris[0]), fitted.is_ood(iris[0]))
        assert np.array_equal(copy.sample([1, 2]), fitted.sample([1, 2]))


def test_a_clone_is_unfitted_and_has_its_own_copy_of_a_network(iris):
    fitted = quick(network=mlp((4,), 3, width=8, depth=1)).fit(*iris)
    fresh = clone(fitted)
    assert not hasattr(fresh, "model_")
    assert isinstance(fresh.network, nn.Module)
    assert fresh.network is not fitted.network
    assert np.array_equal(  # training went on from the same weights
        fresh.fit(*iris).decision_function(iris[0]), fitted.decision_function(iris[0])
    )


def test_pipeline_and_cross_validation(iris):
    pipeline = make_pipeline(StandardScaler(), quick(epochs=40))
    assert cross_val_score(pipeline, *iris, cv=3).mean() > 0.8
    pipeline.fit(*iris)
    assert pipeline.score_samples(iris[0]).shape == (150,)


def small(shape, num_classes):
    return mlp(shape, num_classes, width=16, depth=1)


def test_images_go_through_cross_validation_and_pipelines():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 100, (60, 8, 8, 1), dtype=np.uint8), np.arange(60) % 2
    x[y == 1] += 120
    pipeline = make_pipeline(FunctionTransformer(), quick(epochs=20, network=small))
    assert cross_val_score(pipeline, x, y, cv=2).mean() > 0.9


def test_grid_search_goes_over_recipes_too(iris):
    rates = [replace(RECIPES["fast"], learning_rate=rate) for rate in (1e-9, 2e-3)]
    search = GridSearchCV(quick(epochs=20), {"recipe": rates}, cv=2).fit(*iris)
    assert search.best_params_ == {"recipe": rates[1]}


@pytest.mark.parametrize("count", [100, 150])  # two classes and three
@pytest.mark.parametrize("method", ["sigmoid", "temperature"])
def test_calibration_of_scikit_learn(iris, method, count):
    if method == "temperature" and VERSION < (1, 8):
        pytest.skip("this scikit-learn has no temperature scaling")
    x, y = iris[0][-count:], iris[1][-count:]
    calibrated = CalibratedClassifierCV(quick(epochs=40), method=method, cv=2).fit(x, y)
    assert calibrated.score(x, y) > 0.85
    np.testing.assert_allclose(calibrated.predict_proba(x).sum(axis=1), 1, rtol=1e-6)


def test_data_frames_keep_their_names(iris):
    frame = pandas.DataFrame(iris[0], columns=["a", "b", "c", "d"])
    pipeline = make_pipeline(StandardScaler(), quick(epochs=1)).set_output(transform="pandas")
    classifier = pipeline.fit(frame, iris[1])[-1]
    assert list(classifier.feature_names_in_) == ["a", "b", "c", "d"]
    with pytest.raises(ValueError, match="feature names"):
        classifier.predict(frame.rename(columns={"a": "z"}))
    images = np.zeros((8, 4, 4)) + np.arange(8)[:, None, None]
    assert not hasattr(clone(classifier).fit(images, np.arange(8) % 2), "feature_names_in_")
