"""One training step of each kind: the whole method, from a batch to gradients and moved chains.

A step fills the parameters' gradients and proposes where the chains go; the trainer checks both
before anything changes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jem import networks
from jem.model import JEM, evaluation_mode, joint_energy
from jem.sampling.buffer import PersistentChains
from jem.sampling.langevin import per_row
from jem.training.method import Batch, Forward, Logits, ProposedChains, StepContext, StepResult
from jem.training.recipe import Recipe


def plain_step(
    model: JEM, batch: Batch, method: StepContext, weight: float, extra_steps: int
) -> StepResult:
    """Cross-entropy alone: the control.

    Args:
        model: The model, in training mode.
        batch: The data.
        method: The recipe.
        weight: Not looked at.
        extra_steps: Not looked at.

    Returns:
        The loss and the logits.
    """
    method.clock.enter("update")
    outcome = objective(model, batch, method, weight)
    outcome.loss.backward()
    return outcome


def classic_step(
    model: JEM, batch: Batch, method: StepContext, weight: float, extra_steps: int
) -> StepResult:
    """JEM step by step: move the chains K times, then score data, chains and labelled data.

    Args:
        model: The model, in training mode. Chains move and are scored in evaluation mode.
        batch: The data; the streams may differ.
        method: The recipe and its chains.
        weight: Weight w of the contrast in this iteration.
        extra_steps: Langevin moves beyond the recipe's K.

    Returns:
        Losses, energies and the moved chains.

    References:
        Grathwohl et al. (2020), arXiv:1912.03263, algorithm 1.
    """
    method.clock.enter("chains")
    negatives = _required(method)
    draw = negatives.draw()
    num_steps = method.num_steps + extra_steps
    with evaluation_mode(model):
        x_negative = negatives.run(draw.x, lambda x: model.energy(x, draw.labels), num_steps)

    method.clock.enter("update")
    outcome = objective(model, batch, method, weight, x_negative, draw.labels)
    outcome.loss.backward()
    return outcome._replace(moved=ProposedChains(draw, x_negative, num_steps, x_negative))


def fused_step(
    model: JEM, batch: Batch, method: StepContext, weight: float, extra_steps: int
) -> StepResult:
    r"""Train and move the chains with one backward pass: the last Langevin move is free.

    The loss sees chain i only through its energy e_i, so after the backward pass

    .. math:: \nabla_x E(\tilde x_i) = \frac{\partial L / \partial \tilde x_i}{\partial L /
    \partial e_i}

    K - 1 moves are made as usual; the chains that they end in are scored, and move once more with
    this gradient.

    Args:
        model: The model, in training mode. Chains move and are scored in evaluation mode.
        batch: The data; the streams may differ.
        method: The recipe and its chains.
        weight: Weight w of the contrast in this iteration.
        extra_steps: Langevin moves beyond the recipe's K.

    Returns:
        Losses, energies and the moved chains.

    References:
        Shafahi et al. (2019), "free" adversarial training, arXiv:1904.12843, carried to Langevin
        chains.
    """
    method.clock.enter("chains")
    negatives = _required(method)
    draw = negatives.draw()
    num_steps = method.num_steps + extra_steps
    with evaluation_mode(model):
        x_negative = negatives.run(draw.x, lambda x: model.energy(x, draw.labels), num_steps - 1)
    x_negative = x_negative.detach().requires_grad_()

    method.clock.enter("update")
    outcome = objective(model, batch, method, weight, x_negative, draw.labels)
    energy_negative = outcome.energy_negative
    assert energy_negative is not None, "there are chains"
    energy_negative.retain_grad()
    outcome.loss.backward()

    grad = input_gradient(x_negative, energy_negative)
    moved = ProposedChains(
        draw, negatives.update(x_negative, grad), num_steps, x_negative.detach()
    )
    return outcome._replace(moved=moved)


STEPS = {"plain": plain_step, "classic": classic_step, "fused": fused_step}


def step_of(recipe: Recipe) -> str:
    """Kind of step of a recipe, a key of `STEPS`."""
    if not recipe.generative:
        return "plain"
    return "fused" if recipe.fused else "classic"


def objective(
    model: JEM,
    batch: Batch,
    method: StepContext,
    weight: float,
    x_negative: Tensor | None = None,
    labels_negative: Tensor | None = None,
) -> StepResult:
    """What is minimised: cross-entropy, and the contrast of data and chains where there are any.

    Args:
        model: The model, in training mode.
        batch: The data, and outliers where the recipe makes any.
        method: The recipe.
        weight: Weight w of the contrast.
        x_negative: Chains, shape (M, *shape), or None.
        labels_negative: Class of each chain, shape (M,), or None for marginal ones.

    Returns:
        Losses and energies; no chain has moved.
    """
    forward = method.forward or forward_of(method.recipe)
    unlikely = [part for part in (x_negative, batch.outliers) if part is not None]
    logits, logits_data, logits_unlikely = forward(
        model, batch, torch.cat(unlikely) if unlikely else None
    )
    classification = method.classification_loss(logits, batch.labels)
    if logits_unlikely is None or x_negative is None:
        return StepResult(classification, classification, logits)
    energy_data = joint_energy(logits_data)
    energy_negative = joint_energy(logits_unlikely[: len(x_negative)], labels_negative)
    energy_outlier = None
    if batch.outliers is not None:
        energy_outlier = joint_energy(logits_unlikely[len(x_negative) :])
    terms = method.contrast(energy_data, energy_negative, weight, energy_outlier)
    loss = classification + terms.loss
    return StepResult(loss, classification, logits, energy_data, energy_negative, terms)


def sam_backward(
    model: JEM, batch: Batch, method: StepContext, weight: float, outcome: StepResult
) -> None:
    """Differentiate the objective of a step again, at the parameters as they are now.

    The second half of sharpness-aware minimisation: same data, same chains, where the loss saw
    them; chains keep the moves that the first pass gave them.

    Args:
        model: The model, in training mode, within `jem.training.optimisation.uphill`.
        batch: The data of the step.
        method: The recipe.
        weight: Weight w of the contrast.
        outcome: What the step returned.
    """
    if outcome.moved is None:
        again = objective(model, batch, method, weight)
    else:
        draw, chains = outcome.moved.draw, outcome.moved.scored
        again = objective(model, batch, method, weight, chains, draw.labels)
    again.loss.backward()


def forward_of(recipe: Recipe) -> Forward:
    """The forward passes of a kind of step: one for all rows where it can be, or one each."""
    return joint_forward if step_of(recipe) == "fused" else separate_forward


def separate_forward(model: JEM, batch: Batch, x_unlikely: Tensor | None) -> Logits:
    """Logits in forwards of their own: labelled data, other data of the density, what is unlikely.

    Args:
        model: The model.
        batch: The data, (B, *shape) and (B', *shape).
        x_unlikely: Chains, then outliers, shape (M + O, *shape), scored in evaluation mode; or
            None.
    """
    logits = model.logits(batch.x)
    if x_unlikely is None:
        return Logits(logits, logits, None)
    logits_data = logits if batch.x_data is batch.x else model.logits(batch.x_data)
    with evaluation_mode(model):
        return Logits(logits, logits_data, model.logits(x_unlikely))


def joint_forward(model: JEM, batch: Batch, x_unlikely: Tensor | None) -> Logits:
    """Logits of labelled data, of the density's data and of what is unlikely, each row for itself.

    One concatenated forward where no submodule behaves differently in training. Otherwise the data
    go first, in training mode, and the others after them in evaluation mode: no chain enters a
    batch statistic, none is dropped out. Two streams of data are one batch to batch normalisation.

    Args:
        model: The model.
        batch: The data, (B, *shape) and (B', *shape).
        x_unlikely: Chains, then outliers, shape (M + O, *shape), or None.

    Returns:
        Logits (B, K), (B', K) and (M + O, K).
    """
    if x_unlikely is None:
        return separate_forward(model, batch, None)
    shared = batch.x_data is batch.x
    x = batch.x if shared else torch.cat([batch.x, batch.x_data])
    if model.network.training and depends_on_mode(model.network):
        logits_all = model.logits(x)
        with evaluation_mode(model):
            logits_unlikely = model.logits(x_unlikely)
    else:
        logits_all, logits_unlikely = model.logits(torch.cat([x, x_unlikely])).split(
            [len(x), len(x_unlikely)]
        )
    logits = logits_all[: len(batch.x)]
    logits_data = logits if shared else logits_all[len(batch.x) :]
    return Logits(logits, logits_data, logits_unlikely)


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
        raise RuntimeError(
            "input_gradient needs a finished backward pass through `energy` and `x`"
        )
    cotangent = energy.grad
    sign = torch.where(cotangent < 0, -1.0, 1.0).to(cotangent)
    return x.grad / per_row(sign * cotangent.abs().clamp_min(floor), x)


_SAME_IN_EVERY_MODE = (
    nn.Sequential, nn.Identity, nn.Flatten, nn.Unflatten,
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.GroupNorm, nn.LayerNorm,
    nn.SiLU, nn.GELU, nn.ReLU, nn.ELU, nn.LeakyReLU, nn.Softplus, nn.Tanh, nn.Sigmoid,
    nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d,
    networks.Network, networks.JointHead, networks.FactoredHead, networks.WideBlock,
)  # fmt: skip


def depends_on_mode(network: nn.Module) -> bool:
    """Whether a network may compute something else in training mode than in evaluation mode.

    Only modules known not to are trusted: a person's own module may look at `self.training`, or
    call a functional dropout. Dropout of probability 0 counts as harmless.
    """

    def harmless(module: nn.Module) -> bool:
        return type(module) in _SAME_IN_EVERY_MODE or (
            isinstance(module, nn.Dropout | nn.Dropout2d) and module.p == 0
        )

    return not all(harmless(module) for module in network.modules())


def _required(method: StepContext) -> PersistentChains:
    if method.negatives is None:
        raise RuntimeError(
            f"step {step_of(method.recipe)!r} needs chains, and the method has none"
        )
    return method.negatives
