"""`jem sample`: the files it writes, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import jem


@pytest.fixture
def draw(run, digits_run, tmp_path):
    """Draw, and return the arrays that were written."""

    def make(*words, folder=digits_run, name="s"):
        words = ("--force", "--quiet", "--out", tmp_path / name, *words)
        assert run("sample", folder, *words) == 0
        with np.load(tmp_path / f"{name}.npz", allow_pickle=False) as found:
            return {key: found[key] for key in found.files}

    return make


def test_picture_arrays_and_how_they_were_made(draw, digits_run, tmp_path):
    words = ("--labels", 3, 7, "--count", 2, "--seed", 5, "--guidance", 2, "--num-steps", 4)
    found = draw(*words, "--initial-noise", 0.5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.npz", "s.png"]
    assert Image.open(tmp_path / "s.png").size[0] > 50
    assert list(found["labels"]) == ["3", "3", "7", "7"]
    made = json.loads(str(found["metadata"]))
    settings = ("seed", "num_steps", "guidance", "initial_noise")
    assert [made[name] for name in settings] == [5, 4, 2.0, 0.5]
    assert (made["command"], made["run"]) == ("jem sample", str(digits_run))
    assert {"step_size", "noise_std", "versions"} <= made.keys()
    model = jem.load(digits_run)
    drawn = jem.sample(model, [3, 3, 7, 7], seed=5, guidance=2.0, num_steps=4, initial_noise=0.5)
    assert np.array_equal(found["x"], model.scaling.invert(drawn).numpy())


def test_defaults_are_those_of_the_library(draw, digits_run):
    found, model = draw("--count", 1), jem.load(digits_run)
    drawn = model.scaling.invert(jem.sample(model, torch.arange(10)))
    assert np.array_equal(found["x"], drawn.numpy())


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--labels", "ten"], "unknown class ten"), (["--count", 0], "--count"),
        (["--guidance", -1], "guidance"), (["--num-steps", -1], "num_steps"),
        (["--initial-noise", -1], "initial_noise"), (["--metropolis"], "are for vectors"),
    ],
)  # fmt: skip
def test_mistakes_write_nothing(refused, digits_run, tmp_path, words, named):
    assert named in refused("sample", digits_run, *words, "--out", tmp_path / "s.png")
    assert not list(tmp_path.iterdir())


def test_a_plain_classifier_draws_nothing(train, refused, tmp_path):
    folder = train(tmp_path / "plain", "iris", "plain", detector=False)
    assert "no sampler settings" in refused("sample", folder)
    assert "holds no run" in refused("sample", tmp_path)


def test_a_write_that_fails_leaves_what_was_there(draw, digits_run, run, tmp_path, monkeypatch):
    draw("--count", 1, "--labels", 1)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    words = ("--count", 1, "--labels", 2, "--out", tmp_path / "s.png", "--force")
    assert run("sample", digits_run, *words) == 2
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_network_of_your_own_is_found_where_the_command_runs(
    train, run, refused, tmp_path, monkeypatch
):
    (tmp_path / "my_sample_net.py").write_text(
        "import torch\n"
        "def make(shape, k):\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, k))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in __import__("sys").path if path])
    words = ("--labels", 3, "--count", 1, "--out", "s.png", "--force")
    for name, spec in (("named", "my_sample_net:make"), ("unnamed", None)):
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        network.spec = spec
        train(tmp_path / name, "digits", module=network, detector=False)
    assert run("sample", "named", *words) == 0
    assert "--network" in refused("sample", "unnamed", *words)
    assert run("sample", "unnamed", *words, "--network", "my_sample_net:make") == 0
