"""Networks of others: what they cannot stand is not imposed, what they do wrong is said once."""

import threading
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from jem import RECIPES, JEMClassifier, OODDetector, Trainer
from jem.devices import place
from jem.errors import InputError
from jem.model import JEM, check_network
from jem.networks import make_network
from jem.networks.foreign import copied

SMALL = replace(RECIPES["fast"], epochs=1, batch_size=16, buffer_size=64, num_chains=16)


def blobs():
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    return x, (x[:, 0] > 0).long()


def fit(model, recipe=SMALL, **options):
    Trainer(model, recipe, device="cpu", **options).fit(blobs())


class Net(nn.Module):
    """Two layers, and what a test does to features (B, 8) and logits (B, 2)."""

    def __init__(self, features=lambda h: h, logits=lambda f: f):
        super().__init__()
        self.first, self.last = nn.Linear(2, 8), nn.Linear(8, 2)
        self.of_features, self.of_logits = features, logits

    def forward(self, x):
        return self.of_logits(self.last(self.of_features(F.silu(self.first(x)))))


class Flattens(nn.Module):
    """The network of a tutorial, with `view` between its convolution and its last layer."""

    def __init__(self, size=6):
        super().__init__()
        self.first, self.convolution = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 4, 3)
        self.last = nn.Linear(4 * (size - 2) ** 2, 2)

    def forward(self, x):
        x = self.convolution(self.first(x).relu())
        return self.last(x.view(-1, self.last.in_features))


# -- called


def test_a_network_that_cannot_stand_our_layout_gets_its_own():
    network, x = Flattens(), torch.rand(5, 1, 6, 6)
    expected = network(x)
    model = place(JEM(network), torch.device("cpu"))
    assert torch.allclose(model.logits(x), expected, atol=1e-6)
    assert network.convolution.weight.is_contiguous()


def test_a_network_that_fails_for_another_reason_keeps_our_layout():
    model = place(JEM(Flattens()), torch.device("cpu"))
    with pytest.raises(InputError, match=r"inputs of shape \(1, 7, 7\).*: RuntimeError"):
        model.logits(torch.rand(5, 1, 7, 7))
    weight = model.network.convolution.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_a_network_gives_a_row_an_input():
    other_size = JEM(Flattens(6))  # 10x10 pixels have four times as many numbers
    stacked = JEM(Net(logits=lambda f: torch.cat([f, f])))
    for model, x in ((other_size, torch.rand(20, 1, 10, 10)), (stacked, torch.rand(20, 2))):
        for use in (model.predict_proba, OODDetector(model, "log_density").fit):
            with pytest.raises(InputError, match="must return one row of logits for each input"):
                use(x)


def raises(error):
    def features(h):
        raise error

    return features


@pytest.mark.parametrize(
    "error",
    [AssertionError("Wrong height!"), TypeError("mask"), AttributeError("x"), KeyError("x")],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_network_raises_is_one_line_with_the_original_below(error):
    with pytest.raises(InputError, match=type(error).__name__) as caught:
        fit(JEM(Net(raises(error))))
    assert caught.value.__cause__ is error
    assert "\n" not in str(caught.value)


def test_what_a_function_raises_that_makes_a_network_is_one_line():
    with pytest.raises(InputError, match=r"`network` was called with .* failed: ZeroDivision"):
        make_network(lambda shape, num_classes: num_classes / 0, (2,), 2, "joint", 0)


def test_outputs_of_training_mode_alone_are_found_before_anything_is_written(tmp_path):
    class Auxiliary(Net):
        def forward(self, x):
            return (super().forward(x), x) if self.training else super().forward(x)

    for recipe in ("plain", "fast"):
        with pytest.raises(InputError, match="returned tuple in training mode"):
            fit(JEM(Auxiliary()), recipe, run_dir=tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_inputs_get_the_precision_of_the_weights():
    x, y = blobs()
    torch.set_default_dtype(torch.float64)  # as GPyTorch and others ask for
    try:
        fitted = JEMClassifier(epochs=1, random_state=0).fit(x.double().numpy(), y.numpy())
        assert {p.dtype for p in fitted.model_.parameters()} == {torch.float64}
        assert fitted.predict_proba(x.numpy()).shape == (len(x), 2)
        assert fitted.sample([0, 1]).dtype == "float64"
    finally:
        torch.set_default_dtype(torch.float32)
    model = JEM(Net().double())
    assert torch.equal(model.logits(x), model.logits(x.double()))


# -- believed


@pytest.mark.parametrize("use", [fit, lambda model: OODDetector(model).fit(blobs()[0])])
@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Net(lambda h: F.dropout(h, 0.5, training=True)), "different logits for the same input"),
        (Net(logits=lambda f: torch.log(f.softmax(1) + 1e-9)), "its density is constant"),
        (Net(logits=lambda f: f.softmax(1).clamp_min(1e-9).log()), "its density is constant"),
        (Net(logits=lambda f: f.log_softmax(1)), "its density is constant"),
        (Net(logits=lambda f: f.softmax(1)), "ends in a softmax: remove"),
        (Net(logits=torch.sigmoid), "ends in a sigmoid: remove"),
    ],
)
def test_a_network_that_is_random_or_has_no_density_is_refused(network, message, use):
    with pytest.raises(InputError, match=message):
        use(JEM(network))


def test_a_density_that_begins_constant_is_none_that_stays_so():
    zero = Net()
    with torch.no_grad():
        zero.last.weight.zero_()
        zero.last.bias.zero_()
    assert check_network(JEM(zero), torch.rand(2, 2)).eq(0).all()
    frozen = Net(logits=lambda f: f.log_softmax(1)).requires_grad_(False)
    with pytest.raises(InputError, match="constant"):
        check_network(JEM(frozen), torch.rand(2, 2))
    check_network(JEM(frozen), torch.rand(2, 2), density=False)


# -- copied


class KeepsFeatures(Net):
    """Reads by a hook of its own what a layer has just given."""

    def __init__(self):
        super().__init__()
        self.lock, self.all = threading.Lock(), []
        self.first.register_forward_hook(self.keep)

    def keep(self, module, inputs, output):
        self.seen = output
        self.all.append({"output": output})

    def forward(self, x):
        self.first(x)
        with self.lock:
            return self.last(self.seen)


def normalised(kind):
    return nn.Sequential(kind(nn.Linear(2, 8)), nn.SiLU(), nn.Linear(8, 2))


@pytest.mark.parametrize(
    "make",
    [
        lambda: normalised(nn.utils.weight_norm),
        lambda: normalised(nn.utils.spectral_norm),
        KeepsFeatures,
    ],
    ids=["weight norm", "spectral norm", "kept features and a lock"],
)
def test_a_network_is_copied_by_its_state_where_python_cannot_copy_it(make):
    torch.manual_seed(0)
    network, x = make(), torch.rand(4, 2)
    network(x).sum().backward()
    network.eval()
    copy = copied(network)
    assert torch.equal(copy(x), network(x))
    before = network(x).detach()
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter += 1
    assert torch.equal(network(x), before)
    assert not torch.equal(copy(x), before)
    model = JEM(network)
    fit(model)  # the average is another copy
    assert model.logits(x).isfinite().all()
    assert not torch.equal(model.logits(x), before)
