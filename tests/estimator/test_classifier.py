"""The scikit-learn estimator: its four powers, kinds of data, settings, and use in company."""

import re
import signal
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_iris, make_moons
from sklearn.exceptions import NotFittedError
from sklearn.utils import check_random_state
from torch import nn

from jem import RECIPES, JEMClassifier
from jem.errors import InputError
from jem.estimator.data import divide
from jem.networks import mlp, small_cnn
from jem.training.validation import validate


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


def narrow(shape, num_classes):
    """A network for images that trains in a second."""
    return small_cnn(shape, num_classes, width=4, head="factored")


def parts_of(x, y, **changes):
    """The parts that `quick()` makes of data with class indices as labels."""
    settings = {
        "validation": 0,
        "calibration": 0.1,
        "acceptance_rate": 0.95,
        "channels": None,
    } | changes
    seed = int(check_random_state(0).randint(2**31 - 1))
    return divide(x, y, np.unique(y).tolist(), seed=seed, **settings)


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
    with pytest.warns(UserWarning, match="all 150 rows lie outside"):
        far = fitted.score_samples(iris[0] + 30)
    assert np.median(scores) > np.max(far)


def test_it_rejects_with_the_share_asked_for():
    x, y = load_breast_cancer(return_X_y=True)
    classifier = quick(acceptance_rate=0.9).fit(x, y)
    flagged = classifier.is_ood(x)
    assert flagged.dtype == bool
    assert 0.02 < flagged.mean() < 0.25
    reasons = classifier.ood_reason(x)
    assert np.array_equal(flagged, reasons != "")
    assert np.array_equal(flagged, classifier.p_value(x) <= 1 - 0.9)
    assert set(reasons) <= {"", "unlike the data", "between classes", "both"}
    with pytest.warns(UserWarning, match="check the units"):
        assert classifier.is_ood(x + 100 * x.std(axis=0)).mean() > 0.9


def test_another_share_may_be_asked_for_after_the_fit():
    x, y = load_breast_cancer(return_X_y=True)
    classifier = quick().fit(x, y)
    stricter = classifier.is_ood(x).mean()
    assert classifier.set_params(acceptance_rate=0.7).is_ood(x).mean() > stricter + 0.1
    assert np.array_equal(classifier.is_ood(x), classifier.p_value(x) <= 1 - 0.7)
    with pytest.raises(InputError, match="at least 999 inputs"):
        classifier.set_params(acceptance_rate=0.999).is_ood(x)


def test_the_threshold_is_set_on_rows_that_training_has_not_seen():
    x, y = load_breast_cancer(return_X_y=True)
    classifier = quick(acceptance_rate=0.9).fit(x, y)
    parts = parts_of(x, y, validation=0.1, acceptance_rate=0.9)
    assert len(parts.train) + len(parts.validation) + len(parts.calibration) == 569
    raw = classifier.model_.scaling.invert(parts.calibration.x)
    flagged = classifier.is_ood(raw.numpy())
    # r = floor(0.1 * 58) = 5: the fifth lowest of 57 scores is the threshold, give or take one
    # whose bits change on the way to raw units and back.
    assert len(flagged) == classifier.detector_.num_calibration == 57
    assert abs(int(flagged.sum()) - 4) <= 1


def test_it_draws_the_classes_asked_for(fitted, iris):
    drawn = fitted.sample([2] * 8 + [0] * 8)
    assert drawn.shape == (16, 4)
    assert (fitted.predict(drawn) == [2] * 8 + [0] * 8).mean() > 0.9
    assert (drawn >= iris[0].min(axis=0)).all()  # in the units of the table, and a valid row
    assert (drawn <= iris[0].max(axis=0)).all()
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


def test_a_row_is_scored_alike_in_any_company(fitted, iris):
    together = fitted.decision_function(iris[0][:40])
    alone = np.concatenate([fitted.decision_function(row[None]) for row in iris[0][:40]])
    np.testing.assert_allclose(alone, together, rtol=1e-7, atol=1e-7)
    x, y = images(40)
    of_images = quick(network=narrow).fit(x, y)
    alone = np.concatenate([of_images.score_samples(image[None]) for image in x])
    np.testing.assert_allclose(alone, of_images.score_samples(x), rtol=1e-7, atol=1e-7)


def test_a_recipe_without_a_density_draws_nothing(iris):
    with pytest.raises(InputError, match="recipe that has chains"):
        quick(recipe="plain").fit(*iris).sample([0])


