"""Runs and their data: found again, held to each other, and said to be unfinished."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jem.commands.runs import check_out, check_same_data, checksum, open_run
from jem.commands.sample import drawing_files
from jem.commands.settings import RunConfig
from jem.data import load
from jem.errors import InputError

QUICK = [
    "--quiet", "--device", "cpu", "--no-report", "--epochs", "2", "--num-chains", "16",
    "--buffer-size", "32", "--sample-steps", "2",
]  # fmt: skip


@pytest.fixture(scope="module")
def made(run, table, tmp_path_factory):
    """A folder with a table, `own.csv`, and a run on it, `run`."""
    folder = tmp_path_factory.mktemp("runs")
    data = ("--data", table(folder / "own.csv"))
    assert run("train", *data, "--out", folder / "run", *QUICK) == 0
    np.save(folder / "x.npy", np.zeros((3, 2)))
    return folder


@pytest.fixture
def own(made, tmp_path):
    """A copy of that folder, whose run has its data there."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    change(tmp_path / "run", data=str(tmp_path / "own.csv"))
    return tmp_path


def change(folder, **settings):
    config = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps(config))


def test_data_that_changed_are_not_those_of_the_run(own, run, refused):
    score = ("score", own / "run", own / "x.npy", "--quiet", "--force", "--out", own / "s.csv")
    score += ("--acceptance-rate", 0.5, "--score", "entropy")  # so that the data are read
    assert run(*score) == 0  # they were moved, not changed
    text = (own / "own.csv").read_text()
    resume = ("train", "--resume", "--out", own / "run", *QUICK[:4])
    for changed in (text + "1,2,yes\n", text.replace("label\n", "label\n0,0,no\n").strip()):
        (own / "own.csv").write_text(changed)
        for words in (score, resume, ("report", own / "run", "--quiet")):
            assert "not those that" in refused(*words)
    check_same_data(own / "run", RunConfig(), load(own / "own.csv"))  # begun in Python


def test_data_of_another_shape_or_scaling_do_not_fit(digits_run, tmp_path):
    trained = open_run(digits_run)
    images = np.random.default_rng(0).integers(0, 256, (200, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "other.npz", images=images, labels=np.arange(200) % 10)
    for data in ("wine", str(tmp_path / "other.npz")):
        with pytest.raises(InputError, match="not what the run was trained on"):
            trained.splits(data)


def test_what_a_run_says_of_its_source_is_not_asked_of_another(digits_run):
    trained = open_run(digits_run)
    told = {"image_size": 16, "label_column": "species", "skip_damaged": True}
    trained.config = RunConfig(data="gone.csv", **told)
    assert trained.splits("digits").name == "digits"


def test_the_checksum_of_images_on_disk_is_of_names_and_sizes(pictures, tmp_path):
    one = pictures(tmp_path / "one", 9)
    two = shutil.copytree(one, tmp_path / "two")
    found = {
        (limit, folder): checksum(load(folder, memory_limit=limit))
        for limit in (0, 2**20) for folder in (one, two)
    }  # fmt: skip
    assert found[0, one] == found[0, two]
    assert found[2**20, one] == found[2**20, two]
    (two / "a" / "0.png").rename(two / "a" / "new.png")
    assert checksum(load(two, memory_limit=0)) != found[0, one]


def test_a_run_that_was_killed_is_said_to_be_unfinished(own, capsys):
    change(own / "run", iterations=50)
    open_run(own / "run")
    assert capsys.readouterr().err == ""  # it ended by itself
    metrics = own / "run" / "metrics.jsonl"
    metrics.write_text("".join(line for line in metrics.open() if '"end"' not in line))
    open_run(own / "run")
    told = capsys.readouterr().err
    assert "of 50 updates" in told
    assert "--resume" in told


def test_outputs_do_not_replace_the_data_of_the_run(own, refused):
    words = ("score", own / "run", own / "x.npy", "--out", own / "own.csv")
    assert "own.csv is read" in refused(*words)
    words = ("sample", own / "run", "--count", 1, "--out", own / "own.png")
    assert "own.csv is read" in refused(*words)


# -- outputs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("out", "named"),
    [("no/s.csv", "no folder"), (".", "folder"), ("/dev/null", "ordinary"), ("x", "is read")],
)
def test_what_cannot_become_a_file_is_refused(tmp_path, monkeypatch, out, named):
    monkeypatch.chdir(tmp_path)
    Path("x").touch()
    with pytest.raises(InputError, match=named):
        check_out(Path(out), None, "gone", tmp_path / "x")


def test_home_is_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert drawing_files(Path("~/s"), [".png"]) == [tmp_path / "s.png"]
