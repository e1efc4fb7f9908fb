"""The `jem` recipe against a transcription of the official JEM step, point by point, in float64.

The transcription below is plain torch and knows nothing of `jem`: it is written from what the
official code of Grathwohl et al. (2020) computes, not from this package. The numbered points are
facts about that code and its descendants that a reimplementation gets wrong easily.

Points that do not apply here, and why:

3. The official sampler leaves the network in training mode; here chains are always scored in
   evaluation mode and every mode is restored (tested in test_steps.py). For networks without batch
   norm or dropout, as in the paper, the two are the same, which the parity test relies on.
4. The official evaluation script scores in training mode; `fit` leaves the model in evaluation
   mode and scores switch to it themselves (asserted under points 15 and 20).
16. The value of batch norm's momentum belongs to a person's network; that chains stay out of its
    statistics is tested.
17. and 18. SADA-JEM's second pass and its adaptive scale: test_parity_descendants.py.
21. Calibration bins are tested with the calibration error itself.
22. The official network carries a head that joint training never uses; ours has none.
24. Interpolated inputs are not among the OOD sets of `jem.data.ood_sets`.

The third term of the official objective (weight 0 in its README) and its class-conditional chains,
which it scores by E(x), have no counterpart: conditional chains are scored by E(x, y) here.
"""

import copy
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from contexts import KINDS, context_of
from torch import nn

import jem
from jem.errors import InputError, TrainingDivergedError
from jem.model import joint_energy
from jem.objectives import generative_loss
from jem.randomness import named_generator
from jem.sampling import (
    LangevinStep,
    PersistentChains,
    ReplayBuffer,
    UniformBase,
    langevin_update,
    sgld_chain,
)
from jem.sampling.buffer import slots_by_class
from jem.training.optimisation import clip_gradients, learning_rate
from jem.training.recipe import Recipe
from jem.training.recipes import RECIPES
from jem.training.safeguards import validate
from jem.training.setup import domain_of
from jem.training.steps import Batch, take_step

SHAPE, NUM_CLASSES = (1, 4, 4), 3
GENERATIVE = ("classic", "fused")


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


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

    def train_step(self, batch):
        if batch.x_data is not batch.x:
            batch = Batch(*(t.clone() for t in batch if t is not None))
        outcome = super().train_step(batch)
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


def make_negatives(capacity=6, count=4, *, conditional=False, seed=3, **move):
    step = LangevinStep(**({"step_size": 0.5, "noise_std": 0.01} | move))
    generator = torch.Generator().manual_seed(seed)
    init = UniformBase(-1.0, 1.0, SHAPE)
    frequencies = torch.full((NUM_CLASSES,), 1 / NUM_CLASSES) if conditional else None
    buffer = ReplayBuffer.from_init(
        init, capacity, generator=generator, class_frequencies=frequencies
    )
    return PersistentChains(buffer, init, count, 0.05, False, step, None, generator)


def recipe_for(step, **changes):
    plain = {"energy_l2": 0.0, "generative_weight": 1.0, "num_steps": 2}
    return Recipe(**KINDS[step], **({"label_smoothing": 0.0} | plain | changes))


def one_step(step, model, batch, negatives, **changes):
    method = context_of(recipe_for(step, **changes), negatives)
    return take_step(model, batch, method, 1.0, 0)