# -- kinds of data --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_grey_images_of_any_type_come_back_as_they_were(dtype):
    x, y = images(dtype=dtype)
    classifier = quick(epochs=30, network=narrow).fit(x, y)
    assert classifier.score(x, y) > 0.95
    assert classifier.n_features_in_ == 64
    drawn = classifier.sample([0, 1])
    assert drawn.shape == (2, 8, 8)
    assert drawn.dtype == dtype
    top = 255 if dtype == np.uint8 else 1
    assert drawn.min() >= -1e-3 * top
    assert 0.2 * top < drawn.max() <= 1.001 * top
    assert quick(epochs=1, network=narrow).fit(x[:, None], y).sample([0]).shape == (1, 1, 8, 8)


def test_channels_are_read_from_the_shape_and_come_back_where_they_were():
    x, y = images()
    last = np.repeat(x[..., None], 3, axis=3)
    last[..., 1:] *= 0.5  # the first channel is the bright one
    first = np.moveaxis(last, 3, 1)
    of_last, of_first = (quick(epochs=30, network=narrow).fit(x, y) for x in (last, first))
    assert of_last.sample([0]).shape == (1, 8, 8, 3)
    assert of_first.sample([0]).shape == (1, 3, 8, 8)
    assert of_last.score(last, y) > 0.9
    assert np.array_equal(of_last.decision_function(last), of_first.decision_function(first))
    assert np.array_equal(np.moveaxis(of_last.sample([0, 1]), 3, 1), of_first.sample([0, 1]))


def test_images_on_another_scale_get_one_warning():
    x, y = images(80, dtype=np.uint8)
    classifier = quick(epochs=1, network=narrow).fit(x, y)
    for method in (
        "predict", "predict_proba", "decision_function", "score_samples", "is_ood", "ood_reason",
        "p_value",
    ):  # fmt: skip
        with pytest.warns(UserWarning, match="images is 0.99") as caught:
            getattr(classifier, method)(x / 256)
        assert len(caught) == 1
        assert caught[0].filename == __file__  # where the person called it
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classifier.predict(x)


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


def test_a_given_network_is_trained_on_from_the_weights_it_has(iris):
    module = mlp((4,), 3, width=8, depth=1)
    classifier = quick(network=module, epochs=0).fit(*iris)
    x = classifier.model_.preprocess(iris[0])
    assert torch.equal(classifier.model_.predict_proba(x), module(x).softmax(dim=1))
    assert classifier.n_iter_ == 0


def test_the_best_epoch_is_kept_where_later_ones_overfit():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(160, 30))  # labels are noise: whatever is learned of them is wrong
    y = rng.integers(0, 2, 160)
    classifier = quick(recipe="plain", epochs=200).fit(x, y)
    epochs = classifier.history_
    assert classifier.n_iter_ == len(epochs) < 100
    nll = [metrics["valid_nll"] for metrics in epochs]
    assert all(metrics["overfits"] for metrics in epochs[-40:])
    validation = parts_of(x, y, validation=0.1).validation
    kept = validate(classifier.model_, validation, 64)["valid_nll"]
    assert kept == pytest.approx(min(nll), rel=1e-6)
    assert nll[-1] > 1.1 * min(nll)


def test_stopping_a_fit_stops_whatever_runs_it(iris):
    class Interrupted(nn.Linear):
        def forward(self, x):
            if self.training:
                signal.raise_signal(signal.SIGINT)
            return super().forward(x)

    with pytest.raises(KeyboardInterrupt):  # a search over settings lets nothing else through
        quick(network=Interrupted(4, 3)).fit(*iris)


def test_a_fit_that_fails_leaves_no_older_model(iris):
    classifier = quick(epochs=1).fit(*iris)
    with pytest.raises(InputError):
        classifier.set_params(network=mlp((4,), 5)).fit(iris[0], np.array(list("abc"))[iris[1]])
    for use in (classifier.predict, classifier.is_ood, classifier.ood_reason):
        with pytest.raises(NotFittedError):
            use(iris[0])
    with pytest.raises(NotFittedError):
        classifier.sample([0])


def test_same_random_state_same_bits_and_the_global_state_is_left_alone(iris):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    one = quick().fit(*iris)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)  # whatever the global generator does
        two = quick().fit(*iris)
    other = quick(random_state=1).fit(*iris)
    assert np.array_equal(one.decision_function(iris[0]), two.decision_function(iris[0]))
    assert not np.array_equal(one.decision_function(iris[0]), other.decision_function(iris[0]))
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("random_state", [np.random.RandomState(3), None])
def test_any_random_state_of_scikit_learn_will_do(iris, random_state):
    one = quick(epochs=1, random_state=random_state).fit(*iris).decision_function(iris[0])
    two = quick(epochs=1, random_state=random_state).fit(*iris).decision_function(iris[0])
    assert not np.array_equal(one, two)


