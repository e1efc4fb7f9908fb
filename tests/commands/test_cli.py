"""The `jem` command as a person meets it: what it makes, and what it says to mistakes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import jem
from jem.cli import COMMANDS, main
from jem.commands.train import control_recipe, default_folder
from jem.training.recipe import DEFAULTS, Recipe
from jem.training.recipes import RECIPES

QUICK = [
    "--quiet", "--device", "cpu", "--epochs", "1", "--num-chains", "16", "--buffer-size", "16",
    "--sample-steps", "2", "--no-report",
]  # fmt: skip
WITHOUT = ["--quiet", "--device", "cpu", "--no-report"]  # for runs whose settings are given


def run(*words):
    """Run the command in this process: (exit status)."""
    return main([str(word) for word in words])


def process(*words, cwd=None, **env):
    """Run the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "jem", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **env},
        timeout=120,
    )


def refused(capsys, *words):
    """The one line that a mistake gets."""
    assert run(*words) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("jem: error: ")
    return lines[0]


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert run("train", "--out", folder, "--control", *QUICK) == 0
    return folder


@pytest.fixture
def own_npz(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.array(["cat", "dog"])[np.arange(80) % 2]
    images = rng.integers(0, 255, (80, 8, 8), dtype=np.uint8)
    images[labels == "dog", :4] //= 8
    np.savez(tmp_path / "pets.npz", images=images, labels=labels)
    return tmp_path / "pets.npz"


# -- train ----------------------------------------------------------------------------------------


def test_train_makes_a_run_that_explains_itself(quick_run):
    names = {path.name for path in quick_run.iterdir()}
    assert {"config.json", "metrics.jsonl", "checkpoints", "samples.png", "detector.pt"} <= names
    control = json.loads((quick_run / "control" / "config.json").read_text())
    assert control["recipe"]["objective"] == "none"
    assert control["recipe"]["epochs"] == 1


def test_config_of_a_run_makes_the_same_run_again(quick_run, tmp_path):
    assert (
        run("train", "--config", quick_run / "config.json", "--out", tmp_path / "b", *WITHOUT) == 0
    )
    before, after = (
        json.loads((p / "config.json").read_text()) for p in (quick_run, tmp_path / "b")
    )
    assert before == after
    weights = [jem.load(p).state_dict() for p in (quick_run, tmp_path / "b")]
    assert all(value.equal(weights[1][name]) for name, value in weights[0].items())


def test_precedence_is_recipe_then_config_then_flag(tmp_path, capsys):
    config = tmp_path / "c.json"
    config.write_text(json.dumps({"learning_rate": 0.5, "weight_decay": 0.25, "seed": 7}))
    words = (
        "train",
        "--recipe",
        "jem",
        "--config",
        config,
        "--weight-decay",
        "0.125",
        "--dry-run",
    )
    assert run(*words, "--num-steps=3", "--buffer-size", 64) == 0
    shown = capsys.readouterr().out
    resolved = json.loads(shown[: shown.index("\n}") + 2])
    assert resolved["seed"] == 7
    recipe = resolved["recipe"]
    assert (recipe["learning_rate"], recipe["weight_decay"], recipe["num_steps"]) == (
        0.5,
        0.125,
        3,
    )
    assert recipe["init"] == RECIPES["jem"].init
    assert recipe["replacement"] is True


def test_dry_run_shows_cost_and_writes_nothing(tmp_path, capsys):
    assert run("train", "--dry-run", "--out", tmp_path / "x", "--epochs", 2) == 0
    shown = capsys.readouterr().out
    assert re.search(r"cost: +2 epochs, 38 iterations, [\d.]+ ms each here: about \d+ s", shown)
    assert "parameters: 8" in shown
    assert not (tmp_path / "x").exists()


def test_own_file_with_class_names_trains_and_samples(own_npz, tmp_path, capsys):
    assert run("train", "--data", own_npz, "--out", tmp_path / "pets", *QUICK) == 0
    out = tmp_path / "dogs.png"
    assert run("sample", tmp_path / "pets", "--labels", "dog", "--count", 3, "--out", out) == 0
    with np.load(out.with_suffix(".npz")) as arrays:
        assert arrays["x"].shape == (3, 1, 8, 8)
        assert list(arrays["labels"]) == ["dog"] * 3
        assert arrays["x"].min() >= 0
        assert arrays["x"].max() <= 255
    assert Image.open(out).size[0] > 100


def test_folder_of_images_and_csv_train(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 255, (9, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{i}.png")
    rows = [f"{x:.3f},{x * 2:.3f},{'u' if x > 0 else 'v'}" for x in rng.normal(size=60)]
    (tmp_path / "table.csv").write_text("\n".join(["p,q,label", *rows]))
    for name in ("pictures", "table.csv"):
        assert (
            run("train", "--data", tmp_path / name, "--out", tmp_path / "runs" / name, *QUICK) == 0
        )


def test_a_run_on_images_of_any_size_takes_images_of_any_size(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(30):
            pixels = rng.integers(0, 255, (9 + i % 3, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{i}.png")
    (tmp_path / "new").mkdir()
    Image.fromarray(rng.integers(0, 255, (30, 17, 3), dtype=np.uint8)).save(
        tmp_path / "new" / "x.png"
    )
    out, size = tmp_path / "run", ("--image-size", 8)
    assert run("train", "--data", tmp_path / "pictures", "--out", out, *QUICK) == 2
    assert "--image-size" in capsys.readouterr().err
    assert run("data", tmp_path / "pictures", *size) == 0
    assert run("train", "--data", tmp_path / "pictures", *size, "--out", out, *QUICK) == 0
    assert json.loads((out / "config.json").read_text())["image_size"] == 8
    scores = tmp_path / "scores.csv"
    words = ("--acceptance-rate", 0.5, "--quiet")
    assert run("score", out, tmp_path / "new", "--out", scores, *words) == 0
    assert len(scores.read_text().splitlines()) == 2
    filled = tmp_path / "filled.png"
    assert run("inpaint", out, tmp_path / "new" / "x.png", "--out", filled) == 0
    assert run("train", "--out", out, "--resume", *WITHOUT) == 0


def test_damaged_images_are_left_out_of_training_and_of_what_comes_after(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(30):
            pixels = rng.integers(0, 255, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{i}.png")
    (tmp_path / "pictures" / "a" / "7.png").write_bytes(b"no image")
    out, data = tmp_path / "run", ("--data", tmp_path / "pictures")
    assert run("train", *data, "--out", out, *QUICK) == 2
    assert "--skip-damaged" in capsys.readouterr().err

    def said():
        return pytest.warns(UserWarning, match="1 of 60 images")

    with said():
        assert run("data", tmp_path / "pictures", "--skip-damaged") == 0
    with said():
        assert run("train", *data, "--skip-damaged", "--out", out, *QUICK) == 0
    assert json.loads((out / "config.json").read_text())["skip_damaged"] is True
    with said():
        assert run("train", "--out", out, "--resume", *WITHOUT) == 0
    (out / "detector.pt").unlink()  # so that the data are read again
    inputs = tmp_path / "pictures" / "a"
    scores = ("--out", tmp_path / "scores.csv", "--acceptance-rate", 0.5, "--quiet")
    with pytest.warns(UserWarning, match="1 of 60 images"):
        assert run("score", out, inputs, *scores) == 2  # of the inputs, not of the data
    with pytest.warns(UserWarning, match="1 of 30 images"):
        assert run("score", out, inputs, "--skip-damaged", *scores) == 0
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 30
    words = ("--out", tmp_path / "filled.png", "--quiet", "--skip-damaged")
    with pytest.warns(UserWarning, match="1 of 30 images"):
        assert run("inpaint", out, inputs, *words) == 0


def test_our_own_warnings_are_one_line(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(9):
            pixels = np.full((8, 8), 9 * i, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{i}.png")
    (tmp_path / "pictures" / "a" / "7.png").write_bytes(b"no image")
    done = process("data", str(tmp_path / "pictures"), "--skip-damaged")
    assert done.returncode == 0
    assert done.stderr.startswith("jem: warning: 1 of 18 images are damaged")
    assert len(done.stderr.splitlines()) == 1


def test_own_network_is_named_trained_and_loaded(tmp_path, monkeypatch):
    (tmp_path / "mynets.py").write_text(
        "import math, torch\n"
        "def make(shape, k):\n"
        "    linear = torch.nn.Linear(math.prod(shape), k)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), linear)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert run("train", "--network", "mynets:make", "--out", "run", *QUICK) == 0
    assert json.loads(Path("run/config.json").read_text())["network"] == "mynets:make"
    assert run("sample", "run", "--labels", 3, "--count", 1, "--out", "s.png") == 0


def test_every_recipe_field_is_a_flag():
    text = process("train", "--help", COLUMNS="100").stdout
    for field in fields(Recipe):
        assert re.search(rf"--{field.name.replace('_', '-')}[\s,]", text), field.name


def test_control_shares_the_data_and_nothing_generative():
    shared = {
        "epochs": 3, "batch_size": 7, "precision": "bfloat16", "label_smoothing": 0.2,
        "class_weight": "balanced", "augment_shift": 2, "augment_flip": True,
        "augment_noise": 0.4,
    }  # fmt: skip
    control = control_recipe(Recipe(learning_rate=0.7, generative_weight=9.0, **shared))
    assert control == replace(RECIPES["plain"], **shared)


def test_default_folder_is_free_and_resume_takes_the_last(tmp_path):
    assert default_folder(tmp_path, "digits", resume=False).name == "digits"
    (tmp_path / "digits").mkdir()
    assert default_folder(tmp_path, "digits", resume=False).name == "digits-2"
    (tmp_path / "digits-2" / "checkpoints").mkdir(parents=True)
    assert default_folder(tmp_path, "digits", resume=True).name == "digits-2"


def test_resume_of_a_finished_run_gives_the_same_table(quick_run, capsys):
    tables = []
    for _ in range(2):
        assert run("train", "--out", quick_run, "--resume", "--control", *WITHOUT) == 0
        tables.append(capsys.readouterr().out)
    assert "accuracy" in tables[0]
    assert "plain classifier" in tables[0]
    assert tables[0] == tables[1]


# -- sample, recipes, data ------------------------------------------------------------------------


def test_samples_are_the_same_again_and_one_row_a_class(quick_run, tmp_path):
    for name in ("a", "b"):
        words = ("--labels", 3, 7, "--count", 2, "--seed", 5, "--out", tmp_path / f"{name}.png")
        assert run("sample", quick_run, *words) == 0
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        assert list(a["labels"]) == ["3", "3", "7", "7"]
        assert np.array_equal(a["x"], b["x"])


def test_recipes_and_data_list_what_there_is(capsys):
    assert run("recipes") == 0
    shown = capsys.readouterr().out
    names = set(re.findall(r"\w+", shown))
    assert {field.name for field in fields(Recipe)} <= names
    assert all(name in shown for name in (*RECIPES, *DEFAULTS))
    assert run("data") == 0
    assert "fashion_mnist" in capsys.readouterr().out
    assert run("data", "wine") == 0
    assert "  train 106, validation 18, calibration 18, test 36\n" in capsys.readouterr().out


def test_help_is_quick_because_it_does_not_load_torch():
    code = (
        "import sys; from jem.cli import main; main(['--help']); assert 'torch' not in sys.modules"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode
        == 0
    )


def test_threads_wait_passively_before_torch_loads():
    code = (
        "import os, sys; os.environ.pop('OMP_WAIT_POLICY', None); import jem.cli\n"
        "assert 'torch' not in sys.modules and os.environ['OMP_WAIT_POLICY'] == 'PASSIVE'"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_each_command_has_help(command):
    done = process(command, "--help")
    assert done.returncode == 0
    assert f"jem {command}" in done.stdout


@pytest.mark.parametrize("command", ["sample", "score", "inpaint"])
def test_what_is_missing_is_named(capsys, command):
    with pytest.raises(SystemExit) as stop:
        run(command)
    assert stop.value.code == 2
    assert "RUN" in capsys.readouterr().err


# -- mistakes -------------------------------------------------------------------------------------


def test_unknown_data_recipe_network_and_command(capsys):
    assert "did you mean digits?" in refused(capsys, "train", "--data", "digit")
    assert "got 'fasst'" in refused(capsys, "train", "--recipe", "fasst")
    assert "module:factory" in refused(capsys, "train", "--network", "resnet")
    assert "no_such_module" in refused(capsys, "train", "--network", "no_such_module:f")
    assert "unknown command 'tarin'" in refused(capsys, "tarin")
    assert "device 'tpu'" in refused(capsys, "train", "--device", "tpu", "--epochs", 1)


def test_data_without_their_flag_are_told_which_it_is(capsys):
    expected = "jem: error: data are named with a flag: jem train --data folder/"
    assert refused(capsys, "train", "folder/") == expected
    with pytest.raises(SystemExit):
        run("train", "--epoch-count", 3)
    assert "--epoch-count" in capsys.readouterr().err


def test_a_run_of_no_epochs_is_a_classifier_as_given(tmp_path, capsys):
    folder = tmp_path / "run"
    words = [word for word in QUICK if word != "--no-report"]
    words[words.index("--epochs") + 1] = "0"
    assert run("train", "--data", "iris", "--out", folder, *words) == 0
    shown = capsys.readouterr().out
    assert "used in training" not in shown
    assert "nothing was trained" in " ".join(shown.replace("│", " ").split())
    figures = json.loads((folder / "report.json").read_text())
    assert figures["run"]["sentence"].startswith("A classifier as given with ")
    assert figures["run"]["sentence"].endswith("seed 0: 0 updates were made.")
    assert "--control" not in (folder / "report.html").read_text()
    assert not (folder / "samples.png").exists()
    assert "samples:" not in shown
    assert run("sample", folder, "--count", 1, "--out", tmp_path / "s.png", "--quiet") == 0
    assert "trained no density (0 updates were made)" in capsys.readouterr().err


def test_no_control_of_a_run_that_trains_nothing(capsys):
    words = [*QUICK, "--data", "iris", "--epochs", "0"]
    assert "--epochs 0 trains nothing: leave out --control" in refused(
        capsys, "train", "--control", *words
    )


def test_a_network_that_no_epoch_kept_accurate_is_said_to_be_as_given(
    tmp_path, capsys, monkeypatch
):
    accuracies = iter([0.9, 0.5])
    monkeypatch.setattr(
        "jem.training.trainer.validate", lambda *_: {"valid_accuracy": next(accuracies)}
    )
    folder = tmp_path / "run"
    words = [word for word in QUICK if word != "--no-report"]
    words += ["--data", "iris", "--accuracy-margin", "0.1"]
    with pytest.warns(UserWarning, match="the model is as it was given"):
        assert run("train", "--out", folder, *words) == 0
    shown = capsys.readouterr().out
    assert "used in training" not in shown
    assert "samples:" not in shown
    why = json.loads((folder / "report.json").read_text())["run"]["as_given"]
    assert why == "no epoch stayed within the accuracy margin of 0.1 (best 0.5, before 0.9)"
    figures = json.loads((folder / "report.json").read_text())
    assert figures["run"]["iterations"] > 0
    assert figures["verdicts"][4]["because"] == f"nothing was trained: {why}"
    assert not any(row["used_in_training"] for row in figures["ood"]["sets"])
    again = tmp_path / "again"  # what a run writes of itself can be given to another
    assert run("train", "--config", folder / "config.json", "--out", again, "--dry-run") == 0


def test_a_warning_is_one_line(monkeypatch):
    def warn(argv):
        shown.append(warnings.formatwarning("look at this", UserWarning, "file.py", 1))
        return 0

    shown = []
    usual = warnings.formatwarning
    monkeypatch.setattr("jem.commands.recipes.run", warn)
    assert run("recipes") == 0
    assert shown == ["jem: warning: look at this\n"]
    assert warnings.formatwarning is usual


def test_missing_file_and_missing_download(capsys, tmp_path):
    assert "gone.npz" in refused(capsys, "train", "--data", tmp_path / "gone.npz")
    words = ("train", "--data", "mnist", "--data-root", tmp_path)
    message = refused(capsys, *words)
    assert str(tmp_path) in message
    assert "--download" in message
    assert "gone.json" in refused(capsys, "train", "--config", tmp_path / "gone.json")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((40, 4)), "labels": np.zeros(40, int)}, "class"),
        ({"x": np.full((40, 4), np.nan), "labels": np.arange(40) % 2}, "finite|NaN|nan"),
        ({"x": np.zeros((40, 4)), "labels": np.arange(30) % 2}, "40.*30|30.*40"),
        ({"x": np.zeros((40, 4))}, "labels"),
        ({"x": np.zeros((4, 4)), "labels": np.arange(4) % 2}, "examples"),
        ({"x": np.zeros((40, 2, 2, 2, 2)), "labels": np.arange(40) % 2}, "shape"),
    ],
)
def test_bad_arrays(capsys, tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    assert re.search(message, refused(capsys, "train", "--data", tmp_path / "bad.npz"))


def test_bad_config_files(capsys, tmp_path):
    config = tmp_path / "c.json"
    for text, message in [
        ("{", "not valid JSON"),
        ("[1]", "JSON object"),
        ('{"learning_rat": 1}', "unknown settings: learning_rat"),
        ('{"learning_rate": -1}', "`learning_rate` must be above 0"),
        ('{"learning_rate": "high"}', "learning_rate|wrong type"),
        ('{"schedule": "linear"}', "schedule"),
        ('{"recipe": {"no_such": 1}}', "no_such"),
        ('{"recipe": ["a"]}', "`recipe` must be a name or an object, got "),
        ('{"recipe": 5}', "`recipe` must be a name or an object, got 5"),
        ('{"seed": "x"}', "`seed` must be a whole number of at least 0, got 'x'"),
        ('{"seed": 1.5}', "`seed` must be a whole number of at least 0, got 1.5"),
        ('{"seed": true}', "`seed` must be a whole number of at least 0, got True"),
        ('{"network": 5}', "`network` must be text, got 5"),
        ('{"data_root": 3}', "`data_root` must be text, got 3"),
        ('{"data": null}', "`data` must be text, got None"),
    ]:
        config.write_text(text)
        assert re.search(message, refused(capsys, "train", "--config", config)), text


def test_names_that_a_terminal_cannot_show_are_shown_in_another_way(tmp_path):
    (tmp_path / "ünï.csv").write_text(
        "\n".join(["p,label", *(f"{i},{'ab'[i % 2]}" for i in range(40))])
    )
    for words in (["data", "ünï.csv"], ["data", "ünï.npz"]):
        done = process(*words, cwd=tmp_path, PYTHONIOENCODING="ascii")
        assert "Traceback" not in done.stderr
        assert r"\xfcn\xef" in done.stdout + done.stderr


def test_bad_flags_exit_with_2():
    for words in (["--epochs", "many"], ["--no-such-flag"], ["--schedule", "linear"]):
        done = process("train", *words)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
    assert process().returncode == 2


def test_recipe_out_of_range(capsys):
    assert "`learning_rate` must be above 0" in refused(capsys, "train", "--learning-rate", -1)


def test_run_folder_that_holds_a_run_or_cannot_be_written(capsys, quick_run, tmp_path):
    assert "already holds a run" in refused(capsys, "train", "--out", quick_run, *QUICK)
    (tmp_path / "file").write_text("in the way")
    assert "file" in refused(capsys, "train", "--out", tmp_path / "file" / "run", *QUICK)
    assert "holds no run" in refused(capsys, "train", "--out", tmp_path / "none", "--resume")


def test_sample_mistakes(capsys, quick_run, tmp_path):
    assert "unknown class ten" in refused(capsys, "sample", quick_run, "--labels", "ten")
    assert "--count" in refused(capsys, "sample", quick_run, "--count", 0)
    assert "no run" in refused(capsys, "sample", tmp_path)
    out = tmp_path / "no" / "where.png"
    assert "no folder" in refused(capsys, "sample", quick_run, "--out", out)
    plain = quick_run / "control"
    assert "no sampler settings" in refused(capsys, "sample", plain, "--out", tmp_path / "p.png")


def test_resume_takes_no_other_settings(capsys, quick_run):
    words = ("train", "--out", quick_run, "--resume")
    told = refused(capsys, *words, "--data", "wine", "--epochs", 7, "--seed", 3)
    assert "these differ: data, seed, epochs; leave them out" in told
    assert run(*words, "--epochs", 1, *WITHOUT) == 0  # the same again


def test_a_run_begun_in_python_goes_on_there(capsys, tmp_path):
    x, y = torch.rand(40, 1, 8, 8), torch.arange(40) % 10
    model = jem.JEM(jem.networks.network_for((1, 8, 8), 10))
    recipe = replace(RECIPES["fast"], epochs=1, batch_size=20)
    jem.Trainer(model, recipe, run_dir=tmp_path / "run", device="cpu").fit((x, y))
    told = refused(capsys, "train", "--out", tmp_path / "run", "--resume")
    assert "begun in Python" in told
    assert "resume=True" in told
    assert not (tmp_path / "run" / "detector.pt").exists()


# -- signals --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_saves_and_resume_finishes(tmp_path, number):
    words = [
        "train",
        "--out",
        str(tmp_path / "run"),
        "--quiet",
        "--device",
        "cpu",
        "--epochs",
        "30",
    ]
    child = subprocess.Popen(
        [sys.executable, "-m", "jem", *words], stderr=subprocess.PIPE, text=True
    )
    while not list((tmp_path / "run" / "checkpoints").glob("*.pt")):
        time.sleep(0.05)
    time.sleep(1)
    child.send_signal(number)
    _, message = child.communicate(timeout=60)
    assert child.returncode == 130
    assert re.search(r"stopped at iteration \d+ of 570; the state is in .*--resume", message)
    done = process("train", "--out", tmp_path / "run", "--resume", "--quiet", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert (
        torch.load(tmp_path / "run" / "checkpoints" / "00000570.pt", weights_only=True)[
            "progress"
        ]["iteration"]
        == 570
    )
