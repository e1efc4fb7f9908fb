"""Each kind of update against a reference that fuses nothing, in float64.

The reference moves every chain with its own `torch.autograd.grad` of the energy, normalises every
row with statistics of the data by hand, and writes the loss out.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
from contexts import KINDS, _float64, context_of  # noqa: F401  a fixture
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from jem import networks
from jem.model import JEM
from jem.sampling import ReplayBuffer, UniformBase
from jem.sampling.buffer import PersistentChains
from jem.sampling.langevin import LangevinStep
from jem.training.recipe import Recipe
from jem.training.update import Batch, compute_update, forward_all, input_gradient

SHAPE, NUM_CLASSES = (2, 4, 4), 3
GLOBAL_SEED = 123  # of the global generator, from which dropout draws its masks


class LooksAtMode(nn.Module):
    """Your own module, which does something else in training."""

    def forward(self, x):
        return 1.3 * x if self.training else x


def convolutional(*extra, num_classes=NUM_CLASSES, head="joint"):
    body = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), *extra, nn.SiLU(), nn.Conv2d(4, 4, 3, padding=1), nn.Tanh(),
        nn.Flatten(),
    )  # fmt: skip
    return networks.Network(body, networks.HEADS[head](64, num_classes), {})


NETWORKS = {
    "plain": convolutional,
    "group norm": lambda **k: convolutional(nn.GroupNorm(2, 4), **k),
    "batch norm": lambda **k: convolutional(nn.BatchNorm2d(4), **k),
    "dropout": lambda **k: convolutional(nn.Dropout(0.4), **k),
    "both": lambda **k: convolutional(nn.BatchNorm2d(4), nn.Dropout2d(0.4), **k),
    "own": lambda **k: convolutional(LooksAtMode(), **k),
    "factored": lambda **k: convolutional(**({"head": "factored"} | k)),
}


def inputs(count, seed):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed)) * 0.5


def make_batch(streams="shared", count=6, other=5, num_classes=NUM_CLASSES):
    x = inputs(count, 21)
    labels = torch.arange(count) % num_classes
    return Batch(x, labels, x if streams == "shared" else inputs(other, 22))


def make_negatives(recipe, seed=31):
    generator = torch.Generator().manual_seed(seed)
    init = UniformBase(-1.0, 1.0, SHAPE)
    buffer = ReplayBuffer.from_init(init, recipe.buffer_size, generator=generator)
    step = LangevinStep(recipe.step_size, recipe.noise_std, recipe.langevin_grad_clamp)
    return PersistentChains(
        buffer, init, recipe.num_chains, recipe.reinit_prob, recipe.replacement,
        step,
        (-1.0, 1.0) if recipe.clip_to_domain else None, generator,
    )  # fmt: skip


def make_recipe(step="fused", **changes):
    small = {"num_chains": 7, "buffer_size": 9, "noise_std": 0.05, "reinit_prob": 0.3}
    small |= {"num_steps": 2}
    small |= {
        "density_weight": 1.0,
        "energy_l2": 0.0,
        "clip_to_domain": False,
        "step_size": 2.0,
    }
    return Recipe(**KINDS[step], **({"label_smoothing": 0.0} | small | changes))


# -- the reference --------------------------------------------------------------------------------


def energy_by_hand(logits):
    return -logits.exp().sum(1).log()


def move_by_hand(x, grad, negatives, generator):
    step = negatives.step
    if step.grad_clamp is not None:
        grad = torch.minimum(grad, torch.tensor(step.grad_clamp))
        grad = torch.maximum(grad, torch.tensor(-step.grad_clamp))
    x = x - step.step_size * grad
    if step.noise_std:
        x = x + step.noise_std * torch.randn(x.shape, generator=generator)
    return x if negatives.bounds is None else x.clamp(*negatives.bounds)


def energy_gradient(network, x):
    """Energies and their gradients, each row in a forward of its own, in evaluation mode."""
    modes = [module.training for module in network.modules()]
    network.eval()
    grads, energies = [], []
    for row in x:
        leaf = row[None].clone().requires_grad_()
        energy = energy_by_hand(network(leaf))
        grads.append(torch.autograd.grad(energy.sum(), leaf)[0])
        energies.append(energy.detach())
    for module, mode in zip(network.modules(), modes, strict=True):
        module.training = mode
    return torch.cat(energies), torch.cat(grads)


class NormByHand(nn.Module):
    """Batch normalisation of all rows with the statistics of the first ones, written out."""

    def __init__(self, norm, count):
        super().__init__()
        self.norm, self.count = norm, count

    def forward(self, x):
        data = x[: self.count].transpose(0, 1).flatten(1)
        mean, variance = data.mean(1), data.var(1, correction=0)
        norm, size = self.norm, data.shape[1]
        for running, now in (
            (norm.running_mean, mean), (norm.running_var, variance * size / (size - 1)),
        ):  # fmt: skip
            running.copy_(0.9 * running + 0.1 * now.detach())
        norm.num_batches_tracked += 1
        of_channels = (1, -1, 1, 1)
        x = (x - mean.view(of_channels)) / (variance.view(of_channels) + norm.eps) ** 0.5
        return x * norm.weight.view(of_channels) + norm.bias.view(of_channels)


def logits_by_hand(network, x, count):
    """Logits with every layer of batch normalisation in training replaced meanwhile."""
    norms = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d) and module.training
    }
    for name, norm in norms.items():
        network.set_submodule(name, NormByHand(norm, count))
    logits = network(x)
    for name, norm in norms.items():
        network.set_submodule(name, norm)
    return logits


def cross_entropy_by_hand(logits, labels, method):
    if logits.shape[1] == 1:
        return torch.tensor(0.0)
    log_p = logits.log_softmax(1)
    gradient_blur, classes = method.recipe.label_smoothing, logits.shape[1]
    target = F.one_hot(labels, classes) * (1 - gradient_blur) + gradient_blur / classes
    weights = (
        torch.ones(classes)
        if method.cross_entropy.class_weight is None
        else method.cross_entropy.class_weight
    )
    return -(target * weights * log_p).sum() / weights[labels].sum()


def contrast_by_hand(energy_data, energy_negative, recipe, weight, energy_outliers=None):
    gap = (energy_negative.mean() - energy_data.mean()).item()
    tau = 1.0
    if recipe.gap_limit is not None:
        tau = min(1.0, max(0.02, 1 - gap / recipe.gap_limit))
    loss = weight * tau * (energy_data.mean() - energy_negative.mean())
    loss = loss + recipe.energy_l2 / 2 * ((energy_data**2).mean() + (energy_negative**2).mean())
    loss = loss + recipe.mean_energy_l2 * ((energy_data.mean() + energy_negative.mean()) / 2) ** 2
    if energy_outliers is not None:
        over = recipe.outlier_margin + energy_data.mean() - energy_outliers
        loss = loss + weight * recipe.outlier_weight * (1 + over.exp()).log().mean()
    return loss


def reference_step(model, batch, method, weight, extra_steps, *, fused):
    """Nothing fused: moves one by one; the loss sees chains before the last move if `fused`.

    That last move is in the mode that the loss sees the chains in. It has no gradient where the
    loss does not see the chains.
    """
    network, negatives, recipe = model.network, method.chains, method.recipe
    draw = negatives.draw()
    scored = draw.x
    for _ in range(recipe.num_steps + extra_steps - fused):
        _, grad = energy_gradient(network, scored)
        scored = move_by_hand(scored, grad, negatives, negatives.generator)

    data = batch.x if batch.x_density is batch.x else torch.cat([batch.x, batch.x_density])
    parts = [data, scored] + ([] if batch.outliers is None else [batch.outliers])
    parts[1] = leaf = scored.clone().requires_grad_()
    logits = logits_by_hand(network, torch.cat(parts), len(data))
    outputs = logits.split([len(part) for part in parts])
    logits, logits_data = outputs[0][: len(batch.x)], outputs[0][-len(batch.x_density) :]
    energy_negative = energy_by_hand(outputs[1])
    energy_outliers = energy_by_hand(outputs[2]) if len(parts) > 2 else None
    end = scored
    if fused:
        (grad,) = torch.autograd.grad(energy_negative.sum(), leaf, retain_graph=True)
        if not (weight or recipe.energy_l2 or recipe.mean_energy_l2):
            grad = torch.zeros_like(grad)
        end = move_by_hand(scored, grad, negatives, negatives.generator)
    energy_data = energy_by_hand(logits_data)
    cross_entropy = cross_entropy_by_hand(logits, batch.labels, method)
    loss = cross_entropy + contrast_by_hand(
        energy_data, energy_negative, recipe, weight, energy_outliers
    )
    trained = [p for p in network.parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, trained, allow_unused=True)
    return SimpleNamespace(
        loss=loss, cross_entropy=cross_entropy, logits=logits, energy_data=energy_data,
        energy_negative=energy_negative, x=end, draw=draw, grads=grads,
        buffers=dict(network.named_buffers()),
    )  # fmt: skip


def close(a, b, rtol=1e-10, atol=1e-13):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def check_step(
    recipe,
    network,
    batch,
    *,
    weight=1.0,
    extra_steps=0,
    class_weight=None,
):
    """Run a step and its reference on equal networks, chains and generators; compare all."""
    twin = copy.deepcopy(network)
    model = JEM(network)
    method, other = (context_of(recipe, make_negatives(recipe), class_weight) for _ in range(2))
    modes = [m.training for m in network.modules()]
    flags = [p.requires_grad for p in network.parameters()]
    chains = method.chains.buffer.chains.clone()

    torch.manual_seed(GLOBAL_SEED)
    ours = compute_update(model, batch, method, weight, extra_steps)
    consumed = torch.get_rng_state()
    torch.manual_seed(GLOBAL_SEED)
    theirs = reference_step(JEM(twin), batch, other, weight, extra_steps, fused=recipe.fused)

    assert torch.equal(torch.get_rng_state(), consumed)  # dropout drew the same masks, once
    close(ours.loss.detach(), theirs.loss.detach())
    close(ours.cross_entropy.detach(), theirs.cross_entropy.detach())
    close(ours.logits.detach(), theirs.logits.detach())
    close(ours.energies.data.detach(), theirs.energy_data.detach())
    close(ours.energies.chains.detach(), theirs.energy_negative.detach())
    trained = [p for p in network.parameters() if p.requires_grad]
    for parameter, grad in zip(trained, theirs.grads, strict=True):
        close(parameter.grad, torch.zeros_like(parameter) if grad is None else grad)
    for name, buffer in network.named_buffers():
        close(buffer, theirs.buffers[name])
    assert torch.equal(ours.proposed.draw.indices, theirs.draw.indices)
    close(ours.proposed.x, theirs.x)
    assert ours.proposed.num_steps == recipe.num_steps + extra_steps
    assert not ours.proposed.x.requires_grad
    generators = (m.chains.generator.get_state() for m in (method, other))
    assert torch.equal(*generators)
    assert [m.training for m in network.modules()] == modes
    assert [p.requires_grad for p in network.parameters()] == flags
    assert batch.x.grad is None
    assert batch.x_density.grad is None
    assert torch.equal(method.chains.buffer.chains, chains)  # a proposal: nothing is committed
    assert method.chains.buffer.chains.grad is None
    return ours


# -- the fused and the classic step against it ----------------------------------------------------

BOTH = pytest.mark.parametrize("step", ["fused", "classic"])
ANY_NETWORK = pytest.mark.parametrize("kind", list(NETWORKS))


@BOTH
@pytest.mark.parametrize("kind", ["plain", "batch norm"])
@pytest.mark.parametrize("streams", ["shared", "separate"])
def test_outliers_enter_the_loss_and_leave_chains_alone(step, kind, streams):
    recipe = make_recipe(step, outlier_margin=0.5)
    batch, network = make_batch(streams), NETWORKS[kind]()
    without = check_step(recipe, copy.deepcopy(network), batch, weight=0.4)
    with_them = check_step(recipe, network, batch._replace(outliers=inputs(3, 23)), weight=0.4)
    assert with_them.loss > without.loss
    assert with_them.terms.named["outlier"] > 0
    close(with_them.terms.gap, without.terms.gap)
    close(with_them.proposed.x, without.proposed.x)


@BOTH
@ANY_NETWORK
@pytest.mark.parametrize("streams", ["shared", "separate"])
def test_steps_equal_the_reference_for_every_kind_of_network(step, kind, streams):
    recipe = make_recipe(step, energy_l2=0.05)
    check_step(recipe, NETWORKS[kind](), make_batch(streams), weight=0.7)


@BOTH
def test_steps_weigh_classes_and_smooth_labels(step):
    recipe = make_recipe(step, label_smoothing=0.2)
    weights = torch.tensor([0.5, 2.0, 1.0])
    check_step(recipe, NETWORKS["plain"](), make_batch(count=7), class_weight=weights)


@BOTH
@pytest.mark.parametrize("frozen", [True, False])
def test_the_mode_of_every_submodule_comes_back(step, frozen):
    """A batch norm that you froze stays frozen, and its statistics stay."""
    network = NETWORKS["both"]()
    norm = network.body[1]
    norm.training = not frozen
    check_step(make_recipe(step), network, make_batch())
    assert norm.training is not frozen
    assert norm.num_batches_tracked == (0 if frozen else 1)


FLAGS = st.fixed_dictionaries(
    {
        "step": st.sampled_from(["fused", "classic"]),
        "num_steps": st.integers(1, 3),
        "num_chains": st.integers(1, 8),
        "step_size": st.floats(0.1, 5.0),
        "noise_std": st.sampled_from([0.0, 0.1]),
        "langevin_grad_clamp": st.sampled_from([None, 0.05]),
        "clip_to_domain": st.booleans(),
        "replacement": st.booleans(),
        "reinit_prob": st.sampled_from([0.0, 0.5, 1.0]),
        "energy_l2": st.sampled_from([0.0, 0.03, 1.0]),
        "mean_energy_l2": st.sampled_from([0.0, 0.5]),
        "gap_limit": st.sampled_from([None, 1e-9, 0.1, 10.0]),
        "label_smoothing": st.sampled_from([0.0, 0.1]),
    }
)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    flags=FLAGS,
    kind=st.sampled_from(sorted(NETWORKS)),
    streams=st.sampled_from(["shared", "separate"]),
    num_classes=st.sampled_from([1, 3]),
    weight=st.sampled_from([0.0, 0.3, 1.0]),
    extra=st.integers(0, 1),
)
def test_any_recipe_equals_the_reference(flags, kind, streams, num_classes, weight, extra):
    torch.manual_seed(0)
    check_step(
        make_recipe(**flags), NETWORKS[kind](num_classes=num_classes),
        make_batch(streams, num_classes=num_classes), weight=weight, extra_steps=extra,
    )  # fmt: skip


# -- cotangents: zero, negative, mixed ------------------------------------------------------------


def test_input_gradient_divides_by_the_cotangent_or_by_a_floor():
    """Whatever its sign and size; a row that the loss does not see gets 0, never NaN."""
    grad = torch.randn(8, 3)
    cotangent = torch.tensor([1.0, -1.0, 2.5, -1e-8, -1e-25, 0.0, 1e-31, -1e-31])
    x = torch.randn(8, 3).requires_grad_()
    energy = (x * grad).sum(1)
    energy.retain_grad()
    (energy * cotangent).sum().backward()
    scale = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.1, 0.1])
    close(input_gradient(x, energy), grad * scale[:, None])


# -- one forward or two ---------------------------------------------------------------------------


class NormAndActivation(nn.BatchNorm2d):
    """A layer of your own that does more than normalise, as those of timm do."""

    def forward(self, x):
        return super().forward(x).sigmoid()


class RowsAsSeveral(nn.Module):
    """Splits each row in two for a layer of batch normalisation, which is used twice."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x):
        return self.norm(self.norm(x.reshape(-1, 16))).sigmoid().reshape(-1, 32)


