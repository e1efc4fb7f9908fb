"""`jem score` as a person meets it: the table it writes, and what it says to mistakes."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import jem
from jem import networks
from jem.cli import main
from jem.commands import runs
from jem.model import JEM
from jem.serving.scorer import DETECTOR_FILE, fit_scorer, load_scorer
from jem.training.trainer import Trainer

COLUMNS = [
    "input",
    "class",
    "probability",
    "calibrated_probability",
    "log_density",
    "p_value",
    "ood",
]
RNG = np.random.default_rng(0)


def run(*words):
    return main([str(word) for word in words])


def refused(capsys, out, *words):
    """The one line that a mistake gets; what was there before stays, and nothing is added."""
    before = out.read_bytes() if out.exists() else None
    capsys.readouterr()
    assert run("score", *words, "--out", out) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("jem: error: ")
    assert all(line.startswith("jem: ") for line in lines), lines
    assert (out.read_bytes() if out.exists() else None) == before
    if out.parent.is_dir():
        assert not [path for path in out.parent.iterdir() if "partial" in path.name]
    return lines[-1]


def table_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def column(path, name):
    return [row[name] for row in table_of(path)]


def make_run(folder, splits, network, save=True, **metadata):
    """A run as `jem train` leaves it, hardly trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        own = network()
    model = JEM(own, classes=splits.classes, domain=splits.domain, scaling=splits.scaling)
    recipe = replace(jem.RECIPES["plain"], epochs=2, batch_size=128)
    trainer = Trainer(model, recipe, run_dir=folder, device="cpu", metadata=metadata)
    trainer.fit(splits.train)
    if save:
        fit_scorer(model, splits).save(folder / DETECTOR_FILE)
    return folder


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    return make_run(
        tmp_path_factory.mktemp("score") / "digits",
        jem.data.load("digits"),
        lambda: networks.small_cnn((1, 8, 8), 10, width=4),
        data="digits",
    )


@pytest.fixture(scope="module")
def wine_run(tmp_path_factory):
    return make_run(
        tmp_path_factory.mktemp("score") / "wine",
        jem.data.load("wine"),
        lambda: networks.mlp((13,), 3, width=8, depth=1),
        save=False,
        data="wine",
    )


@pytest.fixture(scope="module")
def pictures():
    """Bytes of 60 grey images, dark cats and bright dogs."""
    images = RNG.integers(0, 256, (60, 6, 5)).astype(np.uint8)
    images[::2] //= 4
    return images


@pytest.fixture(scope="module")
def picture_run(tmp_path_factory, pictures):
    folder = tmp_path_factory.mktemp("score")
    np.savez(folder / "pets.npz", images=pictures, labels=np.array(["cat", "dog"] * 30))
    return make_run(
        folder / "pets",
        jem.data.load(folder / "pets.npz"),
        lambda: networks.small_cnn((1, 6, 5), 2, width=4),
        data=str(folder / "pets.npz"),
    )


@pytest.fixture(scope="module")
def raw_digits():
    """The test part in its raw units, 0 to 16, as scikit-learn has it."""
    data = jem.data.load("digits")
    return data.scaling.invert(data.test.x)[:, 0].numpy().round()


@pytest.mark.parametrize("factor", [1 / 16, 16])
def test_inputs_on_another_scale_are_said_in_one_line(
    digits_run, raw_digits, tmp_path, capsys, factor
):
    np.save(tmp_path / "x.npy", raw_digits * factor)
    words = ("--out", tmp_path / "scores.csv", "--quiet", "--batch-size", 2)
    assert run("score", digits_run, tmp_path / "x.npy", *words) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"jem: {tmp_path / 'x.npy'}: the largest absolute value of")
    np.save(tmp_path / "x.npy", raw_digits)
    assert run("score", digits_run, tmp_path / "x.npy", *words) == 0
    assert capsys.readouterr().err == ""


# -- what it writes -------------------------------------------------------------------------------


