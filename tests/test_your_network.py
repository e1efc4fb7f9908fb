"""Networks of the user's: batch norm, dropout, own scaling, frozen layers; nothing disturbed.

Most networks are trained for a few updates on made-up data: what is tested is what chains and
scores must not touch. What is learned is tested of batch normalisation, in both modes.
"""

import copy
from dataclasses import replace

import pytest
import torch
import torchvision
from torch import nn

import jem
from jem.evaluation.ood import SCORES

TINY = replace(
    jem.RECIPES["fast"], epochs=1, batch_size=16, num_chains=12, buffer_size=24, num_steps=3,
    sample_steps=3, density_weight=0.3, learning_rate=1e-3, step_size=1.0, warmup=0.0,
    outlier_count=18,
)  # fmt: skip
PLAIN = replace(TINY, objective="none", head="joint")
SCORES_OF_ANY_NETWORK = sorted(name for name, score in SCORES.items() if score.takes != "features")


def seeded(build):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def resnet():
    return torchvision.models.resnet18(num_classes=3)


def small_with_batch_norm():
    """Batch norm in 56 layers of few parameters."""
    return torchvision.models.shufflenet_v2_x0_5(num_classes=3)


class WithDropout(nn.Module):
    """Dropout as a module and as a function, which no list of modules shows."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.SiLU(), nn.Dropout2d(0.5))
        self.head = nn.Linear(8 * 64, 3)

    def forward(self, x):
        hidden = self.body(x).flatten(1)
        return self.head(nn.functional.dropout(hidden, 0.5, self.training))


class WithOwnScaling(nn.Module):
    """Takes images in [0, 1] and standardises them itself, as a service's network does."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None])
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None])
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.SiLU())
        self.head = nn.Linear(8 * 64, 3)
        self.seen = []

    def forward(self, x):
        self.seen.append((float(x.detach().min()), float(x.detach().max())))
        return self.head(self.body((x - self.mean) / self.std).flatten(1))


NETWORKS = {"resnet18": resnet, "dropout": WithDropout, "own scaling": WithOwnScaling}