SEEN_BY_DATA = {
    "batch norm": lambda: nn.BatchNorm2d(2),
    "own": lambda: NormAndActivation(2),
    "not affine": lambda: nn.BatchNorm2d(2, affine=False),
    "average over all": lambda: nn.BatchNorm2d(2, momentum=None),
    "rows": RowsAsSeveral,
}


@pytest.mark.parametrize("make", SEEN_BY_DATA.values(), ids=SEEN_BY_DATA)
def test_chains_are_normalised_with_the_statistics_of_the_data(make):
    """A chain that is a copy of a data row gets its logits; data and statistics see no chain."""
    network = nn.Sequential(make(), nn.Flatten(), nn.Linear(32, 3))
    alone, batch = copy.deepcopy(network), make_batch()
    far = torch.cat([batch.x[:2], 100 * inputs(3, 1)])
    logits, energies = forward_all(JEM(network), batch, far)
    close(logits, alone(batch.x))
    close(energies.chains[:2], energies.data[:2])
    for ours, theirs in zip(network.buffers(), alone.buffers(), strict=True):
        close(ours, theirs)
    energies.chains.sum().backward()  # the statistics have a gradient, and it is not torn
    assert all(p.grad is not None for p in network.parameters())


# -- plain and classic, by hand -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["batch norm", "dropout"])
def test_plain_step_is_a_usual_training_step(kind):
    network = NETWORKS[kind]()
    twin = copy.deepcopy(network)
    batch = make_batch()
    torch.manual_seed(GLOBAL_SEED)
    outcome = compute_update(JEM(network), batch, context_of(make_recipe("plain")), 123.0, 4)
    assert outcome.energies.chains is outcome.proposed is None
    torch.manual_seed(GLOBAL_SEED)
    F.cross_entropy(twin(batch.x), batch.labels).backward()
    for ours, theirs in zip(network.parameters(), twin.parameters(), strict=True):
        close(ours.grad, theirs.grad)
    for ours, theirs in zip(network.buffers(), twin.buffers(), strict=True):
        close(ours, theirs)