def test_table_holds_what_the_scorer_says(digits_run, raw_digits, tmp_path, capsys):
    np.save(tmp_path / "x.npy", raw_digits)
    out = tmp_path / "scores.csv"
    assert run("score", digits_run, tmp_path / "x.npy", "--out", out, "--batch-size", 100) == 0
    rows = table_of(out)
    assert list(rows[0]) == COLUMNS
    scorer = load_scorer(digits_run)
    table = scorer.predict(scorer.model.preprocess(raw_digits))
    assert [row["input"] for row in rows] == [str(i) for i in range(len(raw_digits))]
    assert [row["class"] for row in rows] == [str(int(k)) for k in table.class_index]
    for name in COLUMNS[2:6]:
        found = [float(row[name]) for row in rows]
        np.testing.assert_allclose(found, getattr(table, name), rtol=1e-4, atol=1e-6)
    assert [row["ood"] for row in rows] == [str(flag).lower() for flag in table.is_ood.tolist()]
    captured = capsys.readouterr()
    rejected = int(table.is_ood.sum())
    assert f"360 inputs, {rejected} rejected ({rejected / 360:.2%})" in captured.out
    assert "accepts 0.95 of inputs like the 100" in captured.out
    assert captured.err == ""  # the saved detector was used, and no bar is drawn here


def test_saved_detector_needs_no_data(digits_run, raw_digits, tmp_path, monkeypatch):
    monkeypatch.setattr(runs.Run, "splits", lambda *_: pytest.fail("the data were read"))
    np.save(tmp_path / "x.npy", raw_digits[:20])
    out, strict = tmp_path / "a.csv", tmp_path / "b.csv"
    assert run("score", digits_run, tmp_path / "x.npy", "--out", out) == 0
    words = ("--acceptance-rate", "0.5", "--score", "log_density")
    assert run("score", digits_run, tmp_path / "x.npy", "--out", strict, *words) == 0
    assert column(out, "p_value") == column(strict, "p_value")
    flagged = [flag == "true" for flag in column(strict, "ood")]
    assert flagged == [float(p) <= 0.5 for p in column(strict, "p_value")]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_and_npy_give_the_same(save, digits_run, raw_digits, tmp_path):
    save(tmp_path / "x.npz", images=raw_digits[:30], labels=np.arange(30))
    np.save(tmp_path / "x.npy", raw_digits[:30, None])
    for name in ("x.npz", "x.npy"):
        out = tmp_path / f"{name}.csv"
        assert run("score", digits_run, tmp_path / name, "--out", out) == 0
    assert (tmp_path / "x.npz.csv").read_text() == (tmp_path / "x.npy.csv").read_text()


def test_columns_of_a_table_may_come_in_another_order(tmp_path, capsys):
    rng = np.random.default_rng(0)
    rows = [(x, 10 * y, "ab"[int(x > 0)]) for x, y in rng.normal(size=(40, 2)).round(3)]
    (tmp_path / "own.csv").write_text(
        "\n".join(["u,v,label", *(f"{u},{v},{k}" for u, v, k in rows)])
    )
    words = ("--data", tmp_path / "own.csv", "--out", tmp_path / "run", "--epochs", "1")
    assert run("train", *words, "--buffer-size", "64", "--no-report", "--quiet") == 0
    (tmp_path / "same.csv").write_text("\n".join(["u,v", *(f"{u},{v}" for u, v, _ in rows)]))
    (tmp_path / "moved.csv").write_text(
        "\n".join(["v,id,u", *(f"{v},row{i},{u}" for i, (u, v, _) in enumerate(rows))])
    )
    for name in ("same", "moved"):
        out = tmp_path / f"{name}.out.csv"
        assert run("score", tmp_path / "run", tmp_path / f"{name}.csv", "--out", out) == 0
    assert table_of(tmp_path / "same.out.csv") == table_of(tmp_path / "moved.out.csv")
    (tmp_path / "less.csv").write_text("w,v\n1,2\n")
    message = refused(capsys, tmp_path / "s.csv", tmp_path / "run", tmp_path / "less.csv")
    assert "(u is missing), got w, v" in message


