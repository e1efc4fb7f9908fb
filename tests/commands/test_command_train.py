"""`jem train`: what it makes, where settings come from, and what it refuses."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import jem
from jem.commands.settings import parse_train
from jem.commands.train import default_folder
from jem.training.recipes import RECIPES

WITHOUT = ["--quiet", "--device", "cpu", "--no-report"]  # for runs whose settings are given
QUICK = [
    *WITHOUT, "--epochs", "1", "--num-chains", "16", "--buffer-size", "16", "--sample-steps", "2",
]  # fmt: skip
OWN_NETWORK = (
    "import math, torch\n"
    "def make(shape, k):\n"
    "    linear = torch.nn.Linear(math.prod(shape), k)\n"
    "    return torch.nn.Sequential(torch.nn.Flatten(), linear)\n"
)


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def resolved(shown):
    """The configuration that a dry run prints."""
    return json.loads(shown[: shown.index("\n}") + 2])


def weights(folder):
    return jem.load(folder).state_dict()


@pytest.fixture(scope="module")
def quick_run(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("train") / "run"
    assert run("train", "--out", folder, "--control", "--log", "tensorboard", *QUICK) == 0
    return folder


# -- what it makes --------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [["a", "b"], ["a"]])
def test_a_density_alone_is_trained_scored_and_reported_without_labels(
    run, pictures, tmp_path, capsys, classes
):
    data, out = pictures(tmp_path / "data", count=40), tmp_path / "run"
    for other in {"a", "b"} - {*classes}:
        shutil.rmtree(data / other)
    head = ["--head", "density"] if classes == ["a", "b"] else ["--recipe", "image_ebm"]
    quick = [word for word in QUICK if word != "--no-report"]
    assert run("train", "--data", data, "--out", out, *head, "--num-steps", "2", *quick) == 0
    model = jem.load(out)
    assert model(torch.zeros(3, *model.input_shape)).shape == (3, 1)
    report = json.loads((out / "report.json").read_text())
    assert "no classes" in report["left_out"]["classification"]
    assert run("score", out, data, "--out", tmp_path / "scores.csv") == 0
    assert len(pd.read_csv(tmp_path / "scores.csv")) == 40 * len(classes)
    assert jem.sample(model, count=3, num_steps=1).shape == (3, *model.input_shape)
    capsys.readouterr()


def test_a_useless_model_ends_with_status_1_and_says_so(run, tmp_path, capsys):
    """All inputs are alike, so labels cannot be learned; the run and its model are kept."""
    np.savez(
        tmp_path / "same.npz", x=np.tile([[0.0, 1.0], [1.0, 0.0]], (60, 1)), y=[0, 0, 1, 1] * 30
    )
    out = tmp_path / "run"
    assert run("train", "--data", tmp_path / "same.npz", "--out", out, *QUICK) == 1
    assert "jem: the classifier is useless on validation" in capsys.readouterr().err
    assert (out / "model.pt").exists()


def test_a_run_explains_itself_and_has_a_control(quick_run):
    names = {path.name for path in quick_run.iterdir()}
    assert {
        "config.json",
        "metrics.jsonl",
        "checkpoints",
        "samples.png",
        "control",
        "tensorboard",
    } <= names
    assert not (quick_run / "report.html").exists()
    control = config_of(quick_run / "control")
    assert control["recipe"]["objective"] == "none"
    assert control["recipe"]["epochs"] == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [((), None), (("--augment-flip",), True), (("--no-augment-flip",), False)],
)
def test_mirroring_is_decided_by_the_data_unless_a_flag_says(words, expected):
    assert parse_train(list(words))[1].recipe.augment_flip is expected


def test_parts_that_the_user_has_divided_are_kept_by_run_report_and_resume(
    run, refused, tmp_path, capsys
):
    rng = np.random.default_rng(0)
    files = {}
    for name, count in (("train", 60), ("validation", 30), ("test", 40)):
        files[name] = tmp_path / f"{name}.npz"
        y = np.arange(count) % 2
        np.savez(files[name], x=rng.normal(size=(count, 2)) + 3 * y[:, None], labels=y)
    words = ("--validation", files["validation"], "--test", files["test"], "--out", tmp_path / "r")
    assert run("train", "--data", files["train"], *words, *QUICK) == 0
    assert run("train", "--out", tmp_path / "r", "--resume", "--no-report") == 0
    (tmp_path / "new").mkdir()
    for path in files.values():
        path.rename(tmp_path / "new" / path.name)
    assert f"are now, got {files['train']}, which is gone" in refused("report", tmp_path / "r")
    assert run("report", tmp_path / "r", "--data", tmp_path / "new" / "train.npz") == 0
    sizes = json.loads((tmp_path / "r" / "report.json").read_text())["data"]["sizes"]
    assert sizes == {"train": 54, "validation": 30, "calibration": 6, "test": 40}


def test_a_run_ends_in_a_report(run, tmp_path, capsys, quick_reference_classifier):
    words = [word for word in QUICK if word != "--no-report"]
    folder = tmp_path / "run"
    assert run("train", "--data", "iris", "--out", folder, "--control", *words) == 0
    assert "report.html" in capsys.readouterr().out
    assert json.loads((folder / "report.json").read_text())["classification"]


def test_the_configuration_of_a_run_makes_the_same_run_again(run, quick_run, tmp_path):
    words = ("--config", quick_run / "config.json", "--out", tmp_path / "b", *WITHOUT)
    assert run("train", *words) == 0
    assert config_of(quick_run) == config_of(tmp_path / "b")
    before, after = weights(quick_run), weights(tmp_path / "b")
    assert all(torch.equal(before[name], after[name]) for name in before if "extra" not in name)


def test_a_dry_run_shows_the_cost_and_writes_nothing(run, tmp_path, capsys):
    assert run("train", "--dry-run", "--out", tmp_path / "x", "--epochs", 2) == 0
    shown = capsys.readouterr().out
    assert re.search(r"cost: +2 epochs, 38 updates, [\d.]+ ms each .*: about \d+ s", shown)
    assert resolved(shown)["recipe"]["num_steps"] == 2  # what is left open is filled in
    assert not (tmp_path / "x").exists()


def test_a_run_on_images_of_any_size_takes_images_of_any_size(run, refused, pictures, tmp_path):
    data = pictures(tmp_path / "pictures", 30, (9, 10))
    (pictures(tmp_path / "more", 1, (12, 10)) / "a" / "0.png").rename(data / "a" / "x.png")
    out, words = tmp_path / "run", ("--data", data, *QUICK)
    assert "--image-size" in refused("train", "--out", out, *words)
    assert run("train", "--out", out, "--image-size", 8, *words) == 0
    assert config_of(out)["image_size"] == 8
    scores, inputs = tmp_path / "scores.csv", tmp_path / "more" / "b"
    assert run("score", out, inputs, "--out", scores, "--acceptance-rate", 0.5, "--quiet") == 0
    assert len(scores.read_text().splitlines()) == 2
    assert run("inpaint", out, inputs, "--out", tmp_path / "filled.png") == 0
    assert run("train", "--out", out, "--resume", *WITHOUT) == 0


def test_damaged_images_are_left_out_where_that_is_asked_for(run, refused, pictures, tmp_path):
    data, out = pictures(tmp_path / "pictures", 30), tmp_path / "run"
    (data / "a" / "7.png").write_bytes(b"no image")
    words = ("train", "--data", data, "--out", out, *QUICK)
    assert "--skip-damaged" in refused(*words)
    again = ("train", "--out", out, "--resume", *WITHOUT)
    scores = ("score", out, data / "a", "--acceptance-rate", 0.5, "--quiet", "--out")
    for asked in (
        (*words, "--skip-damaged"), again, (*scores, tmp_path / "s.csv", "--skip-damaged"),
    ):  # fmt: skip
        with pytest.warns(UserWarning, match="1 of .0 images"):
            assert run(*asked) == 0
    assert "7.png" in refused(*scores, tmp_path / "t.csv")
    assert config_of(out)["skip_damaged"] is True
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 30


def test_your_own_network_is_named_trained_and_loaded(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "my_train_net.py").write_text(OWN_NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert run("train", "--network", "my_train_net:make", "--out", "run", *QUICK) == 0
    assert "beside yours learns the density" in capsys.readouterr().err
    assert config_of(Path("run"))["network"]["classifier_spec"] == "my_train_net:make"
    assert run("sample", "run", "--labels", 3, "--count", 1, "--out", "s.png") == 0
    assert config_of(Path("run"))["recipe"]["head"] == "towers"
    assert run("train", "--out", "run", "--resume", *WITHOUT) == 0


def test_your_own_network_that_trains_nothing_is_judged_as_a_plain_classifier(
    run, tmp_path, monkeypatch, capsys
):
    (tmp_path / "my_given_net.py").write_text(OWN_NETWORK)
    monkeypatch.chdir(tmp_path)
    assert run("train", "--network", "my_given_net:make", "--epochs", 0, *WITHOUT) == 0
    assert "beside yours" not in capsys.readouterr().err
    scorer = jem.load_scorer("runs/digits")
    assert scorer.model.sampler is None
    assert scorer.detector.score_name == "mahalanobis+max_probability"


def test_a_network_of_ours_is_sized_by_name_and_again_by_the_configuration(run, tmp_path):
    words = ("--data", "iris", "--network", "mlp:width=8,depth=1,dropout=0.1", *QUICK)
    assert run("train", *words, "--out", tmp_path / "a") == 0
    spec = config_of(tmp_path / "a")["network"]
    assert (spec["name"], spec["width"], spec["depth"], spec["head"]) == ("mlp", 8, 1, "factored")
    again = ("--config", tmp_path / "a" / "config.json", "--out", tmp_path / "b", "--control")
    assert run("train", *again, *WITHOUT) == 0
    assert config_of(tmp_path / "b")["network"] == spec
    control = config_of(tmp_path / "b" / "control")["network"]
    assert control == spec | {"head": "joint"}


def test_a_run_of_no_epochs_is_a_classifier_as_given(
    run, tmp_path, capsys, quick_reference_classifier
):
    folder = tmp_path / "run"
    words = ["0" if word == "1" else word for word in QUICK if word != "--no-report"]
    assert run("train", "--data", "iris", "--out", folder, *words) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "nothing was trained" in shown
    assert "samples.png" not in shown
    figures = json.loads((folder / "report.json").read_text())
    assert "0 updates were made" in figures["run"]["as_given"]
    assert not any(row["used_in_training"] for row in figures["ood"]["sets"])
    assert "--control" not in (folder / "report.html").read_text()
    assert run("sample", folder, "--count", 1, "--out", tmp_path / "s.png", "--quiet") == 2
    assert "train it with a recipe that has chains" in capsys.readouterr().err


def test_a_network_whose_classes_are_in_another_order_is_doubted(
    run, pictures, tmp_path, monkeypatch, capsys
):
    """It is right in every case, but says `b` where the data say `a`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trained.py").write_text(
        "import torch\n"
        "class Bright(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.scale = torch.nn.Parameter(torch.tensor(20.0))\n"
        "    def forward(self, x):\n"
        "        mean = x.mean(dim=(1, 2, 3)) + 0.4\n"
        "        return self.scale * torch.stack([mean, -mean], dim=1)\n"
        "def make(shape, k):\n"
        "    return Bright()\n"
    )
    data = pictures(tmp_path / "data", count=30)
    (tmp_path / "order.txt").write_text("b\na\n")
    words = ["--data", data, "--network", "trained:make", "--epochs", 0, *WITHOUT]
    for order, told in ([], "a, b"), (["--classes-from", "order.txt"], "b, a"):
        assert run("train", *words, *order, "--out", f"run{len(order)}") == 0
        shown = capsys.readouterr().err
        assert f"the outputs of trained:make stand for {told}" in shown
        assert ("in another order (--classes-from FILE)" in shown) == (not order)
    assert run("score", "run2", data, "--data", data, "--out", "s.csv", "--score", "entropy") == 0
    rows = pd.read_csv("s.csv")  # the detector was fitted on data in the order of the network
    assert (rows["class"] == rows["input"].str[0]).all()


