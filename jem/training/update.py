"""The method: one update, from a batch to the gradients of the parameters and the next chains.

`compute_update` fills the parameters' gradients and proposes where the chains go. The trainer
checks both before anything changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from jem.attacks import n_fgsm
from jem.model import JEM, energy_of, evaluation_mode
from jem.networks.foreign import logits_of
from jem.objectives import Batch, CrossEntropy, Energies, NoObjective, Objective, Terms
from jem.sampling.buffer import Draw, PersistentChains
from jem.sampling.langevin import per_row
from jem.training.process import Processes
from jem.training.recipe import ResolvedRecipe


@dataclass(frozen=True)
class UpdateContext:
    """What stays the same from update to update.

    Attributes:
        recipe: The recipe.
        objective: What trains the density.
        cross_entropy: What trains the classifier.
        generator: Source of the randomness of objective and outliers.
        chains: The chains; None for an objective that needs none.
        ranks: The processes of the run.
    """

    recipe: ResolvedRecipe
    objective: Objective
    cross_entropy: CrossEntropy
    generator: torch.Generator
    chains: PersistentChains | None = None
    ranks: Processes = field(default_factory=Processes)

    @property
    def trains_density(self) -> bool:
        """Whether anything trains the density; the recipe may name another objective."""
        return not isinstance(self.objective, NoObjective)

    @cached_property
    def fused(self) -> bool:
        """Whether one backward pass trains the network and moves the chains."""
        return self.recipe.fused and self.objective.needs == {"chains"}


class ProposedChains(NamedTuple):
    """Chains after their Langevin steps: proposals, until the trainer commits them."""

    draw: Draw
    x: Tensor  # (M, *shape) new positions
    num_steps: int  # Langevin steps made
    scored: Tensor  # (M, *shape) positions that the loss saw


class UpdateResult(NamedTuple):
    """What was computed for an update. The parameters' gradients are in their `.grad`."""

    loss: Tensor  # what was differentiated: the cross-entropy and the loss of the objective
    cross_entropy: Tensor
    terms: Terms  # of the objective
    logits: Tensor  # (B, K) of the classifier's batch
    energies: Energies
    proposed: ProposedChains | None = None


def compute_update(
    model: JEM, batch: Batch, context: UpdateContext, weight: float, extra_steps: int = 0
) -> UpdateResult:
    r"""Move the chains, score data and chains, and differentiate the loss.

    In separate passes (algorithm 1 of JEM), chains make K Langevin steps, and the loss is computed
    where they end. Fused, the last of these steps is free. The loss sees chain i only through its
    energy e_i, so after the backward pass

    .. math:: \nabla_x E(\tilde x_i) = \frac{\partial L / \partial \tilde x_i}{\partial L /
    \partial e_i}

    K - 1 steps are made as usual; the chains that they end in are scored, and make one more step
    with this gradient.

    Args:
        model: The model, in training mode. Chains move in evaluation mode, and are scored in the
            mode that data are scored in.
        batch: The data; inputs of the classifier and of the density may differ.
        context: The recipe, the objective and the chains.
        weight: Weight of the objective in this update.
        extra_steps: Langevin steps beyond the recipe's K.

    Returns:
        Losses, energies and the proposed chains.

    References:
        Grathwohl et al. (2020), arXiv:1912.03263, algorithm 1. Shafahi et al. (2019), "free"
        adversarial training, arXiv:1904.12843, carried to Langevin chains here.
    """
    chains, fused = context.chains, context.fused
    if chains is None:
        result = evaluate(model, batch, context, weight)
        result.loss.backward()
        return result

    draw = chains.draw()
    num_steps = context.recipe.num_steps + extra_steps
    with evaluation_mode(model):
        x_chains = chains.make_steps(draw.x, model.energy, num_steps - fused)
    if fused:  # a leaf, so that the backward pass leaves the gradient of the last step
        x_chains = x_chains.detach().requires_grad_()

    result = evaluate(model, batch, context, weight, x_chains)
    energy_chains = result.energies.chains
    assert energy_chains is not None, "there are chains"
    if fused:
        energy_chains.retain_grad()
    result.loss.backward()

    scored = x_chains.detach()
    x = chains.make_step(scored, input_gradient(x_chains, energy_chains)) if fused else scored
    return result._replace(proposed=ProposedChains(draw, x, num_steps, scored))


def evaluate(
    model: JEM,
    batch: Batch,
    context: UpdateContext,
    weight: float,
    x_chains: Tensor | None = None,
) -> UpdateResult:
    """Compute what is minimised: cross-entropy, and the objective of the density.

    With two towers that of the density learns the classes too, by a cross-entropy of its own.

    Args:
        model: The model, in training mode.
        batch: The data, and outliers where the recipe makes any.
        context: The recipe and the objective.
        weight: Weight of the objective.
        x_chains: Chains, shape (M, *shape), or None.

    Returns:
        Losses and energies, with their graph; no chain has moved.
    """
    mean = context.ranks.mean
    if attacks_inputs(model, context):
        batch = batch._replace(x=attacked(model, batch, context))
    logits, energies = forward_all(model.density_model, batch, x_chains)
    cross_entropy = context.cross_entropy(logits, batch.labels, mean=mean)
    terms = context.objective(
        model, batch, energies, weight=weight, generator=context.generator, mean=mean
    )
    loss = cross_entropy + terms.loss
    if model.density_model is not model:  # the tower of the classifier; both learn the classes
        classifier: Any = model.network.classifier
        logits = logits_of(classifier, batch.x)
        cross_entropy = context.cross_entropy(logits, batch.labels, mean=mean)
        loss = loss + cross_entropy
    return UpdateResult(loss, cross_entropy, terms, logits, energies)