# -- factored heads, and from one iteration to the next ------------------------------------------


@BOTH
def test_chains_follow_from_one_iteration_to_the_next(step):
    """Three iterations with commits and updates of the parameters stay on the reference."""
    network = NETWORKS["plain"]()
    twin = copy.deepcopy(network)
    recipe = make_recipe(step, num_steps=2, energy_l2=0.03)
    ours, theirs = (context_of(recipe, make_negatives(recipe)) for _ in range(2))
    batch = make_batch()
    for _ in range(3):
        network.zero_grad()
        outcome = compute_update(JEM(network), batch, ours, 1.0, 0)
        ours.chains.buffer.commit(outcome.proposed.draw, outcome.proposed.x, steps=2)
        expected = reference_step(JEM(twin), batch, theirs, 1.0, 0, fused=step == "fused")
        theirs.chains.buffer.commit(expected.draw, expected.x, steps=2)
        with torch.no_grad():
            for p in network.parameters():
                p -= 0.1 * p.grad
            for p, grad in zip(twin.parameters(), expected.grads, strict=True):
                p -= 0.1 * grad
    close(ours.chains.buffer.chains, theirs.chains.buffer.chains)
    assert torch.equal(ours.chains.buffer.ages, theirs.chains.buffer.ages)
    for p, q in zip(network.parameters(), twin.parameters(), strict=True):
        close(p, q)
