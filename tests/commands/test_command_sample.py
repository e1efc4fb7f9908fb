"""`jem sample` as a person meets it: the files it writes, and what it says to mistakes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import jem
from jem import networks
from jem.cli import main
from jem.commands.outputs import steps_shown
from jem.commands.runs import open_run, run_config
from jem.model import JEM
from jem.training.recipes import RECIPES
from jem.training.trainer import Trainer

QUICK = replace(
    RECIPES["fast"], epochs=1, num_chains=16, buffer_size=32, sample_steps=3, checkpoint_every=1000
)


def run(*words):
    return main([str(word) for word in words])


def refused(capsys, out, *words):
    """The one line that a mistake gets; nothing is written."""
    capsys.readouterr()
    assert run(*words, "--out", out) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("jem: error: ")
    if out.parent.is_dir():
        assert not list(out.parent.iterdir())
    return lines[0]


def train(folder, recipe=QUICK):
    splits = jem.data.load("digits", seed=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = networks.small_cnn((1, 8, 8), 10, width=4, head=recipe.head)
    model = JEM(network, classes=splits.classes, domain=splits.domain, scaling=splits.scaling)
    few = splits.train.x[:256], splits.train.y[:256]
    metadata = {"data": "digits"}
    Trainer(model, recipe, run_dir=folder, seed=0, device="cpu", metadata=metadata).fit(few)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train(tmp_path_factory.mktemp("sample") / "run")


def arrays(path):
    with np.load(path, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def test_picture_arrays_and_how_they_were_made(trained, tmp_path, capsys):
    out = tmp_path / "s.png"
    words = ("--labels", 3, 7, "--count", 2, "--seed", 5, "--guidance", 2, "--num-steps", 4)
    assert run("sample", trained, *words, "--initial-noise", 0.5, "--out", out) == 0
    assert f"4 samples: {out}, {tmp_path / 's.npz'}" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.npz", "s.png"]
    assert Image.open(out).size[0] > 50
    found = arrays(tmp_path / "s.npz")
    assert found["x"].shape == (4, 1, 8, 8)
    assert found["x"].min() >= 0
    assert found["x"].max() <= 16
    assert list(found["labels"]) == ["3", "3", "7", "7"]
    made = json.loads(str(found["metadata"]))
    assert made["command"] == "jem sample"
    assert made["run"] == str(trained)
    assert made["versions"] == {"jem": jem.__version__, "torch": torch.__version__}
    settings = ("seed", "init", "num_steps", "guidance", "initial_noise", "step_decay")
    assert [made[name] for name in settings] == [5, "fresh", 4, 2.0, 0.5, 1.0]
    model = jem.load(trained)
    assert (made["step_size"], made["noise_std"]) == (
        model.sampler.step.step_size,
        model.sampler.step.noise_std,
    )
    drawn = jem.sample(model, [3, 3, 7, 7], seed=5, guidance=2.0, num_steps=4, initial_noise=0.5)
    assert np.array_equal(found["x"], model.scaling.invert(drawn).numpy())


def test_defaults_are_those_of_the_library(trained, tmp_path):
    assert run("sample", trained, "--count", 1, "--out", tmp_path / "all.png") == 0
    found = arrays(tmp_path / "all.npz")
    model = jem.load(trained)
    drawn = model.scaling.invert(jem.sample(model, torch.arange(10)))
    assert np.array_equal(found["x"], drawn.numpy())
    assert json.loads(str(found["metadata"]))["num_steps"] == 3


def test_saved_chains_are_those_of_the_newest_checkpoint(trained, tmp_path):
    chains = open_run(trained, run_config(trained)).state["chains"]["chains"]
    assert chains.shape == (32, 1, 8, 8)
    words = ("--init", "saved", "--count", 1, "--num-steps", 0, "--out", tmp_path / "s.png")
    assert run("sample", trained, *words) == 0
    drawn = torch.from_numpy(arrays(tmp_path / "s.npz")["x"])
    raw = jem.load(trained).scaling.invert(chains)
    away = (drawn[:, None] - raw[None]).abs().flatten(2).amax(dim=2)
    assert away.min(dim=1).values.max() < 1e-4
    assert len(set(away.argmin(dim=1).tolist())) > 5
    assert run("sample", trained, "--init", "saved", "--count", 1, "--out", tmp_path / "t") == 0
    assert json.loads(str(arrays(tmp_path / "t.npz")["metadata"]))["num_steps"] == 20


def test_gaussian_starts_look_like_the_data(trained, tmp_path):
    words = ("--init", "gaussian", "--num-steps", 0, "--count", 20, "--labels", 0)
    assert run("sample", trained, *words, "--out", tmp_path / "g.npz") == 0
    drawn = arrays(tmp_path / "g.npz")["x"].mean(axis=0)[0]
    splits = jem.data.load("digits", seed=0)
    zeros = splits.scaling.invert(splits.train.x[splits.train.y == 0]).mean(dim=0)[0].numpy()
    assert np.corrcoef(drawn.ravel(), zeros.ravel())[0, 1] > 0.9
    assert (tmp_path / "g.png").exists()


def test_gaussian_starts_need_the_data_of_the_run(trained, tmp_path, capsys):
    words = ("sample", trained, "--init", "gaussian", "--data", "wine")
    message = refused(capsys, tmp_path / "new" / "s.png", *words)
    assert "no folder" in message
    (tmp_path / "new").mkdir()
    assert "wine is not what the run was trained on" in refused(
        capsys, tmp_path / "new" / "s.png", *words
    )


def test_mistakes_get_one_line_and_write_nothing(trained, tmp_path, capsys):
    out = tmp_path / "new" / "s.png"
    out.parent.mkdir()
    for words, message in [
        (["--labels", "ten"], "unknown class ten: this model knows 0, 1"),
        (["--count", 0], "`--count` must be a whole number"),
        (["--guidance", -1], "`guidance` must be at least 0"),
        (["--num-steps", -1], "`num_steps` must be"),
        (["--initial-noise", -1], "`initial_noise` must be at least 0"),
        (["--step-decay", 2], "`step_decay` must lie in (0, 1]"),
    ]:
        assert message in refused(capsys, out, "sample", trained, *words)
    assert "holds no run" in refused(capsys, out, "sample", tmp_path / "gone")
    (tmp_path / "taken.npz").mkdir()
    assert run("sample", trained, "--out", tmp_path / "taken.png") == 2
    assert "is a folder" in capsys.readouterr().err


def test_a_plain_classifier_draws_nothing(tmp_path, capsys):
    folder = train(tmp_path / "plain", replace(RECIPES["plain"], epochs=1))
    out = tmp_path / "new" / "s.png"
    out.parent.mkdir()
    assert "no sampler settings" in refused(capsys, out, "sample", folder)
    assert "no sampler settings" in refused(capsys, out, "sample", folder, "--init", "saved")


def test_a_write_that_fails_leaves_what_was_there(trained, tmp_path, capsys, monkeypatch):
    out = tmp_path / "s.png"
    assert run("sample", trained, "--count", 1, "--labels", 1, "--out", out) == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    assert run("sample", trained, "--count", 1, "--labels", 2, "--out", out) == 2
    monkeypatch.undo()
    assert "No space left on device" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_no_bar_where_stderr_is_no_terminal(capsys):
    with steps_shown("drawing", quiet=False) as progress:
        progress(1, 2)
    assert capsys.readouterr().err == ""


def test_a_network_of_ones_own_is_found_where_the_command_runs(tmp_path, monkeypatch, capsys):
    (tmp_path / "own_net_for_drawing.py").write_text(
        "import torch\n"
        "def make(shape, k):\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, k))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in __import__("sys").path if path])
    splits = jem.data.load("digits", seed=0)
    network = nn.Sequential(nn.Flatten(), nn.utils.skip_init(nn.Linear, 64, 10))
    nn.init.zeros_(network[1].weight)
    nn.init.zeros_(network[1].bias)
    model = JEM(network, classes=splits.classes, domain=splits.domain, scaling=splits.scaling)
    metadata = {"network": "own_net_for_drawing:make"}
    few = splits.train.x[:64], splits.train.y[:64]
    Trainer(model, QUICK, run_dir="run", seed=0, device="cpu", metadata=metadata).fit(few)
    assert run("sample", "run", "--labels", 3, "--count", 1, "--out", "s.png") == 0
    Trainer(model, QUICK, run_dir="unnamed", seed=0, device="cpu").fit(few)
    words = ("--labels", 3, "--count", 1, "--out")
    assert run("sample", "unnamed", *words, "no.png") == 2
    assert "or --network module:factory" in capsys.readouterr().err
    own = ("--network", "own_net_for_drawing:make")
    assert run("sample", "unnamed", *words, "t.png", *own) == 0
    np.save("x.npy", np.zeros((1, 8, 8)))
    assert run("inpaint", "unnamed", "x.npy", "--num-steps", 2, "--out", "c.png", *own) == 0


def test_rows_of_a_table_are_written_with_their_columns(tmp_path, capsys):
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.normal(50, 5, 80), rng.normal(1e6, 10, 80)])
    lines = [f"{age:.2f},{'old' if age > 50 else 'young'},{pay:.2f}" for age, pay in x]
    (tmp_path / "people.csv").write_text("\n".join(["age,class,pay", *lines]))
    words = ("--epochs", 1, "--num-chains", 16, "--buffer-size", 32, "--no-report", "--quiet")
    assert run("train", "--data", tmp_path / "people.csv", "--out", tmp_path / "run", *words) == 0
    capsys.readouterr()
    drawn = tmp_path / "drawn.csv"
    more = ("--labels", "old", "young", "--count", 3, "--quiet", "--out", drawn)
    assert run("sample", tmp_path / "run", *more) == 0
    assert str(drawn) in capsys.readouterr().out
    header, *rows = (line.split(",") for line in drawn.read_text().splitlines())
    assert header == ["age", "pay", "label"]
    assert [row[-1] for row in rows] == ["old"] * 3 + ["young"] * 3
    found = np.array([row[:2] for row in rows], float)
    assert np.allclose(found, arrays(tmp_path / "drawn.npz")["x"])
    assert np.abs(found[:, 1] - 1e6).max() < 1000
    again = ("score", tmp_path / "run", drawn, "--acceptance-rate", 0.5, "--quiet")
    assert run(*again, "--out", tmp_path / "scores.csv") == 0