def test_a_network_that_no_epoch_kept_accurate_is_as_given(run, tmp_path, monkeypatch, capsys):
    accuracies = iter([0.9, 0.5])
    for place in ("validation", "trainer"):  # before training, and after each epoch
        monkeypatch.setattr(
            f"jem.training.{place}.validate",
            lambda *_: {"valid_accuracy": next(accuracies), "valid_nll": 0.5, "valid_nll_se": 0.1},
        )
    words = [*QUICK, "--data", "iris", "--accuracy-margin", "0.1"]
    folder = tmp_path / "run"
    with pytest.warns(UserWarning, match="the model is unchanged"):
        assert run("train", "--out", folder, *words) == 0
    assert "samples.png" not in capsys.readouterr().out
    assert "accuracy margin of 0.1" in config_of(folder)["as_given"]
    best, given = (
        torch.load(folder / name, weights_only=True) for name in ("best.pt", "model.pt")
    )
    assert best["detector"]["acceptance_rate"] == given["detector"]["acceptance_rate"]
    pairs = zip(best["weights"].values(), given["weights"].values(), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs if isinstance(a, torch.Tensor))
    again = ("--config", folder / "config.json", "--out", tmp_path / "again", "--dry-run")
    assert run("train", *again) == 0  # what a run writes of itself can be given to another


