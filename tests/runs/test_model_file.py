"""A model on disk, as its own file or in a run: what comes back, and what is refused."""

import io
import sys

import numpy as np
import pytest
import torch
from torch import nn

import jem
from jem import JEM
from jem.data import Scaling
from jem.errors import InputError, RunFolderError
from jem.evaluation.calibration.temperature import TemperatureScaling
from jem.evaluation.ood.detector import OODDetector
from jem.networks import mlp
from jem.runs.checkpoint import Checkpoints
from jem.runs.folder import RunFolder
from jem.sampling import LangevinStep, SamplerSettings, UniformBase

X = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))


def own():
    return nn.Sequential(nn.Linear(2, 7), nn.Tanh(), nn.Linear(7, 3))


def trained(network):
    model = JEM(
        network, input_shape=(2,), classes=("cat", "dog", "emu"),
        domain=(torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 2.0])),
        scaling=Scaling.of_table(np.arange(10.0).reshape(5, 2)),
    )  # fmt: skip
    step = LangevinStep(step_size=0.1, noise_std=0.01)
    frequencies = torch.tensor([0.5, 0.3, 0.2])
    init = UniformBase(-1.0, 1.0, (2,))
    model.sampler = SamplerSettings(init, 3, step, frequencies)
    return model


@pytest.fixture
def model(point_network):
    return trained(point_network)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.pt"


def checkpoint(model, run, iteration=1):
    """Write what training leaves of a model; its last weights differ from the averaged ones."""
    last = {name: value + 1 for name, value in model.network.state_dict().items()}
    modules = {"model": last, "average": model.state_dict()}
    state = {"modules": modules, "network": getattr(model.network, "spec", None)}
    Checkpoints(RunFolder(run).checkpoints).save(iteration, state)


def assert_same_model(again, model):
    assert torch.equal(again(X), model(X))
    assert torch.equal(jem.sample(again, [0, 2]), jem.sample(model, [0, 2]))
    assert (again.input_shape, again.classes) == (model.input_shape, model.classes)
    assert torch.equal(torch.stack(again.domain), torch.stack(model.domain))
    raw = np.array([[3.0, 4.0]])
    assert torch.equal(again.preprocess(raw), model.preprocess(raw))
    assert not any(m.training for m in again.modules())


# -- one file


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
@pytest.mark.parametrize("score", ["combined", "gen", "knn"])
def test_a_file_gives_logits_verdicts_and_samples_to_the_bit(model, tmp_path, score, name):
    path = tmp_path / name
    reference = (X[:30], torch.arange(30) % 3) if score == "knn" else None
    detector = OODDetector(model, score, reference).fit(X[:40] / 4, acceptance_rate=0.9)
    temperature = TemperatureScaling().fit(model(X).detach(), torch.arange(60) % 3)
    jem.save(model, path, detector=detector, temperature=temperature, metadata={"columns": ["a"]})
    assert [file.name for file in path.parent.iterdir()] == [name]
    scorer = jem.load_scorer(path)
    assert_same_model(scorer.model, model)
    assert_same_model(jem.load(str(path)), model)
    wanted = jem.serving.scorer.Scorer(detector, temperature).predict(X)
    found = scorer.predict(X)
    assert found.reason == wanted.reason
    for column, expected in zip(found[:-1], wanted[:-1], strict=True):
        assert column.equal(expected)
    assert scorer.temperature.state_dict() == temperature.state_dict()


def test_a_model_without_settings_comes_back_too(point_network, path):
    jem.save(JEM(point_network), path)
    again = jem.load(path)
    assert again.input_shape is again.classes is again.domain is again.scaling is None
    assert again.sampler is None
    with pytest.raises(RunFolderError, match=r"holds no detector: fit one"):
        jem.load_scorer(path)


def test_a_compiled_network_or_model_is_saved_as_if_it_were_not(model, path):
    jem.save(torch.compile(model), path)
    assert_same_model(jem.load(path), model)
    jem.save(trained(torch.compile(model.network)), path)
    assert_same_model(jem.load(path), model)
    compiled = torch.compile(mlp((2,), 3, width=16, depth=2))
    loaded = jem.load(path, network=compiled)
    assert loaded.network is compiled
    assert torch.equal(compiled.body[1].weight, model.network.body[1].weight)


def test_a_detector_of_another_model_or_without_threshold_is_refused(model, path):
    for detector in (OODDetector(model), OODDetector(JEM(own())).fit(X)):
        with pytest.raises(InputError, match="`detector` must"):
            jem.save(model, path, detector=detector)
    with pytest.raises(InputError, match=r"be a jem\.JEM"):
        jem.save(own(), path)
    assert not path.exists()


