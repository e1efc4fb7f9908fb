"""Two towers: a classifier that nothing of the density reaches, and a density beside it."""

from dataclasses import replace

import pytest
import torch

import jem
from jem.networks import (
    Towers,
    factored,
    make_network,
    network_for,
    pooled_cnn,
    small_cnn,
    towers,
    wide_resnet,
)

SHAPE, K = (3, 16, 16), 3
TINY = {
    "epochs": 2, "batch_size": 16, "num_chains": 8, "buffer_size": 16, "outlier_count": 0,
    "sample_steps": 3, "augment_flip": False, "augment_shift": 0,
}  # fmt: skip


def examples(count=32):
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % K
    x = torch.rand(count, *SHAPE, generator=generator) * 0.4
    return x + 0.3 * labels[:, None, None, None], labels


def built(build, head):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(head)


def trained(recipe, head, norm="batch", **changes):
    network = built(lambda h: pooled_cnn(SHAPE, K, 4, norm=norm, head=h), head)
    model = jem.JEM(network, domain=(0.0, 1.0))
    recipe = replace(jem.RECIPES[recipe], **TINY | changes)
    jem.Trainer(model, recipe, seed=0, device="cpu").fit(examples())
    return model


@pytest.mark.parametrize("fused", [True, False])
def test_the_classifier_is_to_the_bit_the_one_that_plain_trains(fused):
    plain, both = trained("plain", "joint"), trained("fast", "towers", fused=fused)
    learned = plain.network.state_dict()
    assert learned
    assert all(v.equal(both.network.classifier.state_dict()[k]) for k, v in learned.items())
    x, _ = examples(5)
    torch.testing.assert_close(both.predict_proba(x), plain.predict_proba(x))


def test_energies_and_samples_are_those_of_the_second_tower():
    model = trained("fast", "towers")
    x, y = examples(6)
    tower = jem.JEM(model.network.energy_network, domain=(0.0, 1.0), classes=model.classes)
    tower.sampler = model.sampler
    assert model.energy(x).equal(tower.energy(x))
    torch.testing.assert_close(model.logits(x).logsumexp(dim=1), tower.log_density(x))
    half = {"num_steps": model.sampler.num_steps // 2}  # then the classifier chooses
    assert jem.sample(model, y, **half).equal(jem.sample(tower, y, **half))
    joint = model.log_density(x) + model.predict_proba(x).log()[torch.arange(6), y]
    torch.testing.assert_close(model.energy(x, y), -joint)


def test_both_towers_learn_the_classes():
    model = trained("fast", "towers", norm="group", epochs=40)
    x, y = examples(30)
    assert (model.predict_proba(x).argmax(dim=1) == y).float().mean() > 0.9
    tower = jem.JEM(model.network.energy_network)
    assert (tower.predict_proba(x).argmax(dim=1) == y).float().mean() > 0.9


def test_colour_images_get_two_towers_and_everything_else_one_body():
    assert network_for((3, 16, 16), K).spec["head"] == "towers"
    assert network_for((3, 16, 16), K, head="factored").spec["head"] == "factored"
    assert network_for((1, 28, 28), K).spec["head"] == "factored"
    assert network_for((3, 15, 15), K).spec["head"] == "factored"
    settled = jem.RECIPES["fast"].resolved
    assert settled((3, 16, 16), 10).head == "towers"
    assert settled((1, 28, 28), 10).head == "factored"
    assert replace(jem.RECIPES["fast"], head="factored").resolved((3, 16, 16), 10).head == (
        "factored"
    )


class Own(torch.nn.Module):
    """Batch normalisation and dropout, as users bring them."""

    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3, stride=2), torch.nn.BatchNorm2d(4), torch.nn.ReLU(),
            torch.nn.Flatten(), torch.nn.Dropout(0.2), torch.nn.Linear(196, K),
        )  # fmt: skip

    def forward(self, x):
        return self.body(x)


def test_a_network_of_the_users_gets_a_density_beside_it_and_trains_as_with_plain():
    learned = {}
    for recipe, head in (("plain", "joint"), ("fast", None)):
        network = make_network(built(lambda _: Own(), head), SHAPE, K, head, seed=0)
        model = jem.JEM(network, domain=(0.0, 1.0))
        recipe = replace(jem.RECIPES[recipe], **TINY)
        jem.Trainer(model, recipe, seed=0, device="cpu").fit(examples())
        learned[recipe.objective] = model
    plain, both = learned["none"].network, learned["contrastive"].network
    assert isinstance(both, Towers)
    assert all(v.equal(both.classifier.state_dict()[k]) for k, v in plain.state_dict().items())
    detector = jem.OODDetector(learned["contrastive"], "vim").fit_reference([examples()])
    x, _ = examples(5)
    assert detector.score(x).shape == (5,)


def test_two_towers_with_a_network_of_the_users_are_read_from_a_file(tmp_path, monkeypatch):
    (tmp_path / "own_net.py").write_text(
        "from torch import nn\n"
        "def make(shape, k): return nn.Sequential(nn.Flatten(), nn.Linear(768, k))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    network = make_network("own_net:make", SHAPE, K, None, seed=0)
    model = jem.JEM(network, input_shape=SHAPE, classes="abc")
    jem.save(model, tmp_path / "model.pt")
    x, _ = examples(5)
    assert jem.load(tmp_path / "model.pt")(x).equal(model.eval()(x))
    network.classifier.spec = {"layers": 2}  # an attribute of the user's that happens to be there
    network.spec = towers(network.classifier, input_shape=SHAPE, num_classes=K).spec
    jem.save(model, tmp_path / "other.pt")
    with pytest.raises(jem.InputError, match="network of your own; pass it"):
        jem.load(tmp_path / "other.pt")
    mine = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, K))
    assert jem.load(tmp_path / "other.pt", network=mine)(x).equal(model.eval()(x))


def test_what_has_a_density_of_its_own_gets_no_other():
    for network in (pooled_cnn(SHAPE, K, 4, head="joint"), factored(Own())):
        assert type(make_network(network, SHAPE, K, None, seed=0)) is type(network)
    assert isinstance(make_network(Own(), SHAPE, K, "joint", seed=0), Own)
    assert isinstance(make_network(torch.nn.Linear(5, K), (5,), K, None, seed=0), torch.nn.Linear)


def test_a_network_of_the_users_has_a_density_beside_it_for_images_of_any_kind():
    for shape in (SHAPE, (1, 16, 16), (1, 8, 8)):
        own = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(K))
        own(torch.zeros(1, *shape))
        assert isinstance(make_network(own, shape, K, None, seed=0), Towers)


@pytest.mark.parametrize(
    "build",
    [
        lambda head: small_cnn((2, 8, 9), 5, width=4, head=head),
        lambda head: pooled_cnn((2, 8, 9), 5, width=4, head=head),
        lambda head: wide_resnet((3, 40, 64), 5, depth=10, width=1, head=head),
    ],
)
def test_any_network_of_ours_may_have_two_towers_and_is_built_again_from_its_spec(build):
    network = built(build, "towers")
    x = torch.rand(2, *network.spec["shape"])
    again = jem.networks.network_from_spec(network.spec)
    again.load_state_dict(network.state_dict())
    assert again(x).equal(network(x))
    (network(x) * torch.rand(2, 5)).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in network.parameters())
