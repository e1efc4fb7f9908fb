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
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_iris
from sklearn.impute import SimpleImputer
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    Normalizer,
    OneHotEncoder,
    OrdinalEncoder,
    StandardScaler,
)
from torch import nn

import jem
from jem import RECIPES, InputError, JEMClassifier
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
    kept = {"detector": fitted.detector_, "temperature": fitted.temperature_}
    jem.save(fitted.model_, tmp_path / "model.pt", **kept)  # which holds no code
    found = jem.load_scorer(tmp_path / "model.pt").predict(fitted.model_.preprocess(iris[0]))
    assert np.array_equal(found.is_ood, fitted.is_ood(iris[0]))
    wanted = fitted.predict_proba(iris[0])
    np.testing.assert_allclose(found.calibrated_probabilities, wanted, rtol=0, atol=1e-6)


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


def test_grid_search_goes_over_settings_and_recipes(iris):
    rates = (1e-9, 2e-3)
    search = GridSearchCV(quick(epochs=20), {"learning_rate": rates}, cv=2).fit(*iris)
    assert search.best_params_ == {"learning_rate": 2e-3}
    recipe = replace(RECIPES["fast"], learning_rate=2e-3)
    by_recipe = quick(epochs=20, recipe=recipe).fit(*iris).decision_function(iris[0])
    assert np.array_equal(search.best_estimator_.decision_function(iris[0]), by_recipe)
    with pytest.raises(InputError, match="`density_weight` must be at least 0"):
        quick(density_weight=-1.0).fit(*iris)


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


@pytest.fixture(scope="module")
def customers():
    """A table of customers, and whether they stay."""
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame(
        {
            "months": rng.integers(0, 72, 240),
            "plan": rng.choice(["basic", "gold", "pro"], 240),
            "fee": rng.gamma(3, 20, 240),
            "paperless": rng.random(240) < 0.5,
            "region": pandas.Categorical(rng.choice(["north", "south"], 240)),
            "number": np.arange(240),
        }
    )
    frame.loc[3, "fee"] = np.nan
    return frame, np.where((frame["plan"] == "gold") & (frame["months"] > 20), "stays", "goes")


@pytest.fixture(scope="module")
def of_customers(customers):
    columns = make_column_transformer(
        (make_pipeline(SimpleImputer(), StandardScaler()), ["months", "fee"]),
        (OneHotEncoder(), ["plan"]),
        (OrdinalEncoder(), ["region"]),
        ("passthrough", ["paperless"]),
    )
    return jem.make_pipeline(columns, quick(epochs=15)).fit(*customers)


def test_a_pipeline_says_of_raw_rows_what_its_last_step_says(of_customers, customers):
    rows = customers[0]
    sliced, last = of_customers[:-1].transform(rows), of_customers[-1]
    assert np.array_equal(of_customers.is_ood(rows), last.is_ood(sliced))
    assert np.array_equal(of_customers.p_value(rows), last.p_value(sliced))
    assert np.array_equal(of_customers.ood_reason(rows), last.ood_reason(sliced))
    in_cents = rows.assign(fee=100 * rows["fee"])
    foreign = of_customers.is_ood(in_cents)
    assert foreign.mean() > 0.95
    named = of_customers.foreign_columns(in_cents)
    assert sum("fee" in names for names in named) > 0.95 * foreign.sum()
    copy = pickle.loads(pickle.dumps(of_customers))
    assert np.array_equal(copy.p_value(rows), of_customers.p_value(rows))


def test_a_table_encoder_takes_a_data_frame_as_it_is_and_samples_are_such_rows(customers):
    rows = customers[0].assign(since=pandas.date_range("2020-01-01", periods=240).astype(str))
    rows["fee"] = rows["fee"].astype(object).fillna(" ")  # a blank, as in many files
    pipeline = jem.make_pipeline(jem.TableEncoder(), quick(epochs=10)).fit(rows, customers[1])
    assert pipeline.score(rows, customers[1]) > 0.8
    drawn = pipeline.sample(count=30)
    assert list(drawn) == list(rows)
    assert set(drawn["plan"]) <= set(rows["plan"])
    assert drawn["since"].between(rows["since"].min(), rows["since"].max()).all()
    assert not pipeline.is_ood(drawn).all()
    unknown = rows.assign(plan="platinum")
    assert pipeline.is_ood(unknown).mean() > 0.95
    assert {named[0] for named in pipeline.foreign_columns(unknown[:20])} == {"plan"}


def test_samples_of_a_pipeline_miss_values_where_the_imputer_flags_them(customers):
    rows, labels = customers
    rows = rows[["months", "fee"]].mask(np.random.default_rng(0).random((len(rows), 2)) < 0.3)
    impute = SimpleImputer(strategy="median", add_indicator=True)
    pipeline = jem.make_pipeline(impute, StandardScaler(), quick(epochs=5)).fit(rows, labels)
    drawn = pipeline.sample(count=40)
    assert list(drawn) == ["months", "fee"]
    assert drawn.isna().mean().between(0.05, 0.6).all()


def test_samples_of_a_pipeline_are_rows_of_the_users_table(of_customers, customers):
    rows = customers[0].drop(columns="number")  # which no step has seen
    drawn = of_customers.sample(["stays"] * 20 + ["goes"] * 20)
    assert drawn.dtypes.equals(rows.dtypes)
    for name in ("plan", "region"):
        assert set(drawn[name]) <= set(rows[name])
    for name in ("months", "fee"):
        assert drawn[name].between(rows[name].min(), rows[name].max()).all()
    assert (of_customers.predict(drawn)[:20] == "stays").mean() > 0.5
    assert (of_customers.predict(drawn)[20:] == "goes").mean() > 0.9


def test_columns_may_be_named_by_place_and_a_step_without_an_inverse_is_refused(iris):
    x, y = iris
    columns = make_column_transformer((StandardScaler(), slice(2, 4)), ("drop", [0]))
    drawn = jem.make_pipeline(columns, quick(epochs=1)).fit(x, y).sample(count=30)
    assert drawn.shape == (30, 2)
    assert (drawn >= x[:, 2:].min(axis=0)).all()
    assert (drawn <= x[:, 2:].max(axis=0)).all()
    with pytest.raises(InputError, match="Normalizer lacks"):
        jem.make_pipeline(Normalizer(), quick(epochs=1)).fit(x, y).sample(count=1)