def test_damaged_and_foreign_files_are_named(model, path, tmp_path):
    with pytest.raises(RunFolderError, match=r"cannot read .*model\.pt"):
        jem.load(path)
    jem.save(model, path)
    whole = path.read_bytes()
    checkpoint(model, tmp_path / "run")
    foreign = io.BytesIO()
    torch.save(model.network.state_dict(), foreign)
    other = (tmp_path / "run" / "checkpoints" / "00000001.pt").read_bytes()
    for content in (b"", b"junk", whole[: len(whole) // 2], foreign.getvalue(), other):
        path.write_bytes(content)
        with pytest.raises(RunFolderError, match=r"model\.pt") as refused:
            jem.load(path)
        assert "\n" not in str(refused.value)
    state = torch.load(io.BytesIO(whole), weights_only=True)
    torch.save(state | {"detector": {"score": "log_density"}}, path)
    with pytest.raises(RunFolderError, match="no usable detector"):
        jem.load_scorer(path)


# -- networks of the user's


def test_a_network_of_your_own_is_passed_in(path):
    model = trained(own())
    jem.save(model, path)
    with pytest.raises(InputError, match=r"network of your own; pass it: jem\.load"):
        jem.load(path)
    assert_same_model(jem.load(path, network=own()), model.eval())


@pytest.mark.parametrize("other", [nn.Sequential(nn.Linear(2, 7), nn.Tanh()), nn.Linear(2, 3)])
def test_a_network_that_does_not_fit_is_refused(path, other):
    jem.save(trained(own()), path)
    with pytest.raises(InputError, match="`network` does not fit the weights in"):
        jem.load(path, network=other)
    with pytest.raises(InputError, match=r"must be a torch\.nn\.Module"):
        jem.load(path, network="mlp")


def test_a_network_named_by_its_factory_is_built_again(tmp_path, path, monkeypatch):
    (tmp_path / "nets_for_load_test.py").write_text(
        "from torch import nn\n"
        "def make(shape, num_classes):\n"
        "    return nn.Linear(shape[0], num_classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    network = nn.Linear(2, 3)
    network.spec = "nets_for_load_test:make"
    jem.save(trained(network), path)
    again = jem.load(path)
    jem.save(again, path)  # what was built by its name keeps it
    assert torch.equal(jem.load(path).network.weight, network.weight)
    sys.modules.pop("nets_for_load_test")


# -- the model of a run


@pytest.mark.parametrize("companion", [False, True])
def test_a_file_that_names_a_program_runs_none(tmp_path, path, companion):
    """The name of a factory is called, but never with what else the file says."""
    command = ("touch", str(tmp_path / "harmed"))
    model = JEM(mlp((2,), 3), input_shape=(2,), classes=("a", "b", "c"))
    jem.save(model, path)
    state = torch.load(path, weights_only=True)
    state["network"] = "subprocess:call"
    state["weights"]["_extra_state"]["input_shape"] = command
    if companion:
        state["network"] = {
            "name": "companion", "classifier_spec": "subprocess:call", "energy_network": None,
            "input_shape": command, "num_classes": 3,
        }  # fmt: skip
    torch.save(state, path)
    with pytest.raises(InputError, match="`shape` must be a whole number"):
        jem.load(path)
    assert not (tmp_path / "harmed").exists()


def test_a_run_gives_its_averaged_weights_of_the_newest_whole_checkpoint(model, tmp_path):
    checkpoint(model, tmp_path, iteration=1)
    with torch.no_grad():
        model.network.head.linear.bias += 5.0
    checkpoint(model, tmp_path, iteration=2)
    assert_same_model(jem.load(tmp_path), model)
    (tmp_path / "checkpoints" / "00000002.pt").write_bytes(b"junk")
    with pytest.warns(UserWarning, match="continuing from update 1"):
        jem.load(tmp_path)


def test_a_run_that_has_ended_gives_what_it_shipped(model, tmp_path):
    jem.save(model, tmp_path / "model.pt", detector=OODDetector(model).fit(X / 4))
    assert_same_model(jem.load(tmp_path), model)
    assert jem.load_scorer(tmp_path).detector.threshold is not None


def test_a_place_without_a_run_is_named(tmp_path):
    with pytest.raises(RunFolderError, match="holds no run"):
        jem.load(tmp_path)
    with pytest.raises(RunFolderError, match="missing"):
        jem.load(tmp_path / "missing")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(RunFolderError, match="no usable checkpoint"):
        jem.load(tmp_path)