def close(a, b, rtol=1e-9, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


# -- the whole step -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capacity", "replacement", "weight"),
    [(10_000, True, 1.0), (12, False, 1.0), (12, False, 0.3)],
)
def test_the_jem_recipe_is_the_official_loop(capacity, replacement, weight):
    """Twenty iterations of Adam: parameters, energies, chains and buffer (points 1, 2, 5, 6, 9).

    The official buffer of 10,000 is never asked for one slot twice at once (asserted: point 7); a
    small one, drawn without replacement, is revisited over and over.
    """
    recipe = replace(
        RECIPES["jem"], epochs=10, batch_size=8, num_chains=8, learning_rate=1e-2, warmup=0.15,
        buffer_size=capacity, replacement=replacement, generative_weight=weight,
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
        theirs = official.step(iteration, batch.x, batch.labels, batch.x_data)
        assert len(theirs.slots.unique()) == 8
        visited.append(theirs.slots)
        assert torch.equal(ours.proposed.draw.indices, theirs.slots)
        close(ours.proposed.x, theirs.x_q)
        close(-ours.energies.data, theirs.fp)
        close(-ours.energies.chains, theirs.fq)
        close(ours.terms.named["cross_entropy"].detach(), theirs.classification)
        close(ours.terms.loss.detach(), theirs.loss)
        for mine, reference in zip(parameters, twin.parameters(), strict=True):
            close(mine, reference.detach())
    close(trainer.context.chains.buffer.chains, official.buffer)
    if not replacement:
        assert len(torch.cat(visited).unique()) == capacity
    # What `fit` returns are the last weights (the recipe averages nothing), ready to be scored.
    for mine, reference in zip(trainer.model.parameters(), twin.parameters(), strict=True):
        close(mine.detach(), reference.detach())


def test_the_jem_recipe_has_the_settings_of_the_official_readme():
    recipe = RECIPES["jem"]
    assert (recipe.fused, recipe.head, recipe.init) == (False, "joint", "uniform")
    assert (recipe.num_steps, recipe.step_size, recipe.noise_std) == (20, 1.0, 0.01)
    assert (recipe.buffer_size, recipe.reinit_prob, recipe.replacement) == (10_000, 0.05, True)
    assert (recipe.langevin_grad_clamp, recipe.max_rms, recipe.clip_to_domain) == (
        None,
        None,
        False,
    )
    assert (recipe.generative_weight, recipe.generative_ramp) == (1.0, 0.0)
    assert (recipe.energy_l2, recipe.mean_energy_l2, recipe.gap_limit) == (0.0, 0.0, None)
    assert (recipe.optimizer, recipe.learning_rate) == ("adam", 1e-4)
    assert (recipe.weight_decay, recipe.max_grad_norm, recipe.label_smoothing) == (0.0, None, 0.0)
    assert (recipe.batch_size, recipe.num_chains) == (64, 64)
    assert (recipe.separate_density_batches, recipe.augment_noise) == (True, 0.03)
    assert recipe.augment_density
    assert not recipe.class_conditional_chains


# -- 1, 2, 5, 6: the sampler and the loss ---------------------------------------------------------


def test_1_a_move_ascends_f_with_one_draw_of_noise_after_the_gradient():
    """Point 1: x + lr * grad f + std * noise; the noise of move k is drawn after its gradient."""
    generator, twin = (torch.Generator().manual_seed(7) for _ in range(2))
    weight = torch.tensor([1.0, -2.0])
    seen = []

    def energy(x):  # f(x) = w.x - |x|^2 / 2, E = -f
        seen.append(generator.get_state())
        return -(x @ weight - x.square().sum(1) / 2)

    x = torch.zeros(3, 2)
    moved = sgld_chain(x, energy, [LangevinStep(0.1, 0.01)] * 3, generator=generator)
    for state in seen:
        assert torch.equal(state, twin.get_state())  # only earlier moves have drawn
        x = x + 0.1 * (weight - x) + 0.01 * torch.randn(3, 2, generator=twin)
    assert len(seen) == 3
    assert torch.equal(generator.get_state(), twin.get_state())
    close(moved, x)


@pytest.mark.parametrize("step", GENERATIVE)
def test_2_the_loss_raises_f_on_data_and_lowers_it_on_chains(step):
    """Point 2: for f(x) = w.x the gradient is -(mean of data - mean of chains)."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 1, bias=False))
    model = jem.JEM(network)
    x, y = images(5)
    negatives = make_negatives(step_size=1e-300, noise_std=0.0)  # chains stay where they are
    outcome = one_step(step, model, Batch(x, y, x), negatives)
    chains = outcome.proposed.draw.x
    close(network[1].weight.grad, -(x.mean(0) - chains.mean(0)).reshape(1, 16))
    close(outcome.terms.named["contrast"].detach(), -outcome.terms.named["gap"])


def test_2_the_value_of_the_contrast_has_no_floor():
    assert generative_loss(torch.tensor([-50.0]), torch.tensor([70.0])).item() == -120
    assert generative_loss(torch.tensor([7.0]), torch.tensor([5.0])).item() == 2


@pytest.mark.parametrize("before", ["none", "some"])
def test_5_sampling_leaves_the_gradients_of_parameters_as_they_are(before):
    """Point 5: the chains differentiate with respect to x alone."""
    model = jem.JEM(small_net())
    if before == "some":
        for p in model.parameters():
            p.grad = torch.full_like(p, 3.0)
    kept = [p.grad for p in model.parameters()]
    negatives = make_negatives()
    negatives.run(negatives.draw().x, model.energy, 4)
    for p, grad in zip(model.parameters(), kept, strict=True):
        assert p.grad is grad
        assert grad is None or bool((grad == 3).all())


def test_6_no_gradient_flows_through_the_chain():
    """Point 6: the ends of chains are constants of the loss."""
    net = small_net()
    x, y = images(4)
    negatives = make_negatives(step_size=5.0, noise_std=0.0)
    outcome = one_step("classic", jem.JEM(net), Batch(x, y, x), negatives, num_steps=1)
    ours = [p.grad.clone() for p in net.parameters()]
    assert not outcome.proposed.x.requires_grad

    def gradient(through):
        start = outcome.proposed.draw.x.clone().requires_grad_()
        (g,) = torch.autograd.grad(official_f(net, start).sum(), start, create_graph=through)
        end = start + 5.0 * g if through else (start + 5.0 * g).detach()
        loss = official_f(net, end).mean() - official_f(net, x).mean()
        loss = loss + nn.functional.cross_entropy(net(x), y)
        return torch.autograd.grad(loss, list(net.parameters()))

    for mine, detached, through in zip(ours, gradient(False), gradient(True), strict=True):
        close(mine, detached)
        if mine.ndim > 1 and len(mine) != NUM_CLASSES:
            assert not torch.allclose(mine, through, rtol=1e-3)  # the test can tell them apart


# -- 7 to 11: the buffer --------------------------------------------------------------------------


def test_7_moved_chains_overwrite_their_slots_and_no_others():
    """Point 7: with distinct slots the write is exact; of duplicates one of the two stays."""
    negatives = make_negatives(capacity=6, count=4)
    before = negatives.buffer.chains.clone()
    draw = negatives.draw()
    assert len(draw.indices.unique()) == 4
    negatives.buffer.commit(draw, draw.x + 1, steps=2)
    others = torch.ones(6, dtype=torch.bool)
    others[draw.indices] = False
    assert torch.equal(negatives.buffer.chains[draw.indices], draw.x + 1)
    assert torch.equal(negatives.buffer.chains[others], before[others])
    assert torch.equal(negatives.buffer.ages, torch.where(others, 0, 2))

    twice = draw._replace(indices=torch.tensor([1, 1, 4, 5]))
    ends = torch.arange(4.0).view(4, 1, 1, 1).expand(4, *SHAPE)
    negatives.buffer.commit(twice, ends, steps=1)
    assert negatives.buffer.chains[1].unique().item() in (0.0, 1.0)
    assert negatives.buffer.chains[[4, 5], 0, 0, 0].tolist() == [2.0, 3.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_8_a_dead_chain_is_evicted(bad):
    """Point 8: the arithmetic mask m * new + (1 - m) * old keeps a NaN; here it always goes."""
    negatives = make_negatives(capacity=4, count=4)
    negatives.reinit_prob = 0.0
    negatives.buffer.chains[2, 0, 1, 1] = bad
    draw = negatives.draw()
    assert bool(draw.x.isfinite().all())
    row = (draw.indices == 2).nonzero().item()
    assert draw.ages[row] == 0
    healthy = draw.indices != 2
    assert torch.equal(draw.x[healthy], negatives.buffer.chains[draw.indices[healthy]])
    negatives.buffer.commit(draw, draw.x, steps=1)
    assert bool(negatives.buffer.chains.isfinite().all())


@pytest.mark.parametrize("reinit_prob", [0.0, 0.5, 1.0])
def test_9_one_draw_takes_slots_then_a_full_batch_of_noise_then_the_mask(reinit_prob):
    """Point 9: a seed means the same in both; the batch is full whatever the mask."""
    generator, twin = (torch.Generator().manual_seed(11) for _ in range(2))
    buffer = ReplayBuffer(torch.randn(50, *SHAPE))
    draw = buffer.draw(
        20, init=UniformBase(-1.0, 1.0, SHAPE), reinit_prob=reinit_prob, generator=generator,
        replacement=True,
    )  # fmt: skip
    slots, x = official_sample_q(None, buffer.chains, 20, twin, n_steps=0, reinit_freq=reinit_prob)
    assert torch.equal(draw.indices, slots)
    close(draw.x, x)
    assert torch.equal(generator.get_state(), twin.get_state())


def test_10_an_empty_buffer_is_refused():
    """Point 10: no silent start on another device."""
    with pytest.raises(InputError, match="capacity >= 1"):
        ReplayBuffer(torch.empty(0, *SHAPE))


def test_11_conditional_slots_belong_to_one_class_for_good():
    """Point 11: slot y * (B // C) + r holds class y, and a draw says which class a chain has."""
    negatives = make_negatives(capacity=12, count=5, conditional=True)
    wanted = torch.arange(12) // 4
    for _ in range(5):
        draw = negatives.draw()
        assert torch.equal(draw.labels, wanted[draw.indices])
        negatives.buffer.commit(draw, draw.x, steps=1)
        assert torch.equal(negatives.buffer.labels, wanted)
    assert make_negatives().draw().labels is None  # marginal chains belong to none
    # Unlike the official buffer, ours need not divide by the number of classes.
    assert torch.bincount(slots_by_class(10, torch.full((3,), 1 / 3))).tolist() in (
        [4, 3, 3], [3, 4, 3], [3, 3, 4],
    )  # fmt: skip


@pytest.mark.parametrize("step", GENERATIVE)
def test_11_conditional_chains_move_on_the_energy_of_their_class(step):
    net = small_net()
    x, y = images(4)
    negatives = make_negatives(count=4, conditional=True, step_size=2.0, noise_std=0.0)
    outcome = one_step(step, jem.JEM(net), Batch(x, y, x), negatives, num_steps=1)
    start = outcome.proposed.draw.x.clone().requires_grad_()
    own = net(start)[torch.arange(4), outcome.proposed.draw.labels]
    (g,) = torch.autograd.grad(own.sum(), start)
    close(outcome.proposed.x, (start + 2.0 * g).detach())


# -- 12: shapes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
def test_12_energies_have_one_axis(count):
    """Point 12: (B,) for E(x) and for E(x, y); the official conditional one has shape (B, 1)."""
    logits = torch.randn(count, NUM_CLASSES)
    y = torch.zeros(count, dtype=torch.int64)
    close(joint_energy(logits), -logits.exp().sum(1).log())
    close(joint_energy(logits, y), -logits[:, 0])
    assert joint_energy(logits).shape == joint_energy(logits, y).shape == (count,)


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("step", list(KINDS))
def test_12_a_batch_of_one_works(step, conditional):
    """Point 12: the official script squeezes its logits, and one example raises."""
    model = jem.JEM(small_net())
    x, y = images(1)
    negatives = make_negatives(count=1, conditional=conditional)
    outcome = one_step(step, model, Batch(x, y, x), negatives)
    assert outcome.logits.shape == (1, NUM_CLASSES)
    assert bool(outcome.terms.loss.isfinite())
    close(
        outcome.terms.named["cross_entropy"].detach(),
        nn.functional.cross_entropy(model(x), y).detach(),
    )
    if step != "plain":
        assert outcome.proposed.x.shape == (1, *SHAPE)
        assert outcome.energies.chains.shape == (1,)


# -- 13, 14: clamps -------------------------------------------------------------------------------


def test_13_the_official_move_clamps_nothing():
    """Point 13: neither the gradient nor the pixels."""
    x, grad = torch.zeros(2, *SHAPE), torch.full((2, *SHAPE), -40.0)
    recipe = replace(RECIPES["jem"], noise_std=0.0, epochs=1, num_steps=1, num_chains=8)
    trainer = jem.Trainer(jem.JEM(small_net()), recipe, device="cpu")
    trainer.fit(images(64))
    assert bool((trainer.context.chains.update(x, grad) == 40).all())


def test_13_the_proximal_move_clamps_the_gradient_then_adds_noise_then_clips():
    """Point 13: the order of SADA-JEM (JEM++ adds noise after clipping, and leaves the box)."""
    generator, twin = (torch.Generator().manual_seed(2) for _ in range(2))
    x = torch.rand(6, *SHAPE) * 2 - 1
    grad = torch.randn(6, *SHAPE) * 3
    moved = langevin_update(
        x, grad, step_size=0.7, noise_std=0.3, generator=generator, grad_clamp=1.0,
        bounds=(-1.0, 1.0),
    )  # fmt: skip
    noise = torch.randn(x.shape, generator=twin)
    close(moved, (x - 0.7 * grad.clamp(-1, 1) + 0.3 * noise).clamp(-1, 1))
    jempp = (x - 0.7 * grad.clamp(-1, 1)).clamp(-1, 1) + 0.3 * noise
    assert not torch.allclose(moved, jempp)
    assert moved.abs().max() <= 1 < jempp.abs().max()


@pytest.mark.parametrize(("in_steps", "pyld_lr"), [(5, 0.2), (3, 0.5)])
def test_14_the_inner_loop_of_jempp_is_one_proximal_move(in_steps, pyld_lr):
    """Point 14: the first layer is affine, so N inner steps of eta are one of N * eta."""
    net = small_net()
    for p in net.parameters():
        p.data *= 4  # so that the clamp of the gradient acts
    x = torch.rand(8, *SHAPE) * 2 - 1
    looped = official_pyld(net[0], net[1:], x, in_steps=in_steps, pyld_lr=pyld_lr)
    step = LangevinStep(in_steps * pyld_lr, 0.0, grad_clamp=1.0)
    model = jem.JEM(net)
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(model.energy(leaf).sum(), leaf)
    assert 0 < (grad.abs() > 1).double().mean() < 1
    moved = sgld_chain(x, model.energy, [step], generator=torch.Generator(), bounds=(-1.0, 1.0))
    close(moved, looped)

    outside = x + 2.5  # the equivalence ends outside the box
    looped = official_pyld(net[0], net[1:], outside, in_steps=in_steps, pyld_lr=pyld_lr)
    moved = sgld_chain(
        outside, model.energy, [step], generator=torch.Generator(), bounds=(-1.0, 1.0)
    )
    assert not torch.allclose(moved, looped)


# -- 15: warm-up ----------------------------------------------------------------------------------


def test_15_warm_up_is_linear_from_exactly_zero():
    """Point 15: lr * it / W while it <= W."""
    recipe = Recipe(learning_rate=0.2, warmup=0.25, schedule="constant")
    rates = [learning_rate(recipe, i, 20) for i in range(20)]
    assert rates[0] == 0.0
    assert rates == pytest.approx([0.2 * i / 5 for i in range(6)] + [0.2] * 14)


def test_15_no_warm_up_divides_by_nothing():
    """Point 15: W = 0, also where a share of a short run rounds to it."""
    for warmup, total in ((0.0, 20), (0.01, 20)):
        recipe = Recipe(learning_rate=0.2, warmup=warmup, schedule="constant")
        assert [learning_rate(recipe, i, total) for i in range(3)] == [0.2, 0.2, 0.2]


def test_15_the_step_schedule_decays_at_epochs_160_and_180_of_200():
    total, per_epoch = 200 * 703, 703
    recipe = RECIPES["jem"]
    rates = [learning_rate(recipe, e * per_epoch + d, total) for e in (160, 180) for d in (-1, 0)]
    assert rates == pytest.approx([1e-4, 3e-5, 3e-5, 9e-6], rel=1e-12)
    assert learning_rate(recipe, 492, total) == pytest.approx(0.5e-4)  # W = 984


def test_15_the_first_update_changes_nothing_but_the_chains():
    """Point 15; and point 4: training leaves the model ready to be scored."""
    recipe = replace(RECIPES["jem"], epochs=4, batch_size=8, num_chains=8, num_steps=2, warmup=0.5)
    net = small_net()
    first = [p.detach().clone() for p in net.parameters()]
    trainer = RecordingTrainer(jem.JEM(net), recipe, device="cpu")
    trainer.fit(images(16))
    _, outcome, parameters = trainer.steps[0]
    for before, after in zip(first, parameters, strict=True):
        assert torch.equal(before, after)
    assert not torch.equal(first[0], trainer.steps[1][2][0])
    assert not torch.equal(outcome.proposed.x, outcome.proposed.draw.x)
    assert not any(module.training for module in trainer.model.modules())


# -- 16, 17: batch norm ---------------------------------------------------------------------------


@pytest.mark.parametrize("streams", ["shared", "separate"])
@pytest.mark.parametrize("step", GENERATIVE)
def test_16_chains_never_enter_running_statistics(step, streams):
    """Points 16 and 17: in JEM++ they do; ours are 100 away and leave no trace."""
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4, momentum=0.9), nn.SiLU(), nn.Flatten(),
        nn.Linear(64, NUM_CLASSES),
    )  # fmt: skip
    negatives = make_negatives()
    negatives.buffer.chains += 100
    x, y = images(6)
    x_data = x if streams == "shared" else images(6, seed=9)[0]
    twin = copy.deepcopy(net)
    one_step(step, jem.JEM(net), Batch(x, y, x_data), negatives, num_steps=3)
    if streams == "shared":
        batches = [x]
    elif step == "classic":
        batches = [x, x_data]
    else:  # the fused step sees both streams as one batch
        batches = [torch.cat([x, x_data])]
    for batch in batches:
        twin(batch)
    close(net[1].running_mean, twin[1].running_mean)
    close(net[1].running_var, twin[1].running_var)
    assert net[1].num_batches_tracked == len(batches)
    # momentum 0.9: the last batch weighs nine tenths.
    features = twin[0](batches[-1]).transpose(0, 1).flatten(1)
    if len(batches) == 1:
        close(net[1].running_mean, 0.9 * features.mean(1).detach())


