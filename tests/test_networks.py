import sys

import pytest
import torch
import torchvision
from torch import nn

from jem.errors import InputError
from jem.networks import (
    NETWORKS,
    FactoredHead,
    JointHead,
    make_network,
    mlp,
    network_for,
    network_from_reference,
    network_from_spec,
    network_from_text,
    pooled_cnn,
    small_cnn,
    wide_resnet,
)
from jem.networks import (
    factored as with_factored_head,
)


def normal(*shape, dtype=torch.float64, seed=1):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


# -- heads


def factored():
    head = FactoredHead(6, 4).double()
    features = normal(5, 6)
    out = head.linear(features)
    return head, features, out[:, :-1], out[:, -1]


def test_factored_head_has_the_softmax_of_h_and_the_log_sum_exp_g():
    head, features, h, g = factored()
    logits = head(features)
    torch.testing.assert_close(logits.softmax(dim=1), h.softmax(dim=1))
    torch.testing.assert_close(logits.logsumexp(dim=1), g, rtol=1e-14, atol=1e-14)


def test_cross_entropy_has_no_gradient_through_g_and_the_energy_none_through_h():
    head, features, _, _ = factored()
    loss = nn.functional.cross_entropy(head(features), torch.tensor([0, 1, 2, 3, 0]))
    (grad,) = torch.autograd.grad(loss, head.linear.weight)
    assert grad[-1].abs().max() < 1e-15
    assert grad[:-1].abs().max() > 1e-3
    (grad,) = torch.autograd.grad(head(features).logsumexp(dim=1).sum(), head.linear.weight)
    assert grad[:-1].abs().max() < 1e-13
    torch.testing.assert_close(grad[-1], features.sum(dim=0))


@pytest.mark.parametrize("head", [JointHead, FactoredHead])
def test_heads_compute_in_float32_under_autocast(head):
    head, features = head(64, 4), normal(8, 64, dtype=torch.float32)
    expected = head(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nn.Linear(64, 4)(features).dtype == torch.bfloat16  # autocast is on
        logits = head(features)
        half = head(features.bfloat16())  # what a body under autocast hands over
    assert torch.equal(logits, expected)
    assert torch.equal(half, head(features.bfloat16().float()))
    assert half.dtype == torch.float32


# -- networks

BUILDS = {
    "mlp": lambda **more: mlp((3, 2), 5, width=8, depth=2, **more),
    "small_cnn": lambda **more: small_cnn((2, 8, 9), 5, width=4, **more),
    "pooled_cnn": lambda **more: pooled_cnn((2, 8, 9), 5, width=4, **more),
    "wide_resnet": lambda **more: wide_resnet((2, 8, 9), 5, depth=10, width=1, **more),
}
INPUTS = {"mlp": (3, 2), "small_cnn": (2, 8, 9), "pooled_cnn": (2, 8, 9), "wide_resnet": (2, 8, 9)}


@pytest.mark.parametrize("head", ["joint", "factored"])
@pytest.mark.parametrize("name", NETWORKS)
def test_network_gives_logits_row_by_row_and_gradients_reach_every_parameter(name, head):
    network, x = BUILDS[name](head=head).double(), normal(4, *INPUTS[name])
    logits = network(x)
    assert logits.shape == (4, 5)
    assert network.features(x).ndim == 2
    torch.testing.assert_close(network.head(network.features(x)), logits)
    torch.testing.assert_close(network(x[2:3]), logits[2:3])
    (logits * normal(4, 5, seed=2)).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_network_is_built_again_from_its_spec(name):
    network = BUILDS[name](head="factored")
    again = network_from_spec(network.spec)
    assert again.spec == network.spec
    again.load_state_dict(network.state_dict())
    x = normal(2, *INPUTS[name], dtype=torch.float32)
    assert torch.equal(again(x), network(x))


def test_wide_resnet_28_10_has_the_parameters_of_the_paper():
    with torch.device("meta"):
        network = wide_resnet((3, 32, 32), 10)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(36.5e6, rel=0.01)


@pytest.mark.parametrize(
    "shape", [(1, 4, 4), (1, 8, 8), (3, 32, 32), (1, 28, 28), (1, 4, 64), (1, 8, 128), (2, 64, 5)]
)
def test_cnns_take_images_of_any_proportions(shape):
    for build in [small_cnn, pooled_cnn] if min(shape[1:]) >= 8 else [small_cnn]:
        assert build(shape, 2, width=2)(torch.zeros(1, *shape)).shape == (1, 2)


def test_the_chooser_goes_by_shape():
    assert network_for((64,), 3).spec["name"] == "mlp"
    assert network_for((1, 7, 8), 3).spec["name"] == "mlp"
    assert network_for((1, 8, 8), 3).spec["name"] == "small_cnn"
    assert network_for((1, 28, 28), 3).spec["name"] == "small_cnn"
    assert network_for((3, 15, 40), 3).spec["name"] == "small_cnn"
    assert network_for((3, 16, 16), 3).spec["name"] == "pooled_cnn"
    assert network_for((2,), 3).spec["head"] == "factored"
    assert network_for((2,), 3, head="joint").spec["head"] == "joint"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: mlp((), 3), "`shape` must be positive sizes"),
        (lambda: mlp((2,), 3, head="both"), "`head` must be one of .*'both'"),
        (lambda: small_cnn((8, 8), 3), r"`shape` must be \(C, H, W\)"),
        (lambda: wide_resnet((1, 8, 8), 3, depth=12), r"`depth` must be 6 n \+ 4"),
        (lambda: wide_resnet((1, 8, 8), 3, norm="layer"), "`norm` must be .*'layer'"),
        (lambda: mlp((2,), 3, width=0), "`width` must"),
        (lambda: network_from_spec({"name": "transformer"}), "`network` must .*'transformer'"),
        (lambda: network_from_spec({"name": "mlp", "widht": 3}), "cannot build the network"),
    ],
)
def test_arguments_are_checked(build, message):
    with pytest.raises(InputError, match=message):
        build()