def examples(count=48):
    """Images in [0, 1] of three classes that differ in brightness."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % 3
    x = torch.rand(count, 3, 32, 32, generator=generator) * 0.4
    return x + 0.3 * labels[:, None, None, None], labels


def state_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same_state(module, before):
    after = module.state_dict()
    assert list(after) == list(before)
    assert [name for name in after if not torch.equal(after[name], before[name])] == []


def batch_norms(module):
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.fixture(scope="module")
def trained():
    """Name -> model and trainer after three updates."""
    models = {}
    for name, build in NETWORKS.items():
        model = jem.JEM(seeded(build), domain=(0.0, 1.0))
        trainer = jem.Trainer(model, TINY, device="cpu")
        trainer.fit(examples())
        models[name] = (model, trainer)
    return models


# -- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_training_updates_the_network_and_leaves_nothing_behind(trained, name):
    model, trainer = trained[name]
    before = dict(seeded(NETWORKS[name]).named_parameters())
    assert all(not torch.equal(p, before[n]) for n, p in model.network.named_parameters())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(module.training for module in model.modules())
    assert model.input_shape == (3, 32, 32)
    assert trainer.state.progress.iteration == 3


def test_a_domain_of_every_channel_is_kept():
    """Images that were standardised before they reach the network have bounds by channel."""
    mean, std = (WithOwnScaling().get_buffer(name) for name in ("mean", "std"))
    low, high = -mean / std, (1 - mean) / std
    x, y = examples()
    model = jem.JEM(seeded(WithDropout), domain=(low, high))
    trainer = jem.Trainer(model, replace(TINY, step_size=30.0), device="cpu")
    trainer.fit(((x - mean) / std, y))
    for images in (trainer.state.chains.buffer.chains, jem.sample(model, [0, 1, 2])):
        assert (images >= low).all()
        assert (images <= high).all()
        reached = images.amax(dim=(0, 2, 3))
        torch.testing.assert_close(reached, high.flatten(), rtol=0.05, atol=0)


def test_chains_are_only_shown_to_the_network_inside_its_domain():
    network = seeded(WithOwnScaling)
    model = jem.JEM(network, domain=(0.0, 1.0))
    recipe = replace(TINY, augment_noise=0.0, step_size=30.0, noise_std=0.5)
    jem.Trainer(model, recipe, device="cpu").fit(examples())
    network.seen.clear()
    jem.sample(model, [0, 1, 2], num_steps=5)
    assert len(network.seen) == 7  # two of them for the size of the steps
    assert all(low >= 0 and high <= 1 for low, high in network.seen)


@pytest.mark.parametrize("fused", [True, False])
def test_running_statistics_are_those_of_the_data_alone(fused):
    """One update from the same weights and data: chains leave no trace in any layer."""
    statistics = []
    for recipe in (replace(TINY, fused=fused), PLAIN):
        model = jem.JEM(seeded(small_with_batch_norm), domain=(0.0, 1.0))
        x, y = examples(16)
        trainer = jem.Trainer(model, recipe, device="cpu")
        trainer.fit((x, y))
        norms = batch_norms(model)
        assert [int(m.num_batches_tracked) for m in norms] == [1] * 56
        statistics.append([(m.running_mean, m.running_var) for m in norms])
    for (mean, var), (mean_plain, var_plain) in zip(*statistics, strict=True):
        assert torch.equal(mean, mean_plain)
        assert torch.equal(var, var_plain)


def test_chains_move_as_the_model_predicts_and_are_scored_beside_the_data():
    """Dropout acts on data, chains and outliers, or on none: it must not tell them apart."""
    network = seeded(WithDropout)
    rows = []
    network.register_forward_hook(
        lambda module, inputs, _: rows.append((module.training, len(inputs[0])))
    )
    jem.Trainer(jem.JEM(network, domain=(0.0, 1.0)), TINY, device="cpu").fit(examples())
    assert rows.count((True, 16 + 12 + 18)) == 3  # data, chains and outliers in the loss
    assert rows.count((False, 12)) == 3 * 2  # chains that move


def normed():
    layers, now = [], 1
    for width, stride in ((8, 1), (16, 2), (16, 1), (16, 2)):
        layers += [nn.Conv2d(now, width, 3, stride, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
        now = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 10))


def test_a_network_with_batch_norm_learns_digits_and_that_noise_is_none():
    """It must not learn to tell data in training mode from chains in evaluation mode."""
    data = jem.data.load("digits")
    model = jem.JEM(seeded(normed), domain=data.domain)
    recipe = replace(jem.RECIPES["fast"], epochs=6, density_weight=0.5)
    result = jem.Trainer(model, recipe, device="cpu").fit(data.train, data.validation)
    assert min(epoch["valid_accuracy"] for epoch in result.epochs[1:]) > 0.75
    noise = 2 * torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0)) - 1
    higher = model.energy(noise)[:, None] > model.energy(data.validation.x)
    assert higher.float().mean() > 0.95


def test_frozen_layers_stay_as_they_are():
    network = seeded(small_with_batch_norm)
    frozen = [p for n, p in network.named_parameters() if not n.startswith("fc.")]
    for parameter in frozen:
        parameter.requires_grad_(False)
    before = [parameter.clone() for parameter in frozen]
    head = network.fc.weight.clone()
    jem.Trainer(jem.JEM(network, domain=(0.0, 1.0)), TINY, device="cpu").fit(examples())
    assert all(torch.equal(now, then) for now, then in zip(frozen, before, strict=True))
    assert not any(parameter.requires_grad for parameter in frozen)
    assert not torch.equal(network.fc.weight, head)


# -- scores and samples ---------------------------------------------------------------------------


def everything(model, x):
    """All that a user does with a trained model, on one batch."""
    for name in SCORES_OF_ANY_NETWORK:
        jem.OODDetector(model, score=name, reference=(x, None)).score(x)
    detector = jem.OODDetector(model, validation=x).fit(x)
    detector.is_ood(x[0])
    model.predict_proba(x)
    jem.sample(model, [0, 1])


@pytest.mark.parametrize("name", NETWORKS)
def test_scores_and_samples_touch_nothing(trained, name):
    """The network is left half in training mode, with a gradient and a frozen parameter."""
    model = copy.deepcopy(trained[name][0])
    model.train()
    first, *_, last = model.network.modules()
    last.eval()
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    parameters[-1].grad = torch.full_like(parameters[-1], 3.0)
    modes = [module.training for module in model.modules()]
    before = state_of(model.network)
    everything(model, examples(24)[0])
    assert_same_state(model.network, before)
    assert [module.training for module in model.modules()] == modes
    assert first.training
    assert not last.training
    assert [p.requires_grad for p in parameters] == [False] + [True] * (len(parameters) - 1)
    assert torch.equal(parameters[-1].grad, torch.full_like(parameters[-1], 3.0))
    assert all(p.grad is None for p in parameters[:-1])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_plain_classifier_is_scored_without_any_training(name, global_rng_untouched):
    model = jem.JEM(seeded(NETWORKS[name]))
    before = state_of(model.network)
    x, y = examples(30)
    detector = jem.OODDetector(model, "log_density").fit(x, acceptance_rate=0.9)
    assert 0 < detector.is_ood(x).sum() <= 3
    assert jem.calibration_report(model.predict_proba(x), y, num_bootstrap=0).nll > 0
    assert_same_state(model.network, before)
    assert all(module.training for module in model.modules())
