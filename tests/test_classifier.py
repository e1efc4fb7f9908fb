"""The scikit-learn estimator: its protocol, its four powers, and what it says to mistakes."""

import pickle

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_breast_cancer, load_iris, make_moons
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from jem import JEMClassifier
from jem.errors import InputError
from jem.networks import mlp

REASONS = {
    "check_class_weight_classifiers": "weights are None or 'balanced': a recipe has no others",
}


@parametrize_with_checks(
    [JEMClassifier(epochs=15, random_state=0)],
    expected_failed_checks=lambda estimator: REASONS,
)
def test_scikit_learn_protocol(estimator, check):
    check(estimator)  # holds the assertions of one rule of scikit-learn
    assert estimator.get_params()["epochs"] == 15


@pytest.fixture(scope="module")
def iris():
    return load_iris(return_X_y=True)


@pytest.fixture(scope="module")
def fitted(iris):
    return JEMClassifier(epochs=60, random_state=0).fit(*iris)


def images(count=60, dtype=np.float64, seed=0):
    """Bright squares in the upper or lower half of 8x8 images in [0, 1]."""
    rng = np.random.default_rng(seed)
    y = np.arange(count) % 2
    x = rng.uniform(0, 0.3, (count, 8, 8))
    x[y == 0, 1:4, 2:6] += 0.7
    x[y == 1, 5:8, 2:6] += 0.7
    return (255 * x).astype(dtype) if dtype == np.uint8 else x.astype(dtype), y


def quick(**changes):
    return JEMClassifier(**({"epochs": 8, "random_state": 0} | changes))


# -- the four powers ------------------------------------------------------------------------------


def test_it_classifies(fitted, iris):
    assert fitted.score(*iris) > 0.93
    probabilities = fitted.predict_proba(iris[0])
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    logits = fitted.decision_function(iris[0])
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(probabilities, exp / exp.sum(axis=1, keepdims=True), rtol=1e-6)


def test_log_density_is_the_logsumexp_of_the_logits_and_ranks_noise_below(fitted, iris):
    scores = fitted.score_samples(iris[0])
    logits = fitted.decision_function(iris[0])
    np.testing.assert_allclose(scores, np.log(np.exp(logits).sum(axis=1)), rtol=1e-6)
    far = iris[0] + 30
    assert np.median(scores) > np.max(fitted.score_samples(far))


def test_it_rejects_with_the_share_asked_for(iris):
    x, y = load_breast_cancer(return_X_y=True)
    classifier = quick(accept=0.9).fit(x, y)
    assert classifier.is_ood(x).dtype == bool
    assert 0.02 < classifier.is_ood(x).mean() < 0.25
    assert len(classifier.detector_._calibration) == 57
    assert classifier.is_ood(x + 100 * x.std(axis=0)).mean() > 0.9


def test_it_draws_the_classes_asked_for(fitted, iris):
    drawn = fitted.sample([2] * 8 + [0] * 8)
    assert drawn.shape == (16, 4)
    assert (fitted.predict(drawn) == [2] * 8 + [0] * 8).mean() > 0.9
    low, high = iris[0].min(axis=0), iris[0].max(axis=0)
    assert (drawn > low - (high - low)).all()  # in the units of the table
    assert (drawn < high + (high - low)).all()
    assert np.array_equal(drawn[:3], fitted.sample([2, 2, 2]))
    assert fitted.sample(count=3).shape == (3, 4)


def test_two_classes_have_one_decision_value():
    x, y = make_moons(80, noise=0.1, random_state=0)
    classifier = quick().fit(x, np.array(["left", "right"])[y])
    decision = classifier.decision_function(x)
    probability = classifier.predict_proba(x)[:, 1]
    np.testing.assert_allclose(1 / (1 + np.exp(-decision)), probability, rtol=1e-6)
    assert set(classifier.predict(x)) <= {"left", "right"}
    assert np.array_equal(classifier.predict(x) == "right", decision > 0)


# -- kinds of data --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_grey_images_of_any_type(dtype):
    x, y = images(dtype=dtype)
    classifier = quick(epochs=30).fit(x, y)
    assert classifier.score(x, y) > 0.95
    drawn = classifier.sample([0, 1])
    assert drawn.shape == (2, 1, 8, 8)
    top = 255 if dtype == np.uint8 else 1
    assert drawn.min() >= -1e-3 * top
    assert drawn.max() <= 1.001 * top


def test_channels_are_read_from_the_shape_and_come_back_where_they_were():
    x, y = images()
    last = np.repeat(x[..., None], 3, axis=3)
    first = np.moveaxis(last, 3, 1)
    of_last, of_first = quick(epochs=30).fit(last, y), quick(epochs=30).fit(first, y)
    assert of_last.sample([0]).shape == (1, 8, 8, 3)
    assert of_first.sample([0]).shape == (1, 3, 8, 8)
    assert of_last.score(last, y) == of_last.score(first, y) > 0.9  # both orders are recognised
    assert of_first.score(first, y) > 0.9


def test_a_shape_that_fits_both_ways_is_asked_about():
    x = np.random.default_rng(0).uniform(size=(20, 3, 8, 3))
    y = np.arange(20) % 2
    with pytest.raises(InputError, match='channels="first" or channels="last"'):
        quick().fit(x, y)
    assert quick(epochs=1, channels="last").fit(x, y).sample([1]).shape == (1, 3, 8, 3)