@pytest.mark.parametrize(
    ("text", "shape", "expected"),
    [
        ("mlp", (2,), mlp((2,), 3, head="joint")),
        ("mlp:width=8, depth=2,dropout=0.1", (2,), mlp((2,), 3, width=8, depth=2, dropout=0.1)),
        (
            "wide_resnet:depth=10,width=1,norm=group",
            (3, 8, 8),
            wide_resnet((3, 8, 8), 3, depth=10, width=1, norm="group"),
        ),
    ],
)
def test_a_text_chooses_and_sizes_a_network(text, shape, expected):
    assert make_network(text, shape, 3, "joint", 0).spec == expected.spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mpl:width=3", "`network` must .*mlp, small_cnn, pooled_cnn, wide_resnet.*'mpl:width=3'"),
        ("mlp:widht=3", "`network` must set only width, depth, dropout, head of mlp"),
        ("mlp:width=3.5", "`width` must be a whole number"),
        ("mlp:dropout=much", "`dropout` must be a number"),
        ("mlp:dropout=2", "`dropout` must lie in"),
    ],
)
def test_an_unknown_name_key_or_value_in_a_text_is_named(text, message):
    with pytest.raises(InputError, match=message):
        network_from_text(text, (2,), 3)


# -- networks of the user's


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "own_nets_for_test.py").write_text(
        "import wave\n"
        "from torch import nn\n"
        "def make(shape, num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1], num_classes))\n"
        "def wrong(shape, num_classes):\n"
        "    return 3\n"
        "def of_channels(channels, num_classes):\n"
        "    return nn.Conv2d(channels, num_classes, 3)\n"
    )
    (tmp_path / "own_typo_for_test.py").write_text("def make(shape, num_classes:\n")
    (tmp_path / "wave.py").write_text("raise RuntimeError('not the module of this name')\n")
    for name in ("own_nets_for_test", "wave"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield "own_nets_for_test"
    assert sys.path == before, "the working folder is looked at for a moment"
    sys.modules.pop("own_nets_for_test", None)


def test_a_factory_of_the_working_folder_is_called_with_shape_and_classes(own_module):
    network = network_from_text(f"{own_module}:make", [2, 3], 4)
    assert network.spec == "own_nets_for_test:make"
    assert network(torch.zeros(5, 2, 3)).shape == (5, 4)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("own_nets_for_test", "named module:factory"),
        ("own_nets_for_test:none", "cannot find the network factory"),
        ("no_such_module:make", r"cannot find .*no_such_module\.py, or put it "),
        ("own_nets_for_test.py:make", "a module is named without .py"),
        ("own_typo_for_test:make", "importing 'own_typo_for_test' failed: SyntaxError: "),
        ("own_nets_for_test:wrong", r"must return a torch.nn.Module, but got int"),
        ("own_nets_for_test:of_channels", r"\(\(2, 3\), 4\) and failed: TypeError: "),
    ],
)
@pytest.mark.usefixtures("own_module")
def test_a_factory_that_does_not_do_is_named(reference, message):
    with pytest.raises(InputError, match=message) as caught:
        network_from_reference(reference, (2, 3), 4)
    assert "\n" not in str(caught.value)


# -- the factored head of any network


class Twice(nn.Module):
    """Two linear layers of which the first to be registered gives the logits."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 3)
        self.body = nn.Linear(4, 6)

    def forward(self, x):
        return self.fc(self.body(x).relu())


def test_any_network_gets_the_factored_head_and_keeps_its_softmax():
    network = torchvision.models.resnet18(num_classes=5).eval()
    x = normal(2, 3, 32, 32, dtype=torch.float32)
    before = network(x)
    changed = with_factored_head(network)
    torch.testing.assert_close(changed(x).softmax(dim=1), before.softmax(dim=1))
    out = changed.network(x)
    torch.testing.assert_close(changed(x).logsumexp(dim=1), out[:, -1])
    assert network(x).equal(before)  # the network given is left as it was
    assert network.fc.out_features == 5


def test_the_layer_of_the_logits_may_be_named():
    network = Twice()
    x = normal(7, 4, dtype=torch.float32)
    changed = with_factored_head(network, "fc")
    torch.testing.assert_close(changed(x).softmax(dim=1), network(x).softmax(dim=1))
    with pytest.raises(InputError, match="its layer 'body', called once: name the layer"):
        with_factored_head(network)(x)


def shared():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    return nn.Sequential(first, second)


@pytest.mark.parametrize(
    ("network", "layer", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten()), None, "the network has none"),
        (Twice(), "head", r"name a linear layer \(fc, body\), got 'head'"),
        (shared(), None, "shares its weights"),
        (nn.Sequential(nn.Linear(3, 2), nn.Softmax(dim=1)), None, "name the layer that gives"),
    ],
)
def test_a_network_that_cannot_be_changed_says_why(network, layer, message):
    with pytest.raises(InputError, match=message):
        with_factored_head(network, layer)(torch.zeros(2, 3))