def attacks_inputs(model: JEM, context: UpdateContext) -> bool:
    """Whether the classifier is trained on attacked inputs: not where there are no classes."""
    return bool(context.recipe.attack_eps) and len(model.classes or ()) > 1


def attacked(model: JEM, batch: Batch, context: UpdateContext) -> Tensor:
    """Inputs that the classifier learns from in place of its own, shape (B, *shape)."""
    with evaluation_mode(model):
        return n_fgsm(
            model.logits, batch.x, batch.labels, eps=context.recipe.attack_eps,
            bounds=model.bounds(), generator=context.generator,
        )  # fmt: skip


def sam_backward(
    model: JEM, batch: Batch, context: UpdateContext, weight: float, result: UpdateResult
) -> None:
    """Differentiate the loss of an update again, at the parameters as they are now.

    The second half of sharpness-aware minimisation: the same data, and the same chains where the
    loss saw them. Chains keep the steps that the first pass gave them.

    Args:
        model: The model, in training mode, within `jem.training.optimisation.sam_perturbation`.
        batch: The data of the update.
        context: The recipe and the objective.
        weight: Weight of the objective.
        result: What `compute_update` returned.
    """
    chains = None if result.proposed is None else result.proposed.scored
    evaluate(model, batch, context, weight, chains).loss.backward()


def forward_all(model: JEM, batch: Batch, x_chains: Tensor | None) -> tuple[Tensor, Energies]:
    """Logits of labelled data, and energies of the density's data, of chains and of outliers.

    One forward gives all, in the mode that the network is in, so that it cannot tell data from
    chains by the mode. Batch normalisation takes its statistics from the data and normalises every
    row with them: two kinds of data are one batch to it, chains and outliers enter no statistic.

    Args:
        model: The model.
        batch: The data, (B, *shape) and (B', *shape), and outliers where there are any.
        x_chains: Chains, shape (M, *shape), or None.

    Returns:
        Logits (B, K), and energies of all but the labelled data.
    """
    shared = batch.x_density is batch.x
    data = batch.x if shared else torch.cat([batch.x, batch.x_density])
    unlikely = [part for part in (x_chains, batch.outliers) if part is not None]
    rows = torch.cat([data, *unlikely]) if unlikely else data
    with statistics_of_data(model, len(data), len(rows)):
        all_logits = model.logits(rows)
    seen, *others = all_logits.split([len(data), *map(len, unlikely)])
    logits = seen[: len(batch.x)]
    energies = Energies(
        data=energy_of(logits if shared else seen[len(batch.x) :]),
        chains=None if x_chains is None else energy_of(others[0]),
        outliers=None if batch.outliers is None else energy_of(others[-1]),
    )
    if model.base is not None:
        with torch.no_grad():
            energies = energies._replace(base_data=model.base.tempered_log_q(batch.x_density))
            if x_chains is not None:
                energies = energies._replace(base_chains=model.base.tempered_log_q(x_chains))
    return logits, energies


@contextmanager
def statistics_of_data(model: nn.Module, count: int, total: int) -> Iterator[None]:
    """Let batch normalisation in training mode take its statistics from the first rows alone.

    Inside, every row is normalised with these, and running statistics follow them. So the logits
    of data do not depend on the rows that come after them, nor do these depend on each other.

    Args:
        model: Holds the layers; classes derived from those of torch count too.
        count: Rows of data, which come first.
        total: All rows.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    norms = norms if count < total else []
    for norm in norms:
        norm.forward = partial(_normalise, norm, norm.forward, count, total)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _normalise(
    norm: Any,  # noqa: ANN401
    forward: Callable[[Tensor], Tensor],
    count: int,
    total: int,
    x: Tensor,
) -> Tensor:
    """Normalise what a layer of batch normalisation is given; see `statistics_of_data`.

    The layer itself does both parts, as it may do more than normalise. The rest goes through it in
    evaluation mode, already normalised, with a mean of 0 and a variance of 1 in place of the
    running ones.
    """
    data, rest = x.tensor_split([len(x) * count // total])  # a layer may see a row as several
    axes = [0, *range(2, x.ndim)]
    precise = data.to(norm.running_mean.dtype)
    variance, mean = torch.var_mean(precise, axes, correction=0, keepdim=True)
    # 1 + eps, as evaluation mode will divide by the root of it
    normalised = (rest - mean) * ((1 + norm.eps) / (variance + norm.eps)).sqrt()
    out = forward(data)
    running = norm.running_mean, norm.running_var
    norm.running_mean, norm.running_var = map(torch.zeros_like, running)
    norm.running_var += 1
    norm.training = False
    try:
        return torch.cat([out, forward(normalised.to(x.dtype))])
    finally:
        norm.training = True
        norm.running_mean, norm.running_var = running


def input_gradient(x: Tensor, energy: Tensor, floor: float = 1e-30) -> Tensor:
    """Gradient of each row's energy with respect to that row, read off a finished backward pass.

    Args:
        x: Leaf of the backward pass, shape (M, *shape), with `.grad`.
        energy: Energies computed from it row by row, shape (M,), with `.grad` retained.
        floor: Least magnitude divided by. A row whose energy the loss does not see has cotangent 0
            and so x.grad 0: it gets gradient 0, never NaN.

    Returns:
        dE/dx, shape of `x`.
    """
    if x.grad is None or energy.grad is None:
        raise RuntimeError("`x` and `energy` hold no gradients: call `backward` first")
    cotangent = energy.grad
    sign = torch.where(cotangent < 0, -1.0, 1.0).to(cotangent)
    return x.grad / per_row(sign * cotangent.abs().clamp_min(floor), x)
