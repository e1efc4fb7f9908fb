"""Commands keep what a person has: files, data sets and runs, none of them taken for another."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jem.cli import main
from jem.commands import compare
from jem.commands.config import RunConfig
from jem.commands.outputs import Drawing
from jem.commands.runs import check_same_data, checksum
from jem.commands.train import default_folder
from jem.data import load
from jem.errors import InputError
from jem.training.recipes import RECIPES

WITHOUT = ["--quiet", "--device", "cpu", "--no-report"]
QUICK = [
    *WITHOUT, "--epochs", "2", "--num-chains", "16", "--buffer-size", "32", "--sample-steps", "2",
]  # fmt: skip
FEW = ("--count", 1, "--quiet")


def run(*words):
    return main([str(word) for word in words])


def refused(capsys, *words):
    """The one line that a mistake gets."""
    capsys.readouterr()
    assert run(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("jem: error: ")
    return line


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a table, `own.csv`, and a run on it, `run`."""
    folder = tmp_path_factory.mktemp("guards")
    x = np.random.default_rng(0).normal(size=(80, 2)).round(3)
    rows = [f"{u},{v},{'yes' if u > 0 else 'no'}" for u, v in x]
    (folder / "own.csv").write_text("\n".join(["u,v,label", *rows]) + "\n")
    assert run("train", "--data", folder / "own.csv", "--out", folder / "run", *QUICK) == 0
    return folder


