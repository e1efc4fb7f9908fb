"""Official checkpoints: a transcription of the official networks writes them, `jem` reads them.

The transcription is plain torch, written from what is known of the official networks: stages of
pre-activation blocks, LeakyReLU(0.2), biases everywhere, the stride in the second convolution, the
mean over the last 8 x 8, two heads of which joint training uses one. Counts of tensors and
parameters are those of the official WRN-28-10.
"""

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import jem
from jem.errors import InputError
from jem.runs.official import load_official
from jem.sampling import ReplayBuffer

SMALL = {"depth": 16, "width": 2}


class OfficialBlock(nn.Module):
    def __init__(self, inputs, outputs, stride, norm):
        super().__init__()
        if norm:
            self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.norm = norm
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 1, 1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, 1)
        self.shortcut = nn.Sequential()
        if inputs != outputs or stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride))

    def forward(self, x):
        h = self.conv1(F.leaky_relu(self.bn1(x) if self.norm else x, 0.2))
        h = self.conv2(F.leaky_relu(self.bn2(h) if self.norm else h, 0.2))
        return h + self.shortcut(x)


class OfficialBody(nn.Module):
    def __init__(self, depth=28, width=10, norm=False, spare=10, stages=3):
        super().__init__()
        self.norm = norm
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1)
        now = 16
        for stage in range(1, stages + 1):
            blocks = []
            for block in range((depth - 4) // 6):
                outputs = 16 * width * 2 ** (stage - 1)
                stride = 2 if block == 0 and stage > 1 else 1
                blocks.append(OfficialBlock(now, outputs, stride, norm))
                now = outputs
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        if norm:
            self.bn1 = nn.BatchNorm2d(now)
        if spare:
            self.linear = nn.Linear(now, spare)
        self.last_dim = now

    def forward(self, x):
        h = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        h = F.leaky_relu(self.bn1(h) if self.norm else h, 0.2)
        return F.avg_pool2d(h, 8).flatten(1)


class Official(nn.Module):
    """JEM (no norm, a head in the body that nothing uses), or JEM++ and SADA-JEM (batch norm)."""

    def __init__(self, num_classes=10, norm=False, **size):
        super().__init__()
        self.f = OfficialBody(norm=norm, spare=0 if norm else 10, **size)
        self.energy_output = nn.Linear(self.f.last_dim, 1)
        self.class_output = nn.Linear(self.f.last_dim, num_classes)

    def classify(self, x):
        return self.class_output(self.f(x))

    def energy(self, x):
        return self.energy_output(self.f(x))


def seeded(build, **arguments):
    """A network in evaluation mode; running statistics and norms are not those of a new one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build(**arguments)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
        return network.eval()


@pytest.fixture
def images(generator):
    return torch.empty(3, 3, 32, 32).uniform_(-1, 1, generator=generator)


@pytest.fixture
def saved(tmp_path):
    def save(content, **options):
        torch.save(content, tmp_path / "checkpoint.pt", **options)
        return tmp_path / "checkpoint.pt"

    return save


def with_second_names(state):
    """JEM++'s `yopo` bodies hold every tensor of the body twice."""
    stages = ("layer1.", "layer2.", "layer3.", "bn1.")
    doubled = OrderedDict(state)
    for key, value in state.items():
        name = key.removeprefix("f.")
        if name.startswith("conv1."):
            doubled[f"f.layer_one.{name.removeprefix('conv1.')}"] = value
        for index, stage in enumerate(stages):
            if key.startswith("f.") and name.startswith(stage):
                doubled[f"f.other_layers.{index}.{name.removeprefix(stage)}"] = value
    return doubled


# -- the layouts ----------------------------------------------------------------------------------


def layouts():
    """Name -> (network, what the official code saves of it)."""
    chains = torch.linspace(-1, 1, 20 * 3 * 32 * 32).view(20, 3, 32, 32)
    jem_net = seeded(Official, num_classes=7, **SMALL)
    batch = seeded(Official, num_classes=7, norm=True, **SMALL)
    state = jem_net.state_dict()
    yopo = with_second_names(batch.state_dict())
    hdge = state | {"queue_logit": torch.zeros(7, 64), "queue_ptr": torch.zeros(1).long()}
    wrapped = {f"module.{key}": value for key, value in batch.state_dict().items()}
    return {
        "jem": (jem_net, {"model_state_dict": state, "replay_buffer": chains}),
        "jem bare": (jem_net, state),
        "jem++": (batch, {"model_state_dict": batch.state_dict(), "replay_buffer": []}),
        "jem++ yopo": (batch, {"model_state_dict": yopo, "replay_buffer": chains}),
        "sada_jem, several GPUs": (batch, {"model_state_dict": wrapped}),
        "hdge": (jem_net, {"model_state_dict": hdge, "replay_buffer": chains}),
    }


LAYOUTS = tuple(layouts())


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_official_logits(name, images, saved):
    official, content = layouts()[name]
    found = load_official(saved(content))
    model = found.model
    with torch.no_grad():
        wanted = official.classify(images)
        torch.testing.assert_close(model.logits(images), wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.log_density(images), wanted.logsumexp(1))
    assert not any(module.training for module in model.modules())
    assert model.network.spec["depth"] == 16
    assert model.network.spec["width"] == 2
    if isinstance(content, dict) and isinstance(content.get("replay_buffer"), torch.Tensor):
        assert torch.equal(found.chains, content["replay_buffer"])
        assert len(ReplayBuffer(found.chains)) == 20
    else:
        assert found.chains is None


def test_the_old_file_format_is_read(images, saved):
    official, content = layouts()["jem"]
    found = load_official(saved(content, _use_new_zipfile_serialization=False))
    with torch.no_grad():
        torch.testing.assert_close(found.model(images), official.classify(images))


def test_a_network_trained_without_classes_is_read_by_its_energy_head(images, saved):
    official, content = layouts()["jem"]
    found = load_official(saved(content), head="energy_output")
    assert found.model.classes == ("0",)
    with torch.no_grad():
        torch.testing.assert_close(found.model.log_density(images), official.energy(images)[:, 0])


def test_the_model_takes_bytes_and_can_be_sampled(saved):
    model = load_official(saved(layouts()["jem"][1]), classes=list("abcdefg")).model
    assert model.input_shape == (3, 32, 32)
    white = torch.full((1, 32, 32, 3), 255, dtype=torch.uint8)
    assert torch.equal(model.preprocess(white), torch.ones(1, 3, 32, 32))
    x = jem.sample(model, [0, 6], num_steps=2)
    assert x.shape == (2, 3, 32, 32)
    assert x.abs().max() <= 1
    assert model.sampler.num_steps == 20
    assert model.classes == tuple("abcdefg")


def test_a_model_with_batch_norm_keeps_no_sampler_that_it_was_not_trained_with(saved):
    model = load_official(saved(layouts()["jem++"][1])).model
    assert model.sampler is None
    with pytest.raises(InputError, match="no sampler settings"):
        jem.sample(model, [0])


# -- what does not fit ----------------------------------------------------------------------------


def test_keys_without_a_place_are_named(saved):
    changed = dict(layouts()["jem bare"][1])
    changed["f.layer2.0.gate.weight"] = torch.zeros(1)
    with pytest.raises(InputError, match=r"f\.layer2\.0\.gate\.weight"):
        load_official(saved(changed))
    del changed["f.layer2.0.gate.weight"], changed["f.layer2.0.conv2.bias"]
    with pytest.raises(InputError, match=r"f\.layer2\.0\.conv2\.bias"):
        load_official(saved(changed))


class Code:
    ran = False

    def __reduce__(self):
        return (setattr, (Code, "ran", True))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_would_run_code_is_refused_before_it_does(saved, legacy):
    content = {"model_state_dict": layouts()["jem"][1]["model_state_dict"], "x": Code()}
    path = saved(content, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match="only tensors and plain values"):
        load_official(path)
    assert not Code.ran


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_files_that_hold_no_checkpoint_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*: No such file"):
        load_official(tmp_path / "nothing.pt")
    (tmp_path / "rubbish.pt").write_bytes(b"\x80rubbish")
    with pytest.raises(InputError, match="tensors and plain values"):
        load_official(tmp_path / "rubbish.pt")


def test_other_contents_are_refused_and_a_wrong_size_is_named(saved):
    for content in ({"model_state_dict": None}, [torch.zeros(1)], {"in": torch.zeros(1)}):
        with pytest.raises(InputError, match="must hold"):
            load_official(saved(content))
    state = dict(layouts()["jem bare"][1])
    state["class_output.weight"] = torch.zeros(7, 5)
    with pytest.raises(InputError, match="size mismatch"):
        load_official(saved(state))