def test_class_weights_are_those_of_the_recipe_or_your_own(iris):
    x, y = iris[0][40:], np.array(["a", "b", "c"])[iris[1][40:]]  # 10, 50 and 50 rows
    own = {"a": 110 / 30, "b": 110 / 150, "c": 110 / 150}
    fits = [
        quick(class_weight=weight, calibration_fraction=0).fit(x, y).decision_function(x)
        for weight in (own, "balanced", None)
    ]
    by_recipe = quick(recipe=replace(RECIPES["fast"], class_weight="balanced"))
    by_recipe = by_recipe.set_params(calibration_fraction=0).fit(x, y).decision_function(x)
    assert np.array_equal(fits[0], by_recipe)
    np.testing.assert_allclose(fits[1], by_recipe, atol=1e-4)  # weights from double precision
    assert not np.allclose(fits[2], by_recipe, atol=1e-2)


def test_progress_is_shown_only_when_asked_for(iris, capfd):
    quick(epochs=1).fit(*iris)
    assert capfd.readouterr() == ("", "")
    quick(epochs=1, verbose=True).fit(*iris)
    assert re.search(r"loss -?\d.*  valid_accuracy 0\.\d", capfd.readouterr().err)


# -- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"class_weight": {"a": 2.0}}, r"`class_weight` .*\['a'\]"),
        ({"class_weight": {0: 0.0}}, "`class_weight`"), ({"channels": "middle"}, "middle"),
        ({"acceptance_rate": "x"}, "`acceptance_rate`"), ({"acceptance_rate": 1.0}, "(0, 1)"),
        ({"calibration_fraction": None}, "`calibration_fraction`"),
        ({"calibration_fraction": 0.7}, "[0, 0.5)"), ({"recipe": "slow"}, "slow"),
        ({"validation_fraction": 0.5}, "[0, 0.5)"),
        ({"epochs": 1.5}, "epochs"), ({"network": mlp((4,), 5)}, "5"),
        ({"network": "nothing"}, "nothing"),
        ({"network": mlp((7,), 3)}, r"\(4,\)"), ({"network": lambda shape, k: "mlp"}, "Module"),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(iris, changes, named):
    named = re.escape(named) if named[0] in "([" else named
    with pytest.raises(InputError, match=named):
        quick(**changes).fit(*iris)


@pytest.mark.parametrize(
    ("x", "y", "named"),
    [
        (np.zeros((150, 4)), ["a", "b", None] * 50, "row 2"),
        (np.zeros((150, 4)), ["cat"] * 150, "one class"),
        (np.random.default_rng(0).uniform(size=(20, 3, 8, 3)), np.arange(20) % 2, "`channels`"),
    ],
)
def test_data_that_cannot_be_learned_are_refused(x, y, named):
    with pytest.raises(InputError, match=named):
        quick().fit(x, y)


def test_text_is_refused_with_the_pipeline_that_takes_it():
    table = pd.DataFrame({"plan": ["a", "b"] * 75, "fee": 0.0, "day": pd.Timestamp(0)})
    for x, named in (
        (table, "plan, day"), (table.astype({"plan": "category"}), "plan, day"),
        (table[["plan"]].to_numpy(), "columns 0"), (table.to_numpy().tolist(), "columns 0, 2"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=rf"{named}: .*jem\.make_pipeline"):
            quick().fit(x, [0, 1] * 75)


def test_images_of_another_shape_are_refused():
    x, y = images()
    classifier = quick(epochs=1, network=narrow).fit(x, y)
    for other in (x[0], x.reshape(60, 64), x[:, :4], x[:, None], [[1, 2], [3]]):
        with pytest.raises(InputError, match=r"shape \(N, 8, 8\), as in training"):
            classifier.predict(other)
    with pytest.raises(ValueError, match="NaN"):
        classifier.predict(np.full_like(x, np.nan))
    with pytest.raises(ValueError, match=r"0 sample\(s\)"):
        classifier.predict(x[:0])


def test_labels_and_seeds_of_samples_are_checked(fitted):
    for labels in (["2"], ["cat"], [[1]]):
        with pytest.raises(
            InputError, match=r"`labels` must hold 1 labels among \[0, 1, 2\], got"
        ):
            fitted.sample(labels)
    for seed in (-1, None):
        with pytest.raises(InputError, match="seed"):
            fitted.sample([1], random_state=seed)


def test_too_few_rows_for_a_threshold_are_said_by_fit_and_when_it_is_needed(iris):
    with pytest.warns(UserWarning, match="`is_ood` will fail: no inputs .* 75 inputs or more"):
        tiny = quick().fit(iris[0][::10], iris[1][::10])
    assert tiny.detector_ is None
    with pytest.raises(InputError, match="75 inputs or more"):
        tiny.ood_reason(iris[0])
