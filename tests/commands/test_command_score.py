"""`jem score`: the table it writes, and what it refuses."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_wine
from torch import nn

import jem
from jem.commands.runs import Run
from jem.serving.scorer import fit_scorer, load_scorer

FIGURES = ["probability", "calibrated_probability", "log_density", "score", "p_value"]
SECOND = ["second_class", "second_calibrated_probability"]


def table_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def score(run, tmp_path):
    """Score inputs, and return the rows of the table."""

    def make(folder, inputs, *words, name="scores.csv"):
        if isinstance(inputs, np.ndarray):
            np.save(tmp_path / "x.npy", inputs)
            inputs = tmp_path / "x.npy"
        out = tmp_path / name
        assert run("score", folder, inputs, "--out", out, "--force", "--quiet", *words) == 0
        return table_of(tmp_path / name)

    return make


@pytest.fixture(scope="module")
def wine_run(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("score") / "wine"
    return train(folder, "wine", "plain", detector=False, data="wine")


@pytest.fixture(scope="module")
def raw_wine():
    wine = jem.data.load("wine")
    return wine.scaling.invert(wine.test.x).double().numpy()


# -- what it writes -------------------------------------------------------------------------------


def test_a_table_that_is_there_is_overwritten_only_by_force(
    run, refused, digits_run, raw_digits, tmp_path
):
    np.save(tmp_path / "x.npy", raw_digits)
    out = tmp_path / "scores.csv"
    out.write_text("mine")
    words = ("score", digits_run, tmp_path / "x.npy", "--out", out, "--quiet")
    assert "is there already" in refused(*words)
    assert out.read_text() == "mine"
    assert run(*words, "--force") == 0
    assert len(table_of(out)) == len(raw_digits)


def test_the_table_holds_what_the_scorer_says(score, digits_run, raw_digits, capsys):
    rows = score(digits_run, raw_digits, "--batch-size", 100)
    captured = capsys.readouterr()
    names = ["input", "class", *FIGURES[:2], *SECOND, *FIGURES[2:], "ood", "reason"]
    assert list(rows[0]) == names
    scorer = load_scorer(digits_run)
    found = scorer.predict(scorer.model.preprocess(raw_digits))
    assert [row["input"] for row in rows] == [str(i) for i in range(len(raw_digits))]
    assert [row["class"] for row in rows] == [str(int(k)) for k in found.class_index]
    second = found.calibrated_probabilities.sort(descending=True)
    assert [row["second_class"] for row in rows] == [str(int(k)) for k in second.indices[:, 1]]
    stated = [float(row["second_calibrated_probability"]) for row in rows]
    np.testing.assert_allclose(stated, second.values[:, 1], rtol=1e-4, atol=1e-6)
    for name in FIGURES:
        values = [float(row[name]) for row in rows]
        np.testing.assert_allclose(values, getattr(found, name), rtol=1e-4, atol=1e-6)
    assert [row["ood"] for row in rows] == [str(flag).lower() for flag in found.is_ood.tolist()]
    assert [row["reason"] for row in rows] == found.reason
    assert {"unlike the data", ""} <= set(found.reason)
    rejected = int(found.is_ood.sum())
    assert f"360 inputs, {rejected} rejected ({rejected / 360:.2%})" in captured.out
    assert "accepts 0.95" in captured.out
    assert captured.err == ""  # the saved detector was used, and no bar is drawn here


def test_a_rejected_row_of_a_table_names_the_columns_that_make_it_foreign(score, tmp_path):
    x, y = load_wine(return_X_y=True, as_frame=True)
    classifier = jem.JEMClassifier(epochs=5, random_state=0).fit(x, y)
    jem.save(classifier.model_, tmp_path / "wine.pt", detector=classifier.detector_)
    x.loc[::2, "magnesium"] *= 1000
    x.to_csv(tmp_path / "new.csv", index=False)
    rows = score(tmp_path / "wine.pt", tmp_path / "new.csv")
    named = [row["foreign_columns"] for row in rows]
    assert all(row.split(";")[0] == "magnesium" for row in named[::2])
    assert [name != "" for name in named] == [row["ood"] == "true" for row in rows]


def test_text_dates_and_gaps_are_scored_as_they_were_trained(run, refused, score, tmp_path):
    rng, count = np.random.default_rng(0), 160
    table = pd.DataFrame(
        {"age": rng.integers(18, 80, count), "plan": rng.choice(["a", "b"], count)}
    )
    table["since"] = pd.date_range("2020-01-01", periods=count)
    table["age"] = table["age"].where(rng.random(count) > 0.1)
    own = table.assign(label=table["plan"] + "!")
    own.to_csv(tmp_path / "own.csv", index=False)
    words = ("--data", tmp_path / "own.csv", "--out", tmp_path / "run", "--epochs", 3, "--quiet")
    assert run("train", *words, "--no-report") == 0
    columns = json.loads((tmp_path / "run" / "config.json").read_text())["columns"]
    assert [column["kind"] for column in columns] == ["number", "one-hot", "date"]

    new = table.assign(plan=table["plan"].mask(table.index % 2 == 0, "z"))
    new["id"] = [f"00{row}" for row in new.index]
    new[["since", "plan", "id", "age"]].to_csv(tmp_path / "new.csv", index=False)
    rows = score(tmp_path / "run" / "model.pt", tmp_path / "new.csv")
    assert [row["id"] for row in rows] == [f"00{row['input']}" for row in rows]
    assert all(row["foreign_columns"].split(";")[0] == "plan" for row in rows[::2])
    assert np.mean([row["ood"] == "true" for row in rows[1::2]]) < 0.2
    assert "in age, plan, since" in refused("inpaint", tmp_path / "run", tmp_path / "new.csv")
    out = ("--count", 5, "--out", tmp_path / "d.png")
    assert run("sample", tmp_path / "run" / "model.pt", *out) == 0
    drawn = pd.read_csv(tmp_path / "d.csv")
    assert list(drawn) == ["age", "plan", "since", "label"]
    assert list(drawn["label"]) == ["a!"] * 5 + ["b!"] * 5
    assert {*drawn["plan"]} <= {"a", "b"}
    assert drawn["since"].str.startswith("20").all()


def test_a_saved_detector_needs_no_data(score, digits_run, raw_digits, monkeypatch):
    monkeypatch.setattr(Run, "splits", lambda *_: pytest.fail("the data were read"))
    usual = score(digits_run, raw_digits[:20])
    strict = score(digits_run, raw_digits[:20], "--acceptance-rate", 0.5)
    assert [row["p_value"] for row in usual] == [row["p_value"] for row in strict]
    assert all((row["ood"] == "true") == (float(row["p_value"]) <= 0.5) for row in strict)


def test_without_a_detector_one_is_fitted(score, wine_run, raw_wine, tmp_path, capsys):
    lines = [",".join([*map(repr, row), "red"]) for row in raw_wine.tolist()]
    header = ",".join([*(f"column{i}" for i in range(13)), "label"])
    (tmp_path / "wine.csv").write_text("\n".join([header, *lines]))
    words = ("--score", "entropy", "--acceptance-rate", 0.8)
    rows = score(wine_run, tmp_path / "wine.csv", *words)
    captured = capsys.readouterr()
    assert "fitting 'entropy' on the calibration part of wine" in captured.err
    assert "accepts 0.8" in captured.out
    wine = jem.data.load("wine")
    scorer = fit_scorer(jem.load(wine_run), wine, score="entropy", acceptance_rate=0.8)
    found = scorer.predict(scorer.model.preprocess(raw_wine))
    np.testing.assert_allclose([float(row["score"]) for row in rows], found.score, atol=1e-5)
    np.testing.assert_allclose([float(row["p_value"]) for row in rows], found.p_value, atol=1e-5)
    assert {row["class"] for row in rows} <= set(wine.classes)


def test_a_model_file_scores_as_its_run_does(score, refused, digits_run, raw_digits, tmp_path):
    shipped = Path(shutil.copy(digits_run / "model.pt", tmp_path / "shipped.pt"))
    assert score(shipped, raw_digits) == score(digits_run, raw_digits)
    shipped.write_bytes(b"damaged")
    assert "shipped.pt" in refused("score", shipped, tmp_path / "x.npy")


def test_a_share_that_few_inputs_cannot_promise(
    score, refused, wine_run, raw_wine, tmp_path, capsys
):
    score(wine_run, raw_wine)
    assert "accepts 0.9474 of inputs like the 18" in capsys.readouterr().out
    words = ("--acceptance-rate", 0.95, "--out", tmp_path / "more.csv")
    assert "19" in refused("score", wine_run, tmp_path / "x.npy", *words)


# -- what it reads --------------------------------------------------------------------------------


def test_images_give_what_their_bytes_give(score, digits_run, raw_digits, tmp_path):
    """White is white, in whatever range the training data were stored."""
    images = (raw_digits[:11] * 255 / 16).round().astype(np.uint8)
    names = []
    for number, image in enumerate(images):
        names.append(f"{number:02d}.png" if number % 2 else f"more/{number:02d}, a.png")
        (tmp_path / "in" / "more").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "in" / names[-1])
    expected = score(digits_run, images.astype(float) * 16 / 255)
    found = {row["input"]: row for row in score(digits_run, tmp_path / "in", "--batch-size", 4)}
    assert set(found) == set(names)
    for name, row in zip(names, expected, strict=True):
        assert found[name]["class"] == row["class"]
        for figure in FIGURES:
            assert float(found[name][figure]) == pytest.approx(float(row[figure]), rel=1e-4)
    (single,) = score(digits_run, tmp_path / "in" / "01.png")
    assert single["input"] == "01.png"


@pytest.mark.parametrize("factor", [1 / 16, 16])
def test_inputs_on_another_scale_get_one_line(score, digits_run, raw_digits, capsys, factor):
    score(digits_run, raw_digits * factor, "--batch-size", 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert "x.npy" in line
    assert "units" in line


def test_your_own_network_without_a_scaling(score, train, refused, tmp_path, monkeypatch, capsys):
    (tmp_path / "my_score_net.py").write_text(
        "from torch import nn\n"
        "def make(shape, classes):\n"
        "    return nn.Sequential(nn.Linear(shape[0], 8), nn.Tanh(), nn.Linear(8, classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    module = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
    how = {"module": module, "detector": False, "scaling": False, "data": "two_moons"}
    folder = train(tmp_path / "run", "two_moons", "plain", **how)
    x = jem.data.load("two_moons").test.x
    np.save("x.npy", x.numpy())
    assert "--network" in refused("score", folder, "x.npy")
    words = ("--network", "my_score_net:make")
    rows = score(folder, Path("x.npy"), *words)
    assert "network's own units" in capsys.readouterr().err
    expected = jem.load(folder, network=module).log_density(x).detach()
    np.testing.assert_allclose([float(r["log_density"]) for r in rows], expected, rtol=1e-4)


# -- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("existing", [None, "what was here before"])
def test_bad_inputs_are_named_and_leave_no_file(
    refused, digits_run, raw_digits, tmp_path, existing
):
    out, path = tmp_path / "out" / "scores.csv", tmp_path / "x.npy"
    out.parent.mkdir()
    if existing:
        out.write_text(existing)
    infinite, huge = raw_digits[:30].astype(np.float64), raw_digits[:30].astype(np.float64)
    infinite[25, 3, 4], huge[25, 3, 4] = np.nan, 1e39
    for x, named in ((infinite, "row 25"), (huge, "row 25"), (np.zeros((3, 5, 5)), "(3, 5, 5)")):
        np.save(path, x)
        words = ("--batch-size", 4, "--out", out, "--force")
        assert named in refused("score", digits_run, path, *words)
    assert [p.read_text() for p in out.parent.iterdir()] == ([existing] if existing else [])


def test_bad_images_and_cells_are_named(refused, digits_run, wine_run, tmp_path):
    out = ("--out", tmp_path / "s.csv")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "wide.png").write_bytes(b"no image")
    assert "wide.png" in refused("score", digits_run, tmp_path / "in", *out)
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    assert "(1, 8, 8)" in refused("score", digits_run, tmp_path / "t.csv", *out)
    header, good = ",".join(f"c{i}" for i in range(13)), ",".join(["1"] * 13)
    bad = good.replace("1", "tall", 1)
    (tmp_path / "t.csv").write_text("\n".join([header, *[good] * 8, bad]))
    message = refused("score", wine_run, tmp_path / "t.csv", "--batch-size", 4, *out)
    assert all(part in message for part in ("c0", "tall", "row 8"))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--score", "fame"], "fame"), (["--acceptance-rate", 1.5], "acceptance_rate"),
        (["--acceptance-rate", 0.999], "999"), (["--batch-size", -1], "--batch-size"),
        (["--device", "tpu"], "tpu"), (["--network", "resnet"], "module:factory"),
        (["--out", "x.npy"], "x.npy is read"), (["--label-column", "y"], "label_column"),
        (["--skip-damaged"], "skip_damaged"), (["--score", "gen", "--data", "wine"], "wine"),
    ],
)  # fmt: skip
def test_bad_words_are_refused(
    refused, digits_run, raw_digits, tmp_path, monkeypatch, words, named
):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", raw_digits[:5])
    assert named in refused("score", digits_run, "x.npy", *words)
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_runs_and_inputs_that_are_missing_are_named(refused, digits_run, tmp_path):
    assert "holds no run" in refused("score", tmp_path, tmp_path / "x.npy")
    assert "gone.npy" in refused("score", digits_run, tmp_path / "gone.npy")
