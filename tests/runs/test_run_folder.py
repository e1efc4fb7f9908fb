import copy
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import jem
from jem import JEM
from jem.data import Scaling
from jem.errors import InputError, RunFolderError
from jem.networks import mlp
from jem.runs.checkpoint import Checkpoints
from jem.runs.folder import RunFolder
from jem.runs.load import build_network, model_settings, restore_settings
from jem.sampling import LangevinStep, SamplerSettings, UniformBase


def trained(network):
    model = JEM(
        network, input_shape=(2,), classes=("cat", "dog", "emu"),
        domain=(torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 2.0])),
        scaling=Scaling.of_table(np.arange(10.0).reshape(5, 2)),
    )  # fmt: skip
    model.sampler = SamplerSettings(
        UniformBase(-1.0, 1.0, (2,)),
        3,
        LangevinStep(0.1, 0.01),
        torch.tensor([0.5, 0.3, 0.2]),
        class_conditional_chains=True,
    )
    return model


@pytest.fixture
def model(point_network):
    return trained(point_network)


def save(model, path, spec, iteration=1):
    """Write what training leaves of a model; its last weights differ from the averaged ones."""
    last = {name: value + 1 for name, value in model.state_dict().items()}
    Checkpoints(RunFolder(path).checkpoints).save(
        iteration,
        {
            "modules": {"model": last, "average": model.state_dict()},
            "settings": model_settings(model),
            "network": spec,
        },
    )


# -- loading


def test_a_model_comes_back_with_its_averaged_weights_and_all_its_settings(model, tmp_path):
    save(model, tmp_path, model.network.spec)
    again = jem.load(tmp_path)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again(x), model(x))
    assert not any(m.training for m in again.modules())
    assert (again.input_shape, again.classes) == ((2,), ("cat", "dog", "emu"))
    assert torch.equal(torch.stack(again.domain), torch.stack(model.domain))
    raw = np.array([[3.0, 4.0]])
    assert torch.equal(again.preprocess(raw), model.preprocess(raw))
    assert torch.equal(jem.sample(again, [0, 2]), jem.sample(model, [0, 2]))
    assert torch.equal(jem.load(str(tmp_path))(x), model(x))


def test_a_model_without_settings_comes_back_too(point_network, tmp_path):
    save(JEM(point_network), tmp_path, point_network.spec)
    again = jem.load(tmp_path)
    assert (again.input_shape, again.classes, again.domain, again.scaling, again.sampler) == (
        (None,) * 5
    )


def test_the_newest_checkpoint_is_taken(model, tmp_path):
    save(model, tmp_path, model.network.spec, iteration=1)
    with torch.no_grad():
        model.network.head.linear.bias += 5.0
    save(model, tmp_path, model.network.spec, iteration=2)
    assert torch.equal(jem.load(tmp_path).network.head.linear.bias, model.network.head.linear.bias)


def test_a_damaged_newest_checkpoint_gives_the_one_before_with_a_warning(model, tmp_path):
    for iteration in (1, 2):
        save(model, tmp_path, model.network.spec, iteration)
    (tmp_path / "checkpoints" / "00000002.pt").write_bytes(b"junk")
    with pytest.warns(UserWarning, match="going on from iteration 1"):
        jem.load(tmp_path)


def own():
    return nn.Sequential(nn.Linear(2, 7), nn.Tanh(), nn.Linear(7, 3))


def test_a_network_of_ones_own_is_passed_in(tmp_path):
    model = trained(own())
    save(model, tmp_path, None)
    with pytest.raises(InputError, match=r"network of your own; pass it: jem.load\(run, network="):
        jem.load(tmp_path)
    again = jem.load(tmp_path, network=own())
    x = torch.zeros(4, 2)
    assert torch.equal(again(x), model(x))


def test_a_network_that_does_not_fit_is_refused_with_the_reason(tmp_path):
    model = trained(own())
    save(model, tmp_path, None)
    with pytest.raises(InputError, match=r"`network` does not fit the weights in .*: size"):
        jem.load(tmp_path, network=nn.Sequential(nn.Linear(2, 7), nn.Tanh(), nn.Linear(7, 4)))
    with pytest.raises(InputError, match=r"`network` does not fit"):
        jem.load(tmp_path, network=nn.Linear(2, 3))
    with pytest.raises(InputError, match=r"must be a torch.nn.Module"):
        jem.load(tmp_path, network="mlp")


