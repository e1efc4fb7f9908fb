"""The page that the scikit-learn estimator writes of itself."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_wine
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import train_test_split

from jem import JEMClassifier
from jem.errors import InputError
from jem.estimator.report import subject_of
from jem.serving.scorer import fit_scorer

pytestmark = pytest.mark.usefixtures("quick_reference_classifier")


@pytest.fixture(scope="module")
def parts():
    frame = load_wine(as_frame=True)
    names = np.array(["barolo", "grignolino", "barbera"])[frame.target]
    return train_test_split(frame.data, names, random_state=0, stratify=names)


@pytest.fixture(scope="module")
def fitted(parts):
    x_train, _, y_train, _ = parts
    return JEMClassifier(epochs=20, random_state=0).fit(x_train, y_train)


@pytest.fixture(scope="module")
def figures(fitted, parts, tmp_path_factory, quick_reference_classifier):
    x_train, x_test, y_train, y_test = parts
    control = JEMClassifier("plain", epochs=20, random_state=0).fit(x_train, y_train)
    folder = tmp_path_factory.mktemp("report") / "new"
    found = fitted.report(x_test, y_test, x_train, y_train, folder=folder, control=control)
    return folder, found


def test_figures_are_those_of_the_estimator_on_the_test_part(figures, fitted, parts):
    _, found = figures
    _, x_test, _, y_test = parts
    row = found["classification"]["model"]["before"]
    assert row["accuracy"] == pytest.approx(fitted.score(x_test, y_test))
    assert row["num_samples"] == len(x_test)
    assert found["data"]["classes"] == list(fitted.classes_)
    accepted = found["ood"]["accepted"]["value"]
    assert accepted == pytest.approx(1 - fitted.is_ood(x_test).mean())


def test_report_scorer_and_estimator_share_threshold_and_temperature_to_the_bit(
    figures, fitted, parts
):
    x_train, x_test, y_train, y_test = parts
    splits = subject_of(fitted, (x_test, y_test), (x_train, y_train)).splits
    scorer = fit_scorer(fitted.model_, splits, acceptance_rate=fitted.acceptance_rate)
    found = figures[1]
    assert found["ood"]["threshold"] == fitted.detector_.threshold == scorer.detector.threshold
    temperature = found["classification"]["model"]["temperature"]
    assert temperature == fitted.temperature_.temperature == scorer.temperature.temperature
    x = fitted.model_.preprocess(x_test.to_numpy())
    said = fitted.predict_proba(x_test).max(axis=1)
    assert scorer.predict(x).calibrated_probability.numpy() == pytest.approx(said, abs=1e-5)


def test_page_and_figures_are_written_and_the_control_is_compared(figures):
    folder, found = figures
    assert json.loads((folder / "report.json").read_text()) == found
    page = (folder / "report.html").read_text()
    assert "JEMClassifier trained for 20 epochs" in page
    assert "JEMClassifier(epochs=20, random_state=0).fit(X_train, y_train)" in page
    assert found["run"]["config"]["epochs"] == 20
    assert "--ood" not in page
    behaved = found["verdicts"][4]
    assert (behaved["answer"], behaved["because"]) == ("yes", "recoveries from divergence: none")
    assert found["verdicts"][5]["answer"] in ("yes", "partly")  # it was looked at
    assert "jem train" not in page  # no command made it
    assert "accuracy_difference" in found["classification"]
    assert "fresh" in found["samples"]


def test_rows_that_trained_are_counted_in_a_warning(fitted, parts):
    x_train, x_test, y_train, y_test = parts
    mixed = pd.concat([x_test, x_train[:9]]), np.concatenate([y_test, y_train[:9]])
    count = len(x_test) + 9
    with pytest.warns(UserWarning, match=f"^9 of {count} rows of `X` are rows of ") as seen:
        subject_of(fitted, mixed, (x_train, y_train))
    assert len(seen) == 1
    assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        subject_of(fitted, (x_test, y_test), (x_train, y_train))


def test_images_without_labels_as_numbers(tmp_path, capsys):
    rng = np.random.default_rng(0)
    y = np.array(["dark", "light"])[np.arange(200) % 2]
    x = rng.integers(0, 100, (200, 8, 8), dtype=np.uint8)
    x[y == "light"] += 100
    classifier = JEMClassifier("plain", epochs=2, random_state=0, verbose=True)
    found = classifier.fit(x[:150], y[:150]).report(
        x[150:].tolist(), y[150:], x[:150], pd.Series(y[:150]), folder=tmp_path
    )
    assert "measuring OOD sets" in capsys.readouterr().err
    assert found["data"]["kind"] == "image"
    assert found["classification"]["model"]["before"]["accuracy"] > 0.9
    assert "samples" in found["left_out"]


def test_the_parts_are_those_of_fit_whatever_parameters_say_now(parts):
    x_train, x_test, y_train, y_test = parts
    classifier = JEMClassifier("plain", epochs=1, random_state=0).fit(x_train, y_train)
    asked = (x_test, y_test), (x_train, y_train), None
    before = subject_of(classifier, *asked)
    classifier.set_params(calibration_fraction=0.4, acceptance_rate=0.5, validation_fraction=0)
    after = subject_of(classifier, *asked)
    assert torch.equal(after.splits.calibration.x, before.splits.calibration.x)
    assert after.run == before.run


@pytest.mark.parametrize("layout", ["fortran", "strided", "frame"])
def test_data_are_known_again_however_they_lie_in_memory(layout):
    wide, y = np.random.default_rng(0).normal(size=(120, 6)), np.arange(120) % 2
    x = {
        "fortran": np.asfortranarray(wide), "strided": wide[:, ::2], "frame": pd.DataFrame(wide),
    }[layout].copy()  # fmt: skip
    x = x.rename(columns=str) if layout == "frame" else x
    classifier = JEMClassifier("plain", epochs=1, random_state=0).fit(x, y)
    with pytest.warns(UserWarning, match="rows of `X` are rows of `X_train` too"):
        subject = subject_of(classifier, (x[:20], y[:20, None]), (x, y))
    assert len(subject.splits.test) == 20
    with pytest.raises(InputError, match="what `fit` was given"):
        subject_of(classifier, (x[:20], y[:20]), (x, y[::-1]))


def test_labels_that_do_not_fit_are_refused(fitted, parts):
    x_train, x_test, y_train, y_test = parts
    with pytest.raises(InputError, match="`y` must hold 45 labels"):
        subject_of(fitted, (x_test, ["merlot"] * len(x_test)), (x_train, y_train))
    with pytest.raises(InputError, match="`y_train` must hold 133 labels"):
        subject_of(fitted, (x_test, y_test), (x_train, y_train[:5]))


@pytest.mark.parametrize("changes", [{"calibration_fraction": 0.3}, {"random_state": 1}])
def test_a_control_must_be_fitted_on_the_same_parts(fitted, parts, changes):
    x_train, x_test, y_train, y_test = parts
    asked = (x_test, y_test), (x_train, y_train)
    control = JEMClassifier("plain", epochs=1, **({"random_state": 0} | changes))
    with pytest.raises(NotFittedError):
        subject_of(fitted, *asked, control)
    with pytest.raises(InputError, match="`control` must be fitted on the same data"):
        subject_of(fitted, *asked, control.fit(x_train, y_train))


def test_without_held_out_rows_there_is_no_report(parts):
    x_train, x_test, y_train, y_test = parts
    bare = JEMClassifier(epochs=1, calibration_fraction=0, random_state=0).fit(x_train, y_train)
    with pytest.raises(InputError, match="held out"):
        subject_of(bare, (x_test, y_test), (x_train, y_train))
