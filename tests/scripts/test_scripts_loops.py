"""The example loops in `scripts/` run, learn, and stay as short as they promise."""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import jem

SCRIPTS = Path(__file__).parents[2] / "scripts"
NAMES = ("own_loop", "fabric_loop")


@pytest.fixture(scope="module")
def scripts():
    """Modules of the scripts by name, as `python scripts/NAME.py` would see them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield {"own_loop": importlib.import_module("own_loop")} | (
            {"fabric_loop": importlib.import_module("fabric_loop")} if has_fabric() else {}
        )


def has_fabric():
    return importlib.util.find_spec("lightning_fabric") is not None


@pytest.fixture(scope="module")
def own(scripts):
    with torch.random.fork_rng(devices=[]):
        return scripts["own_loop"].main(epochs=6)


@pytest.mark.parametrize("name", NAMES)
def test_the_loop_is_under_25_lines(name):
    """Statements as the formatter breaks them, without comments and blank lines."""
    tree = ast.parse((SCRIPTS / f"{name}.py").read_text())
    (main,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "main")
    (loop,) = (node for node in main.body if isinstance(node, ast.For))
    source = (SCRIPTS / f"{name}.py").read_text().splitlines()[loop.lineno - 1 : loop.end_lineno]
    code = [line for line in source if line.strip() and not line.strip().startswith("#")]
    assert len(code) < 25
    used = {
        node.func.id for node in ast.walk(loop) if isinstance(getattr(node, "func", 0), ast.Name)
    }
    assert {"run_chains", "density_loss", "input_gradient"} <= used


def test_the_own_loop_trains_a_classifier_and_a_density(own):
    assert own.accuracy > 0.9
    assert own.auroc > 0.88
    samples = jem.sample(own.model, [0, 5], num_steps=20)
    assert samples.shape == (2, 1, 8, 8)
    assert samples.isfinite().all()
    assert samples.abs().max() <= 1


@pytest.mark.skipif(not has_fabric(), reason="needs lightning-fabric (extra `fabric`)")
def test_the_same_loop_in_fabric_ends_at_the_same_weights(scripts, own):
    fabric = importlib.import_module("lightning_fabric").Fabric(accelerator="cpu", devices=1)
    with torch.random.fork_rng(devices=[]):
        result = scripts["fabric_loop"].main(fabric, epochs=6)
    assert result.accuracy == own.accuracy
    for mine, theirs in zip(own.model.parameters(), result.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(not has_fabric(), reason="needs lightning-fabric (extra `fabric`)")
def test_two_processes_of_fabric_train_one_model():
    command = [
        sys.executable,
        str(SCRIPTS / "fabric_loop.py"),
        "--processes",
        "2",
        "--epochs",
        "4",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=True
    )
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("test accuracy"))
    assert float(line.split()[2].rstrip(",")) > 0.8