# -- 19: divergence -------------------------------------------------------------------------------


BAD = [float("nan"), float("inf"), -float("inf")]


@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("bad", BAD)
def test_19_the_norm_of_the_gradient_shows_one_bad_component(bad, max_norm):
    layer = nn.Linear(3, 2)
    layer.weight.grad = torch.ones(2, 3)
    layer.weight.grad[1, 1] = bad
    assert not bool(clip_gradients(layer, max_norm).isfinite())


def test_19_clipping_returns_the_norm_before_it_and_scales_to_the_limit():
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
def test_19_a_nan_ends_in_an_error_and_never_in_the_parameters(step):
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


# -- 20, 23, 25: scores, noise, scales ------------------------------------------------------------


def test_20_scores_are_higher_for_what_the_model_finds_likely():
    """Point 20: f(x), the largest probability, -|grad f|; 4: in evaluation mode always."""
    net = nn.Sequential(*small_net(), nn.Dropout(0.5))
    model = jem.JEM(net).train()
    x, _ = images(5)
    net.eval()
    f = official_f(net, x)
    py = net(x).softmax(1).max(1).values
    mass = []
    for row in x:
        leaf = row[None].clone().requires_grad_()
        (g,) = torch.autograd.grad(official_f(net, leaf).sum(), leaf)
        mass.append(-g.norm())
    net.train()
    close(jem.OODDetector(model).score(x), f.detach())
    close(jem.OODDetector(model, "max_probability").score(x), py.detach())
    close(jem.OODDetector(model, "approximate_mass").score(x), torch.stack(mass))
    assert net[-1].training


