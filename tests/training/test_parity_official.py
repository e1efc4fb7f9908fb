"""The `jem` recipe against a transcription of the official JEM step, in float64.

The transcription below is plain torch and knows nothing of `jem`: it is written from what the
official code of Grathwohl et al. (2020) computes, not from this package.

The official sampler leaves the network in training mode; here chains move and are scored in
evaluation mode. For networks without batch norm or dropout, as in the paper, the two are the same,
which the parity test relies on. The third term of the official objective (weight 0 in its README)
and its class-conditional chains, which it scores by E(x), have no counterpart here.
"""

import copy
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from contexts import KINDS, _float64  # noqa: F401  a fixture
from torch import nn

import jem
from jem.errors import TrainingDivergedError
from jem.randomness import named_generator
from jem.training.optimisation import clip_gradients
from jem.training.recipe import Recipe
from jem.training.recipes import RECIPES
from jem.training.update import Batch

SHAPE, NUM_CLASSES = (1, 4, 4), 3


# -- the transcription: plain torch ---------------------------------------------------------------


def official_f(net, x):
    """f(x) = logsumexp of the logits: high for likely inputs."""
    return torch.logsumexp(net(x), 1)


def official_sample_q(
    net, buffer, count, generator, *, n_steps=20, sgld_lr=1.0, sgld_std=0.01, reinit_freq=0.05,
    slots=None,
):  # fmt: skip
    """Slots, then a full batch of fresh noise, then the mask; then ascent on f, noise last."""
    if slots is None:
        slots = torch.randint(0, buffer.shape[0], (count,), generator=generator)
    fresh = torch.empty(count, *buffer.shape[1:]).uniform_(-1, 1, generator=generator)
    reinit = (torch.rand(count, generator=generator) < reinit_freq).reshape(-1, 1, 1, 1)
    x = torch.where(reinit, fresh, buffer[slots])
    for _ in range(n_steps):
        x = x.detach().requires_grad_(True)
        (f_prime,) = torch.autograd.grad(official_f(net, x).sum(), [x])
        noise = torch.randn(x.shape, generator=generator)
        x = x.detach() + sgld_lr * f_prime + sgld_std * noise
    return slots, x.detach()


@dataclass
class OfficialRun:
    """The official loop on batches that it is given."""

    net: nn.Module
    generator: torch.Generator
    capacity: int
    iterations: int
    iterations_per_epoch: int
    lr: float
    warmup_iters: int
    w_px: float = 1.0
    without_replacement: bool = False

    def __post_init__(self):
        self.buffer = torch.empty(self.capacity, *SHAPE).uniform_(-1, 1, generator=self.generator)
        self.optim = torch.optim.Adam(self.net.parameters(), self.lr, betas=(0.9, 0.999))
        self.decayed = self.lr

    def rate(self, iteration):
        epochs = self.iterations // self.iterations_per_epoch
        if iteration in (
            s * self.iterations_per_epoch for s in (epochs * 8 // 10, epochs * 9 // 10)
        ):
            self.decayed *= 0.3
        if iteration <= self.warmup_iters:
            return self.lr * iteration / self.warmup_iters
        return self.decayed

    def step(self, iteration, x_lab, y_lab, x_p):
        for group in self.optim.param_groups:
            group["lr"] = self.rate(iteration)
        slots = None
        if self.without_replacement:
            slots = torch.randperm(self.capacity, generator=self.generator)[: len(x_p)]
        slots, x_q = official_sample_q(
            self.net, self.buffer, len(x_p), self.generator, slots=slots
        )
        self.buffer[slots] = x_q
        fp, fq = official_f(self.net, x_p), official_f(self.net, x_q)
        l_p_x = -(fp.mean() - fq.mean())
        l_p_y_given_x = nn.functional.cross_entropy(self.net(x_lab), y_lab)
        loss = self.w_px * l_p_x + l_p_y_given_x
        self.optim.zero_grad()
        loss.backward()
        self.optim.step()
        return SimpleNamespace(
            loss=loss.detach(), classification=l_p_y_given_x.detach(), fp=fp.detach(),
            fq=fq.detach(), slots=slots, x_q=x_q,
        )  # fmt: skip


def official_pyld(conv, rest, x, *, in_steps, pyld_lr, eps=1.0):
    """JEM++'s inner loop: the gradient at the first layer's output is held fixed."""
    hidden = conv(x).detach().requires_grad_(True)
    (p,) = torch.autograd.grad(torch.logsumexp(rest(hidden), 1).sum(), [hidden])
    for _ in range(in_steps):
        x = x.detach().requires_grad_(True)
        (g,) = torch.autograd.grad((conv(x) * p).sum(), [x])
        x = (x.detach() + pyld_lr * g.clamp(-eps, eps)).clamp(-1, 1)
    return x


# -- what the package does, recorded --------------------------------------------------------------


class RecordingTrainer(jem.Trainer):
    """A trainer that keeps every batch and outcome, and the parameters after each step."""

    def fit(self, *args, **kwargs):
        self.steps = []
        return super().fit(*args, **kwargs)

    def update(self, batch):
        if batch.x_density is not batch.x:
            batch = Batch(*(t.clone() for t in batch if t is not None))
        outcome = super().update(batch)
        parameters = [p.detach().clone() for p in self.model.parameters()]
        self.steps.append((batch, outcome, parameters))
        return outcome


def small_net():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(24, NUM_CLASSES),
    )  # fmt: skip