def test_missing_detector_is_fitted_and_said(wine_run, tmp_path, capsys):
    wine = jem.data.load("wine")
    raw = wine.scaling.invert(wine.test.x).double().numpy()
    names = [f"column{i}" for i in range(13)]
    path, out = tmp_path / "wine.csv", tmp_path / "scores.csv"
    lines = [",".join([*map(repr, row), "red"]) for row in raw.tolist()]
    path.write_text("\n".join([",".join([*names, "label"]), *lines]))
    words = ("--score", "entropy", "--acceptance-rate", "0.8")
    assert run("score", wine_run, path, "--out", out, *words) == 0
    captured = capsys.readouterr()
    assert "there is no" in captured.err
    assert "fitting 'entropy' on the calibration part of wine" in captured.err
    assert f"accepts 0.8 of inputs like the {len(wine.calibration)}" in captured.out
    rows = table_of(out)
    assert list(rows[0]) == [*COLUMNS[:5], "score", *COLUMNS[5:]]
    scorer = fit_scorer(jem.load(wine_run), wine, score="entropy", acceptance_rate=0.8)
    table = scorer.predict(scorer.model.preprocess(raw))
    np.testing.assert_allclose([float(row["score"]) for row in rows], table.score, atol=1e-5)
    np.testing.assert_allclose([float(row["p_value"]) for row in rows], table.p_value, atol=1e-5)
    assert {row["class"] for row in rows} <= set(wine.classes)
    assert not (wine_run / DETECTOR_FILE).exists()


def test_a_share_that_few_inputs_cannot_promise(wine_run, tmp_path, capsys):
    wine = jem.data.load("wine")
    assert len(wine.calibration) == 18
    np.save(tmp_path / "x.npy", wine.scaling.invert(wine.test.x).numpy())
    out = tmp_path / "scores.csv"
    assert run("score", wine_run, tmp_path / "x.npy", "--out", out) == 0
    assert "accepts 0.9474 of inputs like the 18" in capsys.readouterr().out
    message = refused(capsys, out, wine_run, tmp_path / "x.npy", "--acceptance-rate", 0.95)
    assert "acceptance_rate=0.95 needs at least 19 calibration inputs, but got 18" in message


def test_images_give_what_their_bytes_give(picture_run, pictures, tmp_path):
    names = []
    for number, image in enumerate(pictures[:11]):
        name = f"{number:02d}.png" if number % 2 else f"more/{number:02d}, a.png"
        (tmp_path / "in" / "more").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "in" / name)
        names.append(name)
    np.save(tmp_path / "x.npy", pictures[:11])
    for name in ("in", "x.npy", "in/01.png"):
        out = tmp_path / f"{Path(name).name}.csv"
        words = ("--out", out, "--batch-size", 4)
        assert run("score", picture_run, tmp_path / name, *words) == 0
    found = {row.pop("input"): row for row in table_of(tmp_path / "in.csv")}
    expected = table_of(tmp_path / "x.npy.csv")
    assert set(found) == set(names)
    assert {row["class"] for row in found.values()} <= {"cat", "dog"}
    for name, row in zip(names, expected, strict=True):
        row.pop("input")
        assert found[name].keys() == row.keys()
        assert found[name]["class"] == row["class"]
        for figure in COLUMNS[2:6]:
            assert float(found[name][figure]) == pytest.approx(float(row[figure]), rel=1e-4)
    single = table_of(tmp_path / "01.png.csv")
    assert [row["input"] for row in single] == ["01.png"]