def test_23_input_noise_is_added_to_both_streams_in_training_and_nowhere_else():
    """Point 23: the official loaders add it to validation and test inputs too; ours do not."""
    x, y = images(64)
    recipe = replace(RECIPES["jem"], epochs=1, batch_size=32, num_steps=1, num_chains=8)
    trainer = RecordingTrainer(jem.JEM(small_net()), recipe, device="cpu")
    trainer.fit((x, y))
    streams = {"x": [], "x_data": []}
    for batch, _, _ in trainer.steps:
        for name, found in streams.items():
            rows = getattr(batch, name)
            distances = torch.cdist(rows.flatten(1), x.flatten(1))
            nearest = distances.argmin(1)
            found.append((rows - x[nearest]).flatten())
            if name == "x":
                assert torch.equal(y[nearest], batch.labels)
        assert not torch.equal(batch.x, batch.x_data)  # two independent shuffles
    for found in streams.values():
        noise = torch.cat(found)
        assert noise.std().item() == pytest.approx(0.03, rel=0.1)
        assert abs(noise.mean().item()) < 0.005
    clean = nn.functional.cross_entropy(trainer.model(x), y)
    valid = torch.utils.data.TensorDataset(x, y)
    metrics = validate(trainer.model, valid, 16)
    assert metrics["valid_nll"] == pytest.approx(clean.item(), rel=1e-12)


def test_25_step_sizes_belong_to_a_scale_of_the_inputs():
    """Point 25: on [0, 1] the moves of [-1, 1] take a quarter of the step size, half the noise."""
    net = small_net()
    x = torch.rand(4, *SHAPE) * 2 - 1

    def run(start, energy, step_size, noise_std):
        generator = torch.Generator().manual_seed(4)
        return sgld_chain(
            start, energy, [LangevinStep(step_size, noise_std)] * 5, generator=generator
        )

    def energy(x):
        return -official_f(net, x)

    wide = run(x, energy, 1.0, 0.01)
    unit = run((x + 1) / 2, lambda z: energy(2 * z - 1), 0.25, 0.005)
    close(unit, (wide + 1) / 2)
    same_settings = run((x + 1) / 2, lambda z: energy(2 * z - 1), 1.0, 0.01)
    assert not torch.allclose(same_settings, (wide + 1) / 2, atol=1e-3)


def test_25_images_keep_the_domain_of_the_jem_family():
    """Point 25: chains of images begin on all of [-1, 1], however little of it the data fill."""
    low, high = domain_of(images(20)[0] * 0.5)
    assert (low.item(), high.item()) == (-1.0, 1.0)
