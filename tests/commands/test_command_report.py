"""`jem report` and `jem compare` on a real, short run."""

import json
import re
import shutil

import numpy as np
import pytest

import jem
from jem.commands.report import print_report, read_ood_inputs
from jem.commands.runs import open_run

QUICK = [
    "--quiet", "--device", "cpu", "--no-report", "--epochs", "2", "--num-chains", "16",
    "--buffer-size", "32", "--sample-steps", "2",
]  # fmt: skip

pytestmark = pytest.mark.usefixtures("quick_reference_classifier")


@pytest.fixture(scope="module")
def reported(run, quick_reference_classifier, tmp_path_factory):
    """A run on a small table, with its report."""
    folder = tmp_path_factory.mktemp("report") / "run"
    assert run("train", "--data", "wine", "--out", folder, *QUICK) == 0
    assert run("report", folder, "--quiet") == 0
    return folder


def figures_of(folder):
    return json.loads((folder / "report.json").read_text())


def test_page_and_figures_are_written_and_the_answers_printed(run, reported, capsys):
    assert run("report", reported) == 0
    out, err = capsys.readouterr()
    assert "measuring OOD sets" in err  # a line for each section where there is no terminal
    assert "the run in one minute" in out
    assert "cannot tell" in out  # no control to compare with
    figures = figures_of(reported)
    assert figures["run"]["config"] == json.loads((reported / "config.json").read_text())
    scorer = jem.load_scorer(reported)  # what production uses, to the bit
    assert figures["ood"]["threshold"] == scorer.detector.threshold
    assert figures["classification"]["model"]["temperature"] == scorer.temperature.temperature
    page = (reported / "report.html").read_text()
    assert "jem train --config" in page
    assert "--control" in page


def test_more_ood_sets_are_measured(run, reported, tmp_path):
    file = tmp_path / "others.npz"
    np.savez(file, x=np.random.default_rng(0).normal(50, 1, (60, 13)), labels=np.arange(60) % 2)
    assert run("report", reported, "--quiet", "--ood", file) == 0
    row = {row["name"]: row for row in figures_of(reported)["ood"]["sets"]}[str(file)]
    assert (row["kind"], row["num"]) == ("given", 60)


def test_ood_inputs_need_no_labels_and_may_come_in_any_form(reported, tmp_path):
    x = np.random.default_rng(0).normal(50, 1, (60, 13)).round(3)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x=x)
    rows = [",".join(map(str, row)) for row in x]
    header = ",".join(f"c{i}" for i in range(13))
    (tmp_path / "plain.csv").write_text("\n".join([header, *rows]))
    labelled = [f"{header},kind", *(f"{row},red" for row in rows)]
    (tmp_path / "labelled.csv").write_text("\n".join(labelled))
    trained = open_run(reported)
    for name in ("x.npy", "x.npz", "plain.csv", "labelled.csv"):
        label_column = "kind" if name == "labelled.csv" else None
        found = trained.raw_units(read_ood_inputs(tmp_path / name, trained, label_column, 0))
        np.testing.assert_allclose(
            found.numpy()[found[:, 0].argsort()], x[x[:, 0].argsort()], 1e-4
        )


def test_of_many_ood_inputs_some_are_taken_from_all_over(reported, tmp_path, monkeypatch):
    monkeypatch.setattr("jem.commands.report.MOST_LOADED", 50)
    np.save(tmp_path / "x.npy", np.repeat(np.arange(1000.0)[:, None], 13, axis=1))
    trained = open_run(reported)
    kept = read_ood_inputs(tmp_path / "x.npy", trained, None, 0)
    rows = trained.raw_units(kept)[:, 0].round().long()
    assert len(rows.unique()) == 50
    assert rows.min() < 200
    assert rows.max() > 800
    assert not read_ood_inputs(tmp_path / "x.npy", trained, None, 1).equal(kept)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--acceptance-rate", 1], "--acceptance-rate"), (["--data", "iris"], "iris"),
        (["--label-column", "y"], "--label-column"), (["--ood", "gaussian_noise"], "images"),
        (["--ood", "iris"], "(13,)"), (["--ood", "nope"], "letters, rotations"),
    ],
)  # fmt: skip
def test_what_does_not_exist_or_fit_is_named(reported, refused, words, named):
    assert named in refused("report", reported, "--quiet", *words)


def test_verdicts_are_printed_as_they_are(capsys):
    verdict = {"question": "Does it?", "answer": "yes", "because": "images[new].npz [/b] are OOD"}
    print_report({"verdicts": [verdict], "summary": [], "ood": {"num_test": 1}})
    shown = " ".join(capsys.readouterr().out.split())
    assert "images[new].npz" in shown
    assert "[/b]" in shown


def test_a_model_card_is_written_from_figures_that_are_there(
    run, refused, reported, monkeypatch, tmp_path
):
    folder = shutil.copytree(reported, tmp_path / "run")

    def fail(args):
        raise AssertionError("measured again")

    monkeypatch.setattr("jem.commands.report.make_report", fail)
    assert run("report", folder, "--card") == 0
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(folder)
    wine = jem.data.load("wine")
    names = {"raw": wine.scaling.invert(wine.test.x)}
    exec(code, names)  # as the reader of the card would
    assert len(names["prediction"].is_ood) == len(wine.test.x)
    assert "is there already" in refused("report", folder, "--card")


# -- compare --------------------------------------------------------------------------------------


def test_runs_are_put_side_by_side_and_missing_or_old_reports_made(
    run, reported, tmp_path, capsys
):
    other, page = tmp_path / "other", tmp_path / "both.html"
    shutil.copytree(reported, other)
    for content in (None, {"iterations": -1}):  # none, and one older than the run
        (other / "report.json").unlink()
        if content:
            old = figures_of(reported)
            old["run"] |= content
            (other / "report.json").write_text(json.dumps(old))
        assert run("compare", reported, other, "--out", page, "--quiet") == 0
        assert figures_of(other)["run"]["iterations"] > 0
    assert str(other) in page.read_text()
    assert "accuracy" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["{", "{}", '{"schema_version": 99}'])
def test_what_is_no_report_is_named(reported, refused, tmp_path, content):
    other = tmp_path / "other"
    shutil.copytree(reported, other)
    (other / "report.json").write_text(content)
    words = ("compare", reported, other, "--quiet", "--out", tmp_path / "c.html")
    assert "report.json" in refused(*words)


def test_folders_are_looked_at_before_any_is_measured(reported, refused, tmp_path):
    out = ("--out", tmp_path / "c.html")
    assert "holds no run" in refused("report", tmp_path)
    assert "two runs" in refused("compare", reported)
    assert "no folder" in refused("compare", reported, reported, "--out", tmp_path / "no" / "p")
    before = (reported / "report.json").read_bytes()
    assert "none holds no run" in refused("compare", reported, tmp_path / "none", *out)
    assert (reported / "report.json").read_bytes() == before
