"""The benchmarks in `scripts/` start, and what they print is computed as their pages say."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

SCRIPTS = Path(__file__).parents[2] / "scripts"
NAMES = sorted(path.stem for path in SCRIPTS.glob("benchmark_*.py"))


@pytest.fixture(scope="module")
def scripts():
    """Gives the module of a script by name, as `python scripts/NAME.py` would see it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        patch.setenv("OMP_WAIT_POLICY", os.environ.get("OMP_WAIT_POLICY", "PASSIVE"))
        yield importlib.import_module


def row(recipe, seed, **figures):
    auroc = {"letters": {"value": 0.5 + 0.1 * seed, "used_in_training": recipe == "fast"}}
    known = {"recipe": recipe, "seed": seed, "auroc": auroc, "iterations": 5, "recoveries": seed}
    return known | {"accuracy": 0.9 + 0.01 * seed} | figures


def cells(text):
    """Rows of a Markdown table by their first cell."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    return {first: rest for first, *rest in lines}


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_imports_and_has_a_default_for_every_flag(scripts, name):
    module = scripts(name)
    assert tyro.cli(module.Benchmark, args=[]) == module.Benchmark()
    assert callable(module.main)


def test_the_makefile_names_every_benchmark():
    told = (SCRIPTS.parent / "Makefile").read_text().split("# make benchmark-")[1].splitlines()[0]
    for name in NAMES:
        assert name.removeprefix("benchmark_") in told


def test_the_race_prints_mean_and_range_and_marks_what_was_used_in_training(scripts):
    rows = [row(name, seed) for name in ("plain", "fast") for seed in (0, 1, 2)]
    got = cells(scripts("benchmark_recipes").table(rows, ("plain", "fast")))
    assert got["accuracy"] == ["0.9100 (0.9000 to 0.9200)"] * 2
    spread = "0.6000 (0.5000 to 0.7000)"
    assert got["AUROC of log-density, letters"] == [spread, f"{spread} *used in training*"]
    assert got["recoveries"] == ["3", "3"]
    assert got["NLL, nats"] == ["-", "-"]


def test_the_race_compares_times_over_the_seeds_of_both(scripts):
    """A slow seed of one recipe alone says nothing of their ratio."""
    rows = [row("plain", 0, seconds=10.0), row("plain", 1, seconds=1000.0)]
    rows += [row("fast", 0, seconds=25.0)]
    got = cells(scripts("benchmark_recipes").table(rows, ("plain", "fast")))
    assert got["seconds, times plain"] == ["1.00", "2.50"]
    assert got["processor seconds, times plain"] == ["-", "-"]


def test_the_race_counts_runs_that_diverged_and_leaves_them_out_of_the_means(scripts):
    rows = [row("plain", 0), row("jem", 0), {"recipe": "jem", "seed": 1, "failed": "diverged"}]
    got = cells(scripts("benchmark_recipes").table(rows, ("plain", "jem")))
    assert got["runs that diverged for good"] == ["0 of 1", "1 of 2"]
    assert got["accuracy"] == ["0.9000", "0.9000"]


@pytest.mark.slow
def test_the_race_runs_and_does_not_make_again_what_it_has(tmp_path):
    out = tmp_path / "rows.jsonl"
    command = [
        sys.executable, str(SCRIPTS / "benchmark_recipes.py"), "--recipes", "plain", "fast",
        "--seeds", "0", "--epochs", "1", "--threads", "1", "--out", str(out),
    ]  # fmt: skip
    first = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [r["recipe"] for r in rows] == ["plain", "fast"]
    plain, fast = rows
    assert plain["num_test"] == fast["num_test"] == 360
    assert plain["iterations"] == fast["iterations"]
    assert "frechet" in fast
    assert "frechet" not in plain
    again = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    assert "seed 0" in first.stdout
    assert "seed 0  plain" not in again.stdout
    assert first.stdout[first.stdout.index("| figure") :] in again.stdout
    assert len(out.read_text().splitlines()) == 2