def images(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(NUM_CLASSES, (count,), generator=generator)
    centre = (y.view(-1, 1, 1, 1) - 1) * 0.5
    noise = torch.empty(count, *SHAPE).uniform_(-0.4, 0.4, generator=generator)
    return (centre + noise).clamp(-1, 1), y


def close(a, b, rtol=1e-9, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


# -- the whole step -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capacity", "replacement", "weight"),
    [(10_000, True, 1.0), (12, False, 1.0), (12, False, 0.3)],
)
def test_the_jem_recipe_is_the_official_loop(capacity, replacement, weight):
    """Twenty iterations of Adam: parameters, energies, chains and buffer.

    The official buffer of 10,000 is never asked for one slot twice at once (asserted); a
    small one, drawn without replacement, is revisited over and over.
    """
    recipe = replace(
        RECIPES["jem"], epochs=10, batch_size=8, num_chains=8, learning_rate=1e-2, warmup=0.15,
        buffer_size=capacity, replacement=replacement, density_weight=weight,
    )  # fmt: skip
    net = small_net()
    twin = copy.deepcopy(net)
    trainer = RecordingTrainer(jem.JEM(net), recipe, seed=5, device="cpu")
    result = trainer.fit(images(16))
    assert result.iterations == 20 == len(trainer.steps)
    assert result.recoveries == 0

    generator = named_generator(5, "chains", 0)
    official = OfficialRun(
        twin, generator, capacity, iterations=20, iterations_per_epoch=2, lr=1e-2, warmup_iters=3,
        w_px=weight, without_replacement=not replacement,
    )  # fmt: skip
    visited = []
    for iteration, (batch, ours, parameters) in enumerate(trainer.steps):
        theirs = official.step(iteration, batch.x, batch.labels, batch.x_density)
        assert len(theirs.slots.unique()) == 8
        visited.append(theirs.slots)
        assert torch.equal(ours.proposed.draw.indices, theirs.slots)
        close(ours.proposed.x, theirs.x_q)
        close(-ours.energies.data, theirs.fp)
        close(-ours.energies.chains, theirs.fq)
        close(ours.cross_entropy.detach(), theirs.classification)
        close(ours.loss.detach(), theirs.loss)
        for mine, reference in zip(parameters, twin.parameters(), strict=True):
            close(mine, reference.detach())
    close(trainer.context.chains.buffer.chains, official.buffer)
    if not replacement:
        assert len(torch.cat(visited).unique()) == capacity
    # What `fit` returns are the last weights (the recipe averages nothing), ready to be scored.
    for mine, reference in zip(trainer.model.parameters(), twin.parameters(), strict=True):
        close(mine.detach(), reference.detach())


def test_clipping_returns_the_norm_before_it_and_scales_to_the_limit():
    layer = nn.Linear(3, 1, bias=False)
    layer.weight.grad = torch.tensor([[2.0, 3.0, 6.0]])
    close(clip_gradients(layer, None), torch.tensor(7.0))
    close(clip_gradients(layer, 8.0), torch.tensor(7.0))
    close(layer.weight.grad, torch.tensor([[2.0, 3.0, 6.0]]))
    close(clip_gradients(layer, 0.7), torch.tensor(7.0))
    close(layer.weight.grad, torch.tensor([[0.2, 0.3, 0.6]]), rtol=1e-5)


class Poisoned(nn.Module):
    """Logits that are NaN for one input in training, although every parameter is finite."""

    def __init__(self):
        super().__init__()
        self.net = small_net()

    def forward(self, x):
        logits = self.net(x)
        return torch.where(x.flatten(1)[:, :1] == 0.5, torch.nan, logits)


@pytest.mark.parametrize("step", list(KINDS))
def test_a_nan_ends_in_an_error_and_never_in_the_parameters(step):
    x, y = images(16)
    x[3, 0, 0, 0] = 0.5
    recipe = Recipe(
        **KINDS[step], epochs=2, batch_size=8, num_chains=4, warmup=0.0,
        augment_noise=0.0,
    )  # fmt: skip
    trainer = jem.Trainer(jem.JEM(Poisoned()), recipe, device="cpu")
    with pytest.raises(TrainingDivergedError, match="after 5 recoveries"):
        trainer.fit((x, y))
    assert all(bool(p.isfinite().all()) for p in trainer.model.parameters())
    if step != "plain":
        assert bool(trainer.context.chains.buffer.chains.isfinite().all())
