"""The `jem` command: what it lists, how it starts and how it ends."""

import re
import subprocess
import sys
import warnings
from dataclasses import fields

import pytest

from jem import __version__
from jem.cli import COMMANDS
from jem.errors import InputError, TrainingDivergedError, TrainingInterrupted
from jem.training.recipe import DEFAULTS, Recipe
from jem.training.recipes import RECIPES


def test_it_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "jem", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{__version__}\n"


def test_help_is_quick_and_threads_wait_passively_because_torch_is_not_loaded_yet():
    code = (
        "import os, sys; os.environ.pop('OMP_WAIT_POLICY', None)\n"
        "from jem.cli import main; assert main(['--help']) == 0\n"
        "assert 'torch' not in sys.modules and os.environ['OMP_WAIT_POLICY'] == 'PASSIVE'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_each_command_has_help(run, capsys, command):
    with pytest.raises(SystemExit) as stop:
        run(command, "--help")
    assert not stop.value.code
    assert f"jem {command}" in capsys.readouterr().out


def test_help_of_training_shows_first_what_people_use_first(run, capsys):
    with pytest.raises(SystemExit):
        run("train", "--help")
    shown = capsys.readouterr().out
    flags = re.findall(r"^\W*--([a-z][a-z0-9-]*)", shown, re.MULTILINE)
    assert flags[:6] == ["data", "recipe", "out", "epochs", "network", "control"]
    assert {f.name.replace("_", "-") for f in fields(Recipe)} <= set(flags)
    assert len(flags) == len(set(flags))
    assert "Training examples in each update" in shown  # the docstring of the field
    assert shown.index("--dry-run") < shown.index("optimiser") < shown.index("--learning-rate")


def test_an_unknown_command_is_named(run, refused):
    assert "tarin" in refused("tarin")
    assert run() == 2


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InputError("this"), 2), (OSError(2, "this", "file"), 2),
        (TrainingDivergedError("this"), 1), (TrainingInterrupted("this"), 130),
        (KeyboardInterrupt("this"), 130),
    ],
)  # fmt: skip
def test_what_went_wrong_is_a_line_and_an_exit_status(run, capsys, monkeypatch, error, status):
    def fail(argv):
        raise error

    monkeypatch.setattr("jem.commands.listings.recipes", fail)
    assert run("recipes") == status
    shown = capsys.readouterr().err
    assert ("this" in shown) is not isinstance(error, KeyboardInterrupt)
    assert len(shown.splitlines()) <= 1


def test_a_warning_is_one_line(run, monkeypatch):
    def warn(argv):
        shown.append(warnings.formatwarning("look at this", UserWarning, "file.py", 1))
        return 0

    shown, usual = [], warnings.formatwarning
    monkeypatch.setattr("jem.commands.listings.recipes", warn)
    assert run("recipes") == 0
    assert shown == ["jem: warning: look at this\n"]
    assert warnings.formatwarning is usual


def test_recipes_list_every_field_of_every_recipe(run, capsys):
    assert run("recipes") == 0
    shown = capsys.readouterr().out
    assert {f.name for f in fields(Recipe)} <= set(re.findall(r"\w+", shown))
    assert all(name in shown for name in (*RECIPES, *DEFAULTS))


def test_data_list_what_there_is_and_describe_one(run, refused, capsys):
    assert run("data") == 0
    assert "fashion_mnist" in capsys.readouterr().out
    assert run("data", "wine") == 0
    assert "train 106, validation 18, calibration 18, test 36" in capsys.readouterr().out
    assert "''" in refused("data", "")