# -- settings -------------------------------------------------------------------------------------


def test_flags_change_what_the_file_changed_in_the_recipe(run, tmp_path, capsys):
    config = tmp_path / "c.json"
    config.write_text(json.dumps({"learning_rate": 0.5, "weight_decay": 0.25, "seed": 7}))
    words = ("--recipe", "jem", "--config", config, "--weight-decay", "0.125", "--dry-run")
    assert run("train", *words, "--num-steps=3", "--buffer-size", 64) == 0
    found = resolved(capsys.readouterr().out)
    recipe = found["recipe"]
    assert (found["seed"], recipe["learning_rate"], recipe["weight_decay"]) == (7, 0.5, 0.125)
    assert (recipe["num_steps"], recipe["init"]) == (3, RECIPES["jem"].init)


def test_a_recipe_is_not_hidden_by_that_of_a_file(run, refused, tmp_path):
    config = tmp_path / "c.json"
    words = ("train", "--data", "iris", "--config", config, "--dry-run", "--out", tmp_path / "r")
    for recipe in (asdict(RECIPES["fast"]), "fast"):
        config.write_text(json.dumps({"recipe": recipe}))
        assert "leave out --recipe" in refused(*words, "--recipe", "plain")
        assert run(*words, "--recipe", "fast") == 0


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "JSON"), ("[1]", "JSON object"), ('{"learning_rat": 1}', "learning_rat"),
        ('{"learning_rate": -1}', "learning_rate"), ('{"learning_rate": "high"}', "learning_rate"),
        ('{"schedule": "linear"}', "schedule"), ('{"recipe": {"no_such": 1}}', "no_such"),
        ('{"recipe": ["a"]}', "recipe"), ('{"seed": "x"}', "seed"), ('{"seed": 1.5}', "seed"),
        ('{"seed": true}', "seed"), ('{"network": 5}', "network"), ('{"data": null}', "data"),
        ('{"data_root": 3}', "data_root"), ('{"image_size": 0}', "image_size"),
        ('{"skip_damaged": 1}', "skip_damaged"),
    ],
)  # fmt: skip
def test_files_that_hold_no_settings_are_refused(refused, tmp_path, text, named):
    (tmp_path / "c.json").write_text(text)
    message = refused("train", "--config", tmp_path / "c.json")
    assert "c.json" in message
    assert named in message