def test_white_is_white_in_whatever_range_training_was(digits_run, raw_digits, tmp_path):
    bright = (raw_digits[0] * 255 / 16).round().astype(np.uint8)
    Image.fromarray(bright).save(tmp_path / "digit.png")
    np.save(tmp_path / "x.npy", bright.astype(float) * 16 / 255)
    for name in ("digit.png", "x.npy"):
        out = tmp_path / f"{name}.csv"
        assert run("score", digits_run, tmp_path / name, "--out", out) == 0
    rows = [table_of(tmp_path / f"{name}.csv")[0] for name in ("digit.png", "x.npy")]
    for name in COLUMNS[2:6]:
        assert float(rows[0][name]) == pytest.approx(float(rows[1][name]), rel=1e-4)


def test_own_network_and_no_scaling(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_score_net.py").write_text(
        "from torch import nn\n"
        "def make(shape, classes):\n"
        "    return nn.Sequential(nn.Linear(shape[0], 8), nn.Tanh(), nn.Linear(8, classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    moons = jem.data.load("two_moons")
    folder = make_run(
        tmp_path / "run",
        replace(moons, scaling=None),
        lambda: nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)),
        save=False,
        data="two_moons",
    )
    np.save("x.npy", moons.test.x.numpy())
    out = tmp_path / "scores.csv"
    assert "network of your own" in refused(capsys, out, folder, "x.npy")
    words = ("--network", "my_score_net:make", "--quiet")
    assert run("score", folder, "x.npy", "--out", out, *words) == 0
    assert "network's own units" in capsys.readouterr().err
    rows = table_of(out)
    expected = jem.load(folder, network=make_own()).log_density(moons.test.x)
    found = [float(row["log_density"]) for row in rows]
    np.testing.assert_allclose(found, expected.detach(), rtol=1e-4, atol=1e-5)
    Image.new("L", (2, 2)).save("a.png")
    assert "as in training, got images" in refused(capsys, out, folder, "a.png", *words)


def make_own():
    import my_score_net

    return my_score_net.make((2,), 2)


def test_stale_or_damaged_detector_is_replaced_and_said(wine_run, tmp_path, capsys):
    wine = jem.data.load("wine")
    np.save(tmp_path / "x.npy", wine.scaling.invert(wine.test.x).numpy())
    file, out = wine_run / DETECTOR_FILE, tmp_path / "scores.csv"
    other = JEM(networks.mlp((13,), 3, width=8, depth=1), input_shape=(13,))
    try:
        fit_scorer(other, wine).save(file)
        assert run("score", wine_run, tmp_path / "x.npy", "--out", out) == 0
        assert "was fitted on other weights" in capsys.readouterr().err
        right = out.read_text()
        file.write_bytes(b"damaged")
        assert run("score", wine_run, tmp_path / "x.npy", "--out", out) == 0
        assert "cannot be read" in capsys.readouterr().err
        assert out.read_text() == right
    finally:
        file.unlink()


# -- mistakes -------------------------------------------------------------------------------------


def test_bad_inputs_name_row_or_file_and_leave_no_file(digits_run, raw_digits, tmp_path, capsys):
    out = tmp_path / "out" / "scores.csv"
    out.parent.mkdir()
    path = tmp_path / "x.npy"
    bad = raw_digits[:30].copy()
    bad[25, 3, 4] = np.nan
    np.save(path, bad)
    words = (digits_run, path, "--batch-size", 4)
    assert "got nan in row 25, position (3, 4)" in refused(capsys, out, *words)
    out.write_text("what was here before")
    assert "got nan in row 25" in refused(capsys, out, *words)
    np.save(path, np.zeros((3, 5, 5)))
    assert "got (3, 5, 5)" in refused(capsys, out, digits_run, path)
    bad = bad.astype(np.float64)
    bad[25, 3, 4] = 1e39
    np.save(path, bad)
    assert "got 1e+39 in row 25" in refused(capsys, out, *words)
    (tmp_path / "in").mkdir()
    Image.new("L", (9, 8)).save(tmp_path / "in" / "wide.png")
    assert "got 9 x 8" in refused(capsys, out, digits_run, tmp_path / "in")
    (tmp_path / "in" / "wide.png").write_bytes(b"no image")
    assert "wide.png" in refused(capsys, out, digits_run, tmp_path / "in")
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    assert "images of 1 x 8 x 8" in refused(capsys, out, digits_run, tmp_path / "t.csv")


