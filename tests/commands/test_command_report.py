"""`jem report` and `jem compare` on a real, short run, and the page in a real browser."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import jem
from jem.cli import main
from jem.commands.report import print_answers, read_ood_inputs
from jem.commands.runs import open_run, run_config

QUICK = [
    "--quiet", "--device", "cpu", "--epochs", "2", "--num-chains", "16", "--buffer-size", "32",
    "--sample-steps", "2",
]  # fmt: skip

pytestmark = pytest.mark.usefixtures("quick_reference_classifier")


def run(*words):
    return main([str(word) for word in words])


def refused(capsys, *words):
    """The one line that a mistake gets."""
    assert run(*words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture(scope="module")
def trained(quick_reference_classifier, tmp_path_factory):
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
    out, err = capsys.readouterr()
    assert err == ""
    assert "the run in one minute" in out
    assert "cannot tell" in out  # no control to compare with
    figures = json.loads((trained / "report.json").read_text())
    assert figures["run"]["config"] == json.loads((trained / "config.json").read_text())
    assert figures["data"]["name"] == "wine"
    scorer = jem.load_scorer(trained)  # what production uses, to the bit
    assert figures["ood"]["threshold"] == scorer.detector.threshold
    assert figures["classification"]["model"]["temperature"] == scorer.temperature.temperature
    page = (trained / "report.html").read_text()
    assert "jem train --config" in page
    assert "--control" in page


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
    message = refused(capsys, "report", reported, "--quiet", "--ood", "nope")
    assert "iris" in message
    assert "letters, rotations" in message


def ood_row(folder, name, *words):
    """What a report says of a foreign set."""
    assert run("report", folder, "--quiet", "--ood", name, *words) == 0
    figures = json.loads((folder / "report.json").read_text())
    return {row["name"]: row for row in figures["ood"]["sets"]}[str(name)]


@pytest.mark.slow
def test_foreign_inputs_need_no_labels(reported, tmp_path):
    x = np.random.default_rng(0).normal(50, 1, (60, 13))
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x=x)
    header = [f"c{i}" for i in range(13)]
    named = ["a", *header[1:]]
    rows = [",".join(f"{value:.8f}" for value in row) for row in x]
    plain, extra = tmp_path / "plain.csv", tmp_path / "extra.csv"
    plain.write_text("\n".join([",".join(header), *rows]))
    extra.write_text("\n".join([",".join([*named, "kind"]), *(f"{row},red" for row in rows)]))
    figures = [
        ood_row(reported, path, *words)
        for path, words in [
            (tmp_path / "x.npy", ()),
            (tmp_path / "x.npz", ()),
            (plain, ()),
            (extra, ("--label-column", "kind")),
        ]
    ]
    assert [row["num"] for row in figures] == [60] * 4
    assert len({round(row["auroc"]["value"], 6) for row in figures}) == 1
    assert figures[0]["auroc"]["value"] > 0.9  # no scaling was fitted to the foreign rows


@pytest.mark.slow
def test_foreign_images_are_a_flat_folder_or_one_by_class(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (90, 8, 8), dtype=np.uint8)
    images[::2, :4] //= 8
    np.savez(tmp_path / "own.npz", images=images, labels=np.arange(90) % 2)
    words = ("--data", tmp_path / "own.npz", "--no-report", *QUICK)
    assert run("train", "--out", tmp_path / "run", *words) == 0
    for number, image in enumerate(images[:20]):
        for folder in (tmp_path / "flat", tmp_path / "by class" / f"{number % 2}"):
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number}.png")
    np.save(tmp_path / "raw.npy", images[:20])
    names = [tmp_path / name for name in ("flat", "by class", "raw.npy")]
    figures = [ood_row(tmp_path / "run", name) for name in names]
    assert [row["num"] for row in figures] == [20] * 3
    # Bytes of 0 to 254 in training: the same images in any form.
    assert len({round(row["auroc"]["value"], 6) for row in figures}) == 1


def test_of_many_foreign_inputs_some_are_taken_from_all_over(reported, tmp_path, monkeypatch):
    monkeypatch.setattr("jem.commands.report.MOST_LOADED", 50)
    x = np.repeat(np.arange(1000.0)[:, None], 13, axis=1)
    np.save(tmp_path / "x.npy", x)
    trained = open_run(reported, run_config(reported))
    kept = read_ood_inputs(tmp_path / "x.npy", trained, None, 0)
    rows = trained.raw_units(kept)[:, 0].round().long()
    assert len(rows.unique()) == 50
    assert rows.min() < 200
    assert rows.max() > 800
    assert not read_ood_inputs(tmp_path / "x.npy", trained, None, 1).equal(kept)


def test_where_there_is_no_terminal_sections_are_lines(reported, capsys):
    assert run("report", reported) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == [
        "measuring classification and calibration",
        "measuring OOD sets",
        "measuring samples",
    ]


def test_mistakes_get_one_line(reported, tmp_path, capsys):
    assert "holds no run" in refused(capsys, "report", tmp_path / "nothing")
    assert "`--acceptance-rate` must lie in (0, 1)" in refused(
        capsys, "report", reported, "--acceptance-rate", "1"
    )
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
    assert "schema version" in refused(capsys, "compare", reported, other, "--out", page)
    (other / "report.json").write_text("{")
    assert "cannot read" in refused(capsys, "compare", reported, other, "--out", page)


def test_a_column_of_labels_needs_a_table(reported, capsys):
    message = refused(capsys, "report", reported, "--quiet", "--label-column", "y")
    assert "--label-column y is for .csv files given to --ood" in message


def test_verdicts_are_printed_as_they_are(capsys):
    verdict = {"question": "Does it?", "answer": "yes", "because": "images[new].npz [/b] are told"}
    print_answers({"verdicts": [verdict]})
    shown = " ".join(capsys.readouterr().out.split())
    assert "images[new].npz" in shown
    assert "[/b]" in shown
