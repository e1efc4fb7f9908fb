"""`jem report` and `jem compare` on a real, short run, and the page in a real browser."""

import json
import shutil

import numpy as np
import pytest

from jem.cli import main
from jem.commands.report import completions_line

QUICK = [
    "--quiet", "--device", "cpu", "--epochs", "2", "--num-chains", "16", "--buffer-size", "32",
    "--sample-steps", "2",
]  # fmt: skip

pytestmark = pytest.mark.usefixtures("quick_judge")


def run(*words):
    return main([str(word) for word in words])


def refused(capsys, *words):
    """The one line that a mistake gets."""
    assert run(*words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture(scope="module")
def trained(quick_judge, tmp_path_factory):
    """A run on a small table, without a report: quick to train and to measure."""
    folder = tmp_path_factory.mktemp("report") / "run"
    assert run("train", "--data", "wine", "--out", folder, "--no-report", *QUICK) == 0
    assert not (folder / "report.html").exists()
    return folder


@pytest.fixture(scope="module")
def reported(trained):
    assert run("report", trained, "--quiet") == 0
    return trained


def test_report_writes_page_and_figures_and_prints_the_answers(trained, capsys):
    assert run("report", trained, "--quiet") == 0
    out = capsys.readouterr().out
    assert "the run in one minute" in out
    assert "cannot tell" in out  # no control to compare with
    figures = json.loads((trained / "report.json").read_text())
    assert figures["run"]["config"] == json.loads((trained / "config.json").read_text())
    assert figures["data"]["name"] == "wine"
    page = (trained / "report.html").read_text()
    assert "jem train --config" in page
    assert "--control" in page


def test_completions_are_summed_up_in_one_line():
    half, all_right = ({"value": v, "low": v - 0.1, "high": v} for v in (0.5, 1.0))
    rows = {"original": {"accuracy": all_right}, "one completion": {"accuracy": half}}
    assert completions_line({"rows": rows, "num_inputs": 96}) == (
        "lower half removed and filled, of the right class: original 100.0% [90.0%, 100.0%], "
        "one completion 50.0% [40.0%, 50.0%]; n = 96"
    )


def test_train_ends_in_a_report(tmp_path, capsys):
    folder = tmp_path / "run"
    assert run("train", "--data", "iris", "--out", folder, "--control", *QUICK) == 0
    assert "report.html" in capsys.readouterr().out
    figures = json.loads((folder / "report.json").read_text())
    assert "accuracy_difference" in figures["classification"]


def test_more_foreign_sets_are_measured_and_must_fit(reported, tmp_path, capsys):
    rng = np.random.default_rng(0)
    file = tmp_path / "others.npz"
    np.savez(file, x=rng.normal(50, 1, (60, 13)), labels=np.arange(60) % 2)
    assert run("report", reported, "--quiet", "--ood", file) == 0
    figures = json.loads((reported / "report.json").read_text())
    row = {row["name"]: row for row in figures["ood"]["sets"]}[str(file)]
    assert row["kind"] == "given"
    capsys.readouterr()
    assert "made for images, not for wine" in refused(
        capsys, "report", reported, "--quiet", "--ood", "gaussian_noise"
    )
    assert "do not fit the run's (13,)" in refused(
        capsys, "report", reported, "--quiet", "--ood", "iris"
    )


def test_mistakes_get_one_line(reported, tmp_path, capsys):
    assert "holds no run" in refused(capsys, "report", tmp_path / "nothing")
    assert "--accept must lie in (0, 1)" in refused(capsys, "report", reported, "--accept", "1")
    assert "do not fit the run" in refused(capsys, "report", reported, "--quiet", "--data", "iris")
    assert "at least two runs" in refused(capsys, "compare", reported)
    assert "no folder" in refused(
        capsys, "compare", reported, reported, "--out", tmp_path / "no" / "page.html"
    )


def test_compare_puts_runs_side_by_side_and_makes_missing_reports(reported, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(reported, other)
    (other / "report.json").unlink()
    page = tmp_path / "both.html"
    assert run("compare", reported, other, "--out", page, "--quiet") == 0
    assert (other / "report.json").exists()
    assert str(other) in page.read_text()
    assert "accuracy" in capsys.readouterr().out
    (other / "report.json").write_text('{"schema_version": 99}')
    assert "another version" in refused(capsys, "compare", reported, other, "--out", page)
    (other / "report.json").write_text("{")
    assert "cannot read" in refused(capsys, "compare", reported, other, "--out", page)