def test_a_network_named_by_its_factory_is_built_again(tmp_path, monkeypatch):
    (tmp_path / "nets_for_load_test.py").write_text(
        "from torch import nn\n"
        "def make(shape, num_classes):\n"
        "    return nn.Linear(shape[0], num_classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = trained(nn.Linear(2, 3))
    save(model, tmp_path / "run", "nets_for_load_test:make")
    again = jem.load(tmp_path / "run")
    sys.modules.pop("nets_for_load_test")
    assert torch.equal(again.network.weight, model.network.weight)


@pytest.mark.parametrize("what", ["missing", "empty folder", "a file"])
def test_a_place_without_a_run_is_named(tmp_path, what):
    path = tmp_path / what
    if what == "empty folder":
        path.mkdir()
    elif what == "a file":
        path.touch()
    with pytest.raises(RunFolderError, match=rf"{what} holds no run"):
        jem.load(path)
    with pytest.raises(RunFolderError):
        RunFolder(path).read_config()
    assert not RunFolder(path).holds_run()


def test_a_run_without_a_usable_checkpoint_is_named(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(RunFolderError, match="no usable checkpoint"):
        jem.load(tmp_path)


def test_settings_go_to_another_model(model, point_network):
    other = JEM(copy.deepcopy(point_network))
    restore_settings(other, model_settings(model))
    assert other.classes == model.classes
    assert other.sampler.step == model.sampler.step
    assert torch.equal(other.scaling.shift, model.scaling.shift)


def test_networks_are_built_from_spec_only_if_there_is_one():
    assert build_network(mlp((2,), 3).spec, {})(torch.zeros(1, 2)).shape == (1, 3)
    with pytest.raises(InputError, match="unknown network"):
        build_network({"name": "none"}, {})


# -- the folder


def test_a_folder_is_made_and_knows_its_files(tmp_path):
    folder = RunFolder(str(tmp_path / "deep" / "run"))
    folder.create()
    folder.create()
    assert folder.path.is_dir()
    assert list(folder.path.iterdir()) == []
    assert not folder.holds_run()
    folder.write_config({"recipe": "fast", "seed": 3})
    assert folder.holds_run()
    assert folder.read_config() == {"recipe": "fast", "seed": 3}


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "a file").touch()
    for path in (tmp_path / "a file", tmp_path / "a file" / "run"):
        with pytest.raises(RunFolderError, match="cannot write to the run folder"):
            RunFolder(path).create()


def test_files_of_others_are_not_written_over(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("of another tool")
    (tmp_path / "notes.txt").write_text("in nobody's way")
    folder = RunFolder(tmp_path)
    with pytest.raises(RunFolderError, match=r"holds metrics\.jsonl, which no run there wrote"):
        folder.claimed(resume=False).__enter__()
    assert (tmp_path / "metrics.jsonl").read_text() == "of another tool"
    (tmp_path / "metrics.jsonl").unlink()
    with folder.claimed(resume=False):
        pass


@pytest.mark.parametrize("content", [b"{", b"[1]", b"3", b"", b"\xff\xfe"])
def test_a_damaged_config_is_named(tmp_path, content):
    folder = RunFolder(tmp_path)
    folder.config.write_bytes(content)
    with pytest.raises(RunFolderError, match=r"config.json"):
        folder.read_config()


# -- the lock

ENTER = """
import sys
from jem.errors import RunFolderError
from jem.runs.folder import RunFolder
try:
    with RunFolder(sys.argv[1]).locked():
        print("held", flush=True)
        sys.stdin.readline()
except RunFolderError as error:
    print(error, flush=True)
"""


def enter(path):
    return subprocess.Popen(
        [sys.executable, "-c", ENTER, str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_second_process_is_refused_until_the_first_leaves(tmp_path):
    with RunFolder(tmp_path).locked(), enter(tmp_path) as second:
        assert "another process is training in" in second.stdout.readline()
    with RunFolder(tmp_path).locked():
        pass  # it was given back


def test_a_process_that_is_killed_frees_the_folder(tmp_path):
    with enter(tmp_path) as first:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(RunFolderError, match="another process"), RunFolder(tmp_path).locked():
            pass
        first.send_signal(signal.SIGKILL)
        first.wait()
    with RunFolder(tmp_path).locked():
        pass


def test_the_lock_is_given_back_after_an_exception(tmp_path):
    folder = RunFolder(tmp_path)
    with pytest.raises(RuntimeError, match="inside"), folder.locked():
        raise RuntimeError("inside")
    with folder.locked(), pytest.raises(RunFolderError), RunFolder(tmp_path).locked():
        pass