@pytest.fixture
def own(made, tmp_path):
    """A copy of that folder, whose run has its data there."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    change(tmp_path / "run", data=str(tmp_path / "own.csv"))
    return tmp_path


def change(folder, **settings):
    """Change the configuration of a run."""
    config = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps(config))


# -- files ----------------------------------------------------------------------------------------


def test_samples_are_not_written_over_what_jem_did_not_draw(own, capsys):
    (own / "t.csv").write_text("u,v,label\n1,2,yes\n")
    np.savez(own / "d.npz", x=np.zeros((2, 2)), labels=[0, 1])
    before = {path: path.read_bytes() for path in own.iterdir() if path.is_file()}
    for name in ("t.png", "d", "own.png"):
        message = refused(capsys, "sample", own / "run", *FEW, "--out", own / name)
        assert "would be lost" in message
    assert {path: path.read_bytes() for path in own.iterdir() if path.is_file()} == before
    for seed in (0, 1):  # one's own may be
        assert run("sample", own / "run", *FEW, "--seed", seed, "--out", own / "s.png") == 0
    change(own / "run", data=str(own / "s.csv"))  # unless it was trained on since
    assert "s.csv is read" in refused(capsys, "sample", own / "run", *FEW, "--out", own / "s.png")


def test_a_mask_is_not_written_over_by_what_it_completes(own, capsys):
    np.save(own / "x.npy", np.zeros((3, 2)))
    np.savez(own / "mask.npz", mask=np.array([0, 1]), metadata="as if drawn")
    words = ("--mask", own / "mask.npz", "--out", own / "mask.png")
    assert "mask.npz is read" in refused(capsys, "inpaint", own / "run", own / "x.npy", *words)


def test_scores_are_not_written_over_the_data(own, capsys):
    np.save(own / "x.npy", np.zeros((3, 2)))
    words = ("score", own / "run", own / "x.npy", "--out", own / "own.csv")
    assert "own.csv is read, and would be lost" in refused(capsys, *words)


def test_a_picture_in_a_folder_that_is_read_is_not_written_over(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "1.png")
    assert Drawing.at(tmp_path / "1.png").picture == tmp_path / "1.png"
    with pytest.raises(InputError, match=r"1\.png would be lost"):
        Drawing.at(tmp_path / "1.png", tmp_path)


def test_home_is_home_for_outputs_too(made, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Drawing.at(Path("~/s")).picture == tmp_path / "s.png"
    np.save(tmp_path / "x.npy", np.zeros((3, 2)))
    words = ("--acceptance-rate", 0.5, "--quiet", "--out=~/scores.csv")
    assert run("score", made / "run", tmp_path / "x.npy", *words) == 0
    assert (tmp_path / "scores.csv").exists()
    assert run("train", "--data", "iris", "--dry-run", "--out=~/q", *WITHOUT) == 0
    assert f"run folder: {tmp_path}/q " in capsys.readouterr().out


# -- the data of a run ----------------------------------------------------------------------------


def test_data_that_changed_are_not_those_of_the_run(own, capsys):
    np.save(own / "x.npy", np.zeros((3, 2)))
    (own / "run" / "detector.pt").unlink()
    score = ("score", own / "run", own / "x.npy", "--quiet", "--out", own / "s.csv")
    assert run(*score, "--acceptance-rate", 0.5) == 0  # they were moved, not changed
    text = (own / "own.csv").read_text()
    resume = ("train", "--resume", "--out", own / "run", *WITHOUT)
    for changed in (text + "1,2,yes\n", text.replace("label\n", "label\n0,0,no\n").strip()):
        (own / "own.csv").write_text(changed)
        for words in (score, resume, ("report", own / "run", "--quiet")):
            assert "not those that" in refused(capsys, *words)
    check_same_data(own / "run", RunConfig(), load(own / "own.csv"))  # older runs take any


def test_the_checksum_of_images_on_disk_is_of_names_and_sizes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "one" / name).mkdir(parents=True)
        for i in range(9):
            Image.new("L", (4, 4), 9 * i).save(tmp_path / "one" / name / f"{i}.png")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    found = {}
    for limit in (0, 2**20):
        for name in ("one", "two"):
            found[limit, name] = checksum(load(tmp_path / name, memory_limit=limit))
    assert found[0, "one"] == found[0, "two"]
    assert found[2**20, "one"] == found[2**20, "two"]
    for i in range(9):
        (tmp_path / "two" / "a" / f"{i}.png").rename(tmp_path / "two" / "a" / f"new{i}.png")
    assert checksum(load(tmp_path / "two", memory_limit=0)) != found[0, "one"]


def test_a_column_of_labels_is_none_of_the_runs_own(made, tmp_path, capsys):
    (tmp_path / "x.csv").write_text("u,v\n0,1\n1,0\n")
    words = ("score", made / "run", tmp_path / "x.csv", "--acceptance-rate", 0.5, "--quiet")
    words += ("--out", tmp_path / "s.csv", "--label-column")
    assert "`label_column` must be no column of the training data" in refused(capsys, *words, "u")
    assert run(*words, "kind") == 0


def test_data_without_a_name_are_refused(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "but got ''" in refused(capsys, "data", "")
    assert "but got ''" in refused(capsys, "train", "--data", "")


# -- runs -----------------------------------------------------------------------------------------


def test_a_run_that_was_killed_is_said_to_be_unfinished(own, capsys):
    np.save(own / "x.npy", np.zeros((3, 2)))
    words = ("score", own / "run", own / "x.npy", "--acceptance-rate", 0.5, "--quiet")
    words += ("--out", own / "s.csv")
    done = json.loads((own / "run" / "config.json").read_text())["iterations"]
    change(own / "run", iterations=50)
    capsys.readouterr()
    assert run(*words) == 0
    assert capsys.readouterr().err == ""  # it ended by itself
    metrics = own / "run" / "metrics.jsonl"
    metrics.write_text("".join(line for line in metrics.open() if '"end"' not in line))
    assert run(*words) == 0
    expected = f"training was not finished ({done} of 50 updates): jem train --out {own / 'run'}"
    assert expected in capsys.readouterr().err


def test_a_recipe_is_not_hidden_by_that_of_a_file(tmp_path, capsys):
    config = tmp_path / "c.json"
    words = ("train", "--data", "iris", "--config", config, "--dry-run", "--out", tmp_path / "r")
    for recipe in (asdict(RECIPES["fast"]), "fast"):
        config.write_text(json.dumps({"recipe": recipe}))
        assert "c.json holds a whole recipe" in refused(capsys, *words, "--recipe", "plain")
        assert run(*words, "--recipe", "fast") == 0


def test_a_run_does_not_become_a_class_of_its_data(tmp_path, monkeypatch, capsys):
    for name in ("a", "b"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(9):
            Image.new("L", (8, 8), 9 * i).save(tmp_path / "pets" / name / f"{i}.png")
    monkeypatch.chdir(tmp_path / "pets")
    for words in (["--data", "."], ["--data", tmp_path / "pets", "--out", "."]):
        assert "would lie in the folder of the data" in refused(capsys, "train", *words, *QUICK)
    assert sorted(path.name for path in Path().iterdir()) == ["a", "b"]
    monkeypatch.chdir("a")
    assert "the run folder runs/pets would" in refused(capsys, "train", "--data", "..", *QUICK)
    assert run("train", "--data", "..", "--dry-run", "--out", tmp_path / "r", *QUICK) == 0


def test_resume_goes_to_the_last_folder_that_holds_a_run(tmp_path):
    for name in ("x", "x-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".lock").touch()
    (tmp_path / "x" / "config.json").write_text("{}")
    assert default_folder(tmp_path, "x", resume=True).name == "x"
    assert default_folder(tmp_path, "x", resume=False).name == "x-3"


# -- compare --------------------------------------------------------------------------------------


def report_of(folder, iterations):
    from jem.report.measure import SCHEMA_VERSION

    figures = {"run": {"iterations": iterations}, "summary": [], "verdicts": []}
    (folder / "report.json").write_text(json.dumps({"schema_version": SCHEMA_VERSION} | figures))


def test_a_report_older_than_the_run_is_made_anew(own, monkeypatch):
    done = json.loads((own / "run" / "config.json").read_text())["iterations"]
    monkeypatch.setattr(compare, "make_report", lambda args: "anew")
    report_of(own / "run", done)
    assert compare._figures(own / "run", quiet=True)["run"]["iterations"] == done
    report_of(own / "run", done - 1)
    assert compare._figures(own / "run", quiet=True) == "anew"


def test_folders_are_looked_at_before_any_is_measured(own, monkeypatch, capsys):
    monkeypatch.setattr(compare, "make_report", lambda args: pytest.fail("one was measured"))
    message = refused(capsys, "compare", own / "run", own / "none", "--out", own / "c.html")
    assert "none holds no run" in message