def test_data_frames_keep_their_names(iris):
    pandas = pytest.importorskip("pandas", reason="data frames need pandas")
    frame = pandas.DataFrame(iris[0], columns=["a", "b", "c", "d"])
    classifier = quick().fit(frame, iris[1])
    assert list(classifier.feature_names_in_) == ["a", "b", "c", "d"]
    with pytest.raises(ValueError, match="feature names"):
        classifier.predict(frame.rename(columns={"a": "z"}))


# -- settings -------------------------------------------------------------------------------------


def test_a_network_given_as_a_module_is_copied_and_as_a_function_is_called(iris):
    module = mlp((4,), 3, width=8, depth=1)
    before = [p.clone() for p in module.parameters()]
    classifier = quick(network=module).fit(*iris)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    assert classifier.model_.network is not module
    seen = []

    def factory(shape, num_classes):
        seen.append((shape, num_classes))
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

    quick(network=factory).fit(*iris)
    assert seen == [((4,), 3)]


def test_early_stopping_takes_the_best_epoch(iris):
    patient = quick(epochs=300, early_stopping=True, n_iter_no_change=3).fit(*iris)
    nll = [metrics["valid_nll"] for metrics in patient.history_]
    assert len(nll) < 300
    assert len(nll) - 1 - int(np.argmin(nll)) == 3
    x = patient._network_inputs(iris[0])
    assert torch.isfinite(patient.model_.logits(x)).all()


def test_same_random_state_same_bits_and_the_global_state_is_left_alone(iris):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    one, two = quick().fit(*iris), quick().fit(*iris)
    other = quick(random_state=1).fit(*iris)
    assert np.array_equal(one.decision_function(iris[0]), two.decision_function(iris[0]))
    assert not np.array_equal(one.decision_function(iris[0]), other.decision_function(iris[0]))
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])  # noqa: NPY002


def test_balanced_classes_move_the_decision():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 1, (180, 2)), rng.normal(1.2, 1, (20, 2))])
    y = np.repeat([0, 1], [180, 20])
    plain = quick(epochs=30).fit(x, y).predict(x).mean()
    balanced = quick(epochs=30, class_weight="balanced").fit(x, y).predict(x).mean()
    assert balanced > plain + 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_weight": {0: 2.0}}, "`class_weight` must be None or 'balanced'"),
        ({"channels": "middle"}, "`channels` must be 'first', 'last' or None"),
        ({"accept": 1.0}, r"`accept` must lie in \(0, 1\)"),
        ({"calibration_fraction": 0.7}, r"`calibration_fraction` must lie in \[0, 0.5\)"),
        ({"recipe": "slow"}, "unknown recipe 'slow'"),
        ({"epochs": 1.5}, "recipe field `epochs`"),
    ],
)
def test_wrong_settings_are_named(iris, changes, message):
    with pytest.raises(InputError, match=message):
        quick(**changes).fit(*iris)


def test_mistakes_in_use_are_named(fitted, iris):
    with pytest.raises(InputError, match="`labels` must be classes among"):
        fitted.sample(["cat"])
    with pytest.raises(NotFittedError):
        quick().predict(iris[0])
    with pytest.raises(ValueError, match="3 features"):
        fitted.predict(iris[0][:, :3])
    tiny = quick().fit(iris[0][::10], iris[1][::10])
    assert tiny.detector_ is None
    with pytest.raises(InputError, match="no inputs were held out for a threshold"):
        tiny.is_ood(iris[0])
    with pytest.raises(InputError, match="early stopping needs 2 examples of every class"):
        quick(early_stopping=True).fit(np.arange(80.0).reshape(40, 2), [0] * 39 + [1])


# -- in company -----------------------------------------------------------------------------------


def test_pickle_joblib_and_clone(fitted, iris, tmp_path):
    joblib.dump(fitted, tmp_path / "model.joblib")
    for copy in (pickle.loads(pickle.dumps(fitted)), joblib.load(tmp_path / "model.joblib")):
        assert np.array_equal(copy.predict_proba(iris[0]), fitted.predict_proba(iris[0]))
        assert np.array_equal(copy.is_ood(iris[0]), fitted.is_ood(iris[0]))
        assert np.array_equal(copy.sample([1, 2]), fitted.sample([1, 2]))
    fresh = clone(fitted)
    assert fresh.get_params() == fitted.get_params()
    assert not hasattr(fresh, "model_")


def test_pipeline_grid_search_and_cross_validation(iris):
    pipeline = make_pipeline(StandardScaler(), quick(epochs=150))
    assert cross_val_score(pipeline, *iris, cv=3).mean() > 0.85
    search = GridSearchCV(quick(), {"epochs": [1, 40]}, cv=2).fit(*iris)
    assert search.best_params_ == {"epochs": 40}


def test_calibration_of_scikit_learn(iris):
    calibrated = CalibratedClassifierCV(quick(epochs=150), method="temperature", cv=3).fit(*iris)
    assert calibrated.score(*iris) > 0.85
    np.testing.assert_allclose(calibrated.predict_proba(iris[0]).sum(axis=1), 1, rtol=1e-6)