# -- where runs go, and how they go on ------------------------------------------------------------


def test_the_default_folder_is_free_and_resume_takes_the_last_that_holds_a_run(tmp_path):
    assert default_folder(tmp_path, "x", resume=False).name == "x"
    for name in ("x", "x-2"):
        (tmp_path / name).mkdir()
    (tmp_path / "x" / "config.json").write_text("{}")
    assert default_folder(tmp_path, "x", resume=False).name == "x-3"
    assert default_folder(tmp_path, "x", resume=True).name == "x"


def test_resume_takes_no_other_settings(refused, quick_run):
    words = ("train", "--out", quick_run, "--resume")
    message = refused(*words, "--data", "wine", "--epochs", 7, "--seed", 3)
    assert all(name in message for name in ("data", "seed", "epochs"))


def test_a_run_begun_in_python_goes_on_there(refused, train, tmp_path):
    train(tmp_path / "run", "iris", detector=False)
    assert "resume=True" in refused("train", "--out", tmp_path / "run", "--resume")


def test_a_run_folder_must_be_free_writable_and_no_class_of_its_data(
    run, refused, quick_run, pictures, tmp_path, monkeypatch
):
    assert "already holds a run" in refused("train", "--out", quick_run, *QUICK)
    (tmp_path / "file").write_text("in the way")
    assert "file" in refused("train", "--out", tmp_path / "file" / "run", *QUICK)
    assert "holds no run" in refused("train", "--out", tmp_path / "none", "--resume")
    monkeypatch.chdir(pictures(tmp_path / "pets"))
    for words in (["--data", "."], ["--data", tmp_path / "pets", "--out", "."]):
        assert "inside the data folder" in refused("train", *words, *QUICK)
    assert sorted(path.name for path in Path().iterdir()) == ["a", "b"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_saves_and_resume_finishes(run, tmp_path, number):
    words = ["train", "--out", str(tmp_path / "run"), *WITHOUT]
    command = [sys.executable, "-m", "jem", *words, "--epochs", "30"]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "run" / "checkpoints").glob("*.pt")):
        time.sleep(0.05)
    time.sleep(1)
    child.send_signal(number)
    _, message = child.communicate(timeout=60)
    assert child.returncode == 130
    assert re.search(r"stopped at update \d+ of 570; the state is in .*--resume", message)
    assert run(*words, "--resume") == 0
    last = torch.load(tmp_path / "run" / "checkpoints" / "00000570.pt", weights_only=True)
    assert last["progress"]["iteration"] == 570


# -- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--data", "digit"], "did you mean digits?"),
        (["--recipe", "fasst"], "fasst"),
        (["--network", "resnet"], "module:factory"),
        (["--network", "mlp:size=8"], "size"),
        (["--network", "no_such_module:f"], "no_such_module"),
        (["--device", "tpu", "--epochs", 1], "tpu"),
        (["--learning-rate", -1], "learning_rate"),
        (["--data", ""], "''"),
        (["--data", "gone.npz"], "gone.npz"),
        (["--config", "gone.json"], "gone.json"),
        (["--data", "mnist", "--data-root", "gone"], "--download"),
        (["folder/"], "--data folder/"),
        (["--data", "iris", "--control", "--epochs", 0], "--control"),
    ],
)
def test_what_does_not_exist_or_fit_is_named(refused, tmp_path, monkeypatch, words, named):
    monkeypatch.chdir(tmp_path)
    assert named in refused("train", *words)
