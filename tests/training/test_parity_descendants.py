"""The recipes `jem_pp` and `sada_jem` against transcriptions of JEM++ and SADA-JEM, in float64.

Like test_parity_official.py, whose pieces these tests share: the transcriptions are plain torch,
written from what the official code computes. Where the package differs on purpose:

- Class Gaussians are of low rank and drawn at the frequencies of the classes, not uniformly; the
  transcriptions take them from the package.
- Chains move and are scored in evaluation mode. The networks here have no batch norm, so that both
  are the same.
- JEM++ moves chains by an inner loop on the gradient at the first layer's output. The recipe makes
  one move of it; the transcription makes the loop.
"""

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from contexts import KINDS, _float64  # noqa: F401  a fixture
from test_parity_official import (
    RecordingTrainer,
    close,
    images,
    official_f,
    official_pyld,
    small_net,
)
from torch import nn

from jem.model import JEM
from jem.randomness import named_generator
from jem.training.optimisation import sam_perturbation
from jem.training.recipes import RECIPES
from jem.training.trainer import Trainer

# -- the transcriptions: plain torch --------------------------------------------------------------


@dataclass
class OfficialDescendant:
    """The loop that JEM++ and SADA-JEM share, on batches that it is given."""

    net: nn.Module
    buffer: torch.Tensor
    fresh: object  # (count, generator) -> new chains
    generator: torch.Generator
    iterations_per_epoch: int
    lr: float
    warmup_iters: int
    decay_epochs: tuple
    weight_decay: float

    def __post_init__(self):
        self.optim = torch.optim.SGD(
            self.net.parameters(), self.lr, momentum=0.9, weight_decay=self.weight_decay
        )
        self.decayed = self.lr

    def set_rate(self, iteration):
        if iteration in [e * self.iterations_per_epoch for e in self.decay_epochs]:
            self.decayed *= 0.2
        warm = iteration <= self.warmup_iters
        rate = self.lr * iteration / self.warmup_iters if warm else self.decayed
        for group in self.optim.param_groups:
            group["lr"] = rate

    def sample_q(self, count):
        slots = torch.randint(0, len(self.buffer), (count,), generator=self.generator)
        fresh = self.fresh(count, self.generator)
        reinit = (torch.rand(count, generator=self.generator) < 0.05).reshape(-1, 1, 1, 1)
        x_q = self.moved(torch.where(reinit, fresh, self.buffer[slots]))
        self.buffer[slots] = x_q
        return slots, x_q

    def loss(self, x_lab, y_lab, x_p, x_q):
        l_p_x = -(official_f(self.net, x_p).mean() - official_f(self.net, x_q).mean())
        return l_p_x + nn.functional.cross_entropy(self.net(x_lab), y_lab)

    def step(self, iteration, x_lab, y_lab, x_p, count):
        self.set_rate(iteration)
        slots, x_q = self.sample_q(count)
        loss = self.loss(x_lab, y_lab, x_p, x_q)
        self.optim.zero_grad()
        loss.backward()
        self.update(x_lab, y_lab, x_p, x_q)
        return slots, x_q, loss.detach()


class OfficialJEMPP(OfficialDescendant):
    """Ten outer steps of PYLD, each of five inner ones of 0.2; plain SGD."""

    def moved(self, x):
        for _ in range(10):
            x = official_pyld(self.net[0], self.net[1:], x, in_steps=5, pyld_lr=0.2)
        return x

    def update(self, *_):
        self.optim.step()


class OfficialSADA(OfficialDescendant):
    """Five clamped steps of 1; SGD with adaptive SAM."""

    def moved(self, x):
        for _ in range(5):
            leaf = x.clone().requires_grad_(True)
            (g,) = torch.autograd.grad(official_f(self.net, leaf).sum(), [leaf])
            x = (x + 1.0 * g.clamp(-1, 1)).clamp(-1, 1)
        return x

    def update(self, *batch):
        old = []
        flat = torch.cat([(p.abs() * p.grad).flatten() for p in self.net.parameters()])
        scale = 2.0 / (flat.norm() + 1e-12)
        with torch.no_grad():
            for p in self.net.parameters():
                old.append(p.clone())
                p.add_(p**2 * p.grad * scale)
        self.optim.zero_grad()
        self.loss(*batch).backward()
        with torch.no_grad():
            for p, value in zip(self.net.parameters(), old, strict=True):
                p.copy_(value)
        self.optim.step()


OFFICIAL = {
    # class, weight decay, epochs of the published run, its decays
    "jem_pp": (OfficialJEMPP, 4e-4, 150, (50, 100, 125)),
    "sada_jem": (OfficialSADA, 5e-4, 200, (60, 120, 180)),
}


