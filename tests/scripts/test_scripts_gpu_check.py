"""Every part of the check on a GPU runs at a tiny size on the CPU, and goes on after a stop."""

import importlib
import io
import json
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jem.training.trainer import Trainer

SCRIPTS = Path(__file__).parents[2] / "scripts"
NAMES = ("cat", "dog", "ship")


def write_archive(path):
    """Pictures of one colour a class, as the real archive holds them."""
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w:gz") as tar:
        for part, count in (("train", 12), ("test", 4)):
            for (k, name), i in ((pair, i) for pair in enumerate(NAMES) for i in range(count)):
                pixels = rng.integers(0, 60, (32, 32, 3), dtype=np.uint8)
                pixels[..., k] += 180
                file = io.BytesIO()
                Image.fromarray(pixels).save(file, "JPEG")
                entry = tarfile.TarInfo(f"{part}/{name}/{i:04d}.jpg")
                entry.size = file.tell()
                file.seek(0)
                tar.addfile(entry, file)


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield importlib.import_module("gpu_check")


@pytest.fixture(scope="module")
def run(script, tmp_path_factory):
    """Runs the script in a folder, and returns what it wrote."""
    folder = tmp_path_factory.mktemp("gpu")
    write_archive(folder / "cifar10-jpeg.tar.gz")

    def run(out, budget):
        paths = ["--data", str(folder), "--out", str(folder / out)]
        script.main([*paths, "--device", "cpu", "--tiny", "--budget", budget])
        return folder / out, json.loads((folder / out / "gpu_check.json").read_text())["pieces"]

    return run


@pytest.mark.slow
def test_every_piece_runs_and_agrees_on_the_cpu_and_a_second_call_computes_nothing(
    run, monkeypatch
):
    folder, pieces = run("out", "500")
    assert {name: p for name, p in pieces.items() if p.keys() & {"error", "skipped"}} == {}
    checks = [p["passed"] for name, p in pieces.items() if name.startswith("agree")]
    assert checks == [True] * 4
    assert pieces["waits: fast"]["waits"] == 0
    assert {name.split()[-1] for name in pieces if name[:4] == "time"} == {
        "eager", "compile", "graph",
    }  # fmt: skip
    found = pieces["train: wide"]
    assert len(found["fast"]["curve"]) == 2
    for name in ("accuracy", "nll", "ece_scaled", "auroc_letters"):
        assert np.isfinite(found["fast"][name]), name
    assert found["ratio"] > 0
    assert 0 <= found["agreement_of_samples"] <= 1
    pictures = {
        f"{kind}-{net}.png" for kind in ("curves", "samples") for net in ("wide", "medium")
    }
    assert {path.name for path in folder.iterdir()} == {"gpu_check.json", *pictures}

    monkeypatch.setattr(Trainer, "update", None)
    assert run("out", "500")[1] == pieces


def test_what_does_not_fit_is_skipped_and_what_fails_is_told(run, script):
    folder, pieces = run("late", "0")
    assert all("skipped" in piece for piece in pieces.values())
    session = script.Session(data=folder, out=folder, budget=7.0, device="cpu", tiny=True)
    session.piece("bad", 1, lambda: 1 / 0)
    assert "ZeroDivisionError" in session.report["pieces"]["bad"]["error"]
    session.piece("bad", 1, lambda: {"ms": 1.0})
    assert session.report["pieces"]["bad"]["ms"] == 1.0


def test_what_takes_too_long_is_stopped(script):
    module = importlib.import_module("gpu_session")
    with pytest.raises(TimeoutError), module.at_most(0.1):
        time.sleep(5)