def test_a_bad_cell_names_line_and_column(wine_run, tmp_path, capsys):
    header, good = ",".join(f"c{i}" for i in range(13)), ",".join(["1"] * 13)
    path = tmp_path / "a.csv"
    path.write_text("\n".join([header, *[good] * 8, good.replace("1", "tall", 1)]))
    message = refused(capsys, tmp_path / "s.csv", wine_run, path, "--batch-size", 4)
    assert "column 'c0'" in message
    assert "tall in row 8" in message


def test_bad_words_are_refused(digits_run, raw_digits, tmp_path, capsys):
    np.save(tmp_path / "x.npy", raw_digits[:5])
    x, out = tmp_path / "x.npy", tmp_path / "s.csv"
    assert "holds no run" in refused(capsys, out, tmp_path, x)
    assert "gone.npy` must be a file or a folder" in refused(
        capsys, out, digits_run, tmp_path / "gone.npy"
    )
    assert "no folder" in refused(capsys, tmp_path / "no" / "s.csv", digits_run, x)
    assert "is read, and would be lost" in refused(capsys, x, digits_run, x)
    assert "unknown OOD score 'fame'" in refused(capsys, out, digits_run, x, "--score", "fame")
    assert "`acceptance_rate` must lie in (0, 1)" in refused(
        capsys, out, digits_run, x, "--acceptance-rate", 1.5
    )
    assert "needs at least 999" in refused(capsys, out, digits_run, x, "--acceptance-rate", 0.999)
    assert "at least 1, got -1" in refused(capsys, out, digits_run, x, "--batch-size", -1)
    assert "device 'tpu'" in refused(capsys, out, digits_run, x, "--device", "tpu")
    assert "'module:factory'" in refused(capsys, out, digits_run, x, "--network", "resnet")
    capsys.readouterr()
    assert run("score", digits_run, x, "--out", tmp_path) == 2
    assert "is a folder" in capsys.readouterr().err
    assert run("score", digits_run, x, "--out", "/dev/null") == 2
    assert "no ordinary file" in capsys.readouterr().err
    assert "leave out label_column" in refused(capsys, out, digits_run, x, "--label-column", "y")
    assert "leave out skip_damaged" in refused(capsys, out, digits_run, x, "--skip-damaged")


def test_data_that_are_not_those_of_the_run_are_refused(digits_run, raw_digits, tmp_path, capsys):
    np.save(tmp_path / "x.npy", raw_digits[:5])
    images = RNG.integers(0, 256, (200, 8, 8)).astype(np.uint8)  # of another range
    np.savez(tmp_path / "other.npz", images=images, labels=np.arange(200) % 10)
    words = (digits_run, tmp_path / "x.npy", "--score", "gen", "--data", tmp_path / "other.npz")
    assert "other is not what the run was trained on" in refused(
        capsys, tmp_path / "s.csv", *words
    )


def test_run_that_does_not_name_its_data_says_what_to_do(wine_run, tmp_path, capsys):
    config = json.loads((wine_run / "config.json").read_text())
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "checkpoints").symlink_to(wine_run / "checkpoints")
    del config["data"]
    (folder / "config.json").write_text(json.dumps(config))
    np.save(tmp_path / "x.npy", np.zeros((2, 13)))
    message = refused(capsys, tmp_path / "s.csv", folder, tmp_path / "x.npy")
    assert "name them with --data" in message
    assert (
        run("score", folder, tmp_path / "x.npy", "--out", tmp_path / "s.csv", "--data", "wine")
        == 0
    )


def test_a_full_disk_leaves_no_file(digits_run, raw_digits, tmp_path, capsys, monkeypatch):
    np.save(tmp_path / "x.npy", raw_digits[:5])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert "No space left" in refused(capsys, tmp_path / "s.csv", digits_run, tmp_path / "x.npy")