# -- the whole step -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_recipe_is_the_official_loop(name):
    """Two dozen iterations: parameters, losses, chains, buffer; all decays are passed."""
    official_class, weight_decay, published, decays = OFFICIAL[name]
    epochs = {"jem_pp": 12, "sada_jem": 10}[name]
    recipe = replace(
        RECIPES[name], epochs=epochs, batch_size=8, num_chains=6, warmup=4 / (2 * epochs),
        density_batch_size=4 if name == "sada_jem" else None,
    )  # fmt: skip
    net = small_net()
    with torch.no_grad():
        for p in net.parameters():
            p *= 2  # so that the clamp of the gradient acts
    twin = copy.deepcopy(net)
    data = images(16)
    trainer = RecordingTrainer(JEM(net), recipe, seed=5, device="cpu")
    result = trainer.fit(data)
    assert result.iterations == 2 * epochs == len(trainer.steps)
    assert result.recoveries == 0

    init = trainer.context.chains.init
    generator = named_generator(5, "chains", 0)
    official = official_class(
        twin, init.sample(10_000, generator=generator),
        lambda count, g: init.sample(count, generator=g), generator,
        iterations_per_epoch=2, lr=0.1, warmup_iters=4, weight_decay=weight_decay,
        decay_epochs=[d * epochs // published for d in decays],
    )  # fmt: skip
    for iteration, (batch, ours, parameters) in enumerate(trainer.steps):
        assert (len(batch.x), len(batch.x_density)) == (8, 4 if name == "sada_jem" else 8)
        slots, x_q, loss = official.step(iteration, batch.x, batch.labels, batch.x_density, 6)
        assert torch.equal(ours.proposed.draw.indices, slots)
        close(ours.proposed.x, x_q, rtol=1e-7, atol=1e-9)
        close(ours.loss.detach(), loss, rtol=1e-7, atol=1e-9)
        for mine, reference in zip(parameters, twin.parameters(), strict=True):
            close(mine, reference.detach(), rtol=1e-7, atol=1e-9)
    close(trainer.context.chains.buffer.chains, official.buffer, rtol=1e-7, atol=1e-9)


# -- the density's stream of another batch size ---------------------------------------------------


@pytest.mark.parametrize(("labelled", "density"), [(8, 4), (8, 8), (4, 8), (4, 16)])
def test_the_stream_of_the_density_goes_through_all_data_at_its_own_pace(labelled, density):
    """16 examples: whatever the size of a batch, every 16 that it gives are the whole set."""
    recipe = replace(
        RECIPES["sada_jem"], epochs=8, batch_size=labelled, density_batch_size=density,
        num_chains=2, num_steps=1,
    )  # fmt: skip
    x, y = images(16)
    trainer = RecordingTrainer(JEM(small_net()), recipe, device="cpu")
    trainer.fit((x, y))
    seen = torch.cat([batch.x_density for batch, _, _ in trainer.steps])
    for pass_over_data in seen.split(16)[:-1]:
        distances = torch.cdist(pass_over_data.flatten(1), x.flatten(1))
        assert sorted(distances.argmin(1).tolist()) == list(range(16))


# -- sharpness-aware minimisation -----------------------------------------------------------------


def test_the_ascent_is_scaled_by_the_weights_and_goes_exactly_back():
    """e = w^2 g rho / (| |w| g | + 1e-12), over all parameters that have a gradient."""
    layer = nn.Linear(2, 1)
    spare = nn.Linear(1, 1)
    model = nn.ModuleList([layer, spare])
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, -1.0]]))
        layer.bias.fill_(2.0)
    layer.weight.grad = torch.tensor([[1.0, 2.0]])
    layer.bias.grad = torch.tensor([3.0])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    norm = (3.0**2 + 2.0**2 + 6.0**2) ** 0.5  # |w| g is (3, 2, 6)
    with sam_perturbation(model, 0.7):
        close(layer.weight.detach(), torch.tensor([[3 + 9 * 0.1, -1 + 2 * 0.1]]))
        close(layer.bias.detach(), torch.tensor([2 + 12 * 0.7 / norm]))
        assert layer.weight.grad is None
        layer.weight.grad = torch.tensor([[5.0, 5.0]])
    for name, p in model.named_parameters():
        assert torch.equal(p.detach(), before[name])
    assert torch.equal(layer.weight.grad, torch.tensor([[5.0, 5.0]]))


def test_the_ascent_of_a_zero_or_poisoned_gradient_leaves_the_parameters():
    for value in (0.0, float("nan"), float("inf")):
        layer = nn.Linear(2, 1)
        before = layer.weight.detach().clone()
        for p in layer.parameters():
            p.grad = torch.full_like(p, value)
        with sam_perturbation(layer, 2.0):
            pass
        assert torch.equal(layer.weight.detach(), before)


def norm_net():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.SiLU(), nn.Flatten(), nn.Linear(64, 3)
    )


@pytest.mark.parametrize("step", list(KINDS))
def test_the_second_pass_leaves_running_statistics_and_their_count(step):
    """The official code still counts the batch."""
    recipe = replace(
        RECIPES["sada_jem"], **KINDS[step], epochs=1, batch_size=16, num_chains=4, num_steps=1,
        density_batch_size=None,
    )  # fmt: skip
    nets = {}
    for rho in (None, 2.0):
        torch.manual_seed(0)
        nets[rho] = norm_net()
        trainer = Trainer(JEM(nets[rho]), replace(recipe, adaptive_sam_rho=rho), device="cpu")
        assert trainer.fit(images(16)).iterations == 1  # of rate 0: the warm-up begins
    for mine, plain in zip(nets[2.0].buffers(), nets[None].buffers(), strict=True):
        assert torch.equal(mine, plain)
    assert nets[2.0][1].num_batches_tracked > 0
