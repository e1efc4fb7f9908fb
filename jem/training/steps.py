"""One training step of each kind: the whole method, from a batch to gradients and moved chains.

A step fills the parameters' gradients and proposes where the chains go; the trainer checks both
before anything changes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from jem import networks
from jem.model import JEM, evaluation_mode, joint_energy
from jem.objectives.classification import cross_entropy
from jem.objectives.contrastive import ContrastiveTerms, contrastive_loss
from jem.sampling.buffer import Draw
from jem.sampling.langevin import per_row
from jem.sampling.negatives import Negatives
from jem.training.recipe import Recipe


class Batch(NamedTuple):
    """What one step sees of the data."""

    x: Tensor  # (B, *shape) inputs of the classifier
    labels: Tensor  # (B,) class indices
    x_data: Tensor  # (B', *shape) inputs of the density; `x` itself when the streams are shared


@dataclass(frozen=True)
class Method:
    """What stays the same from step to step.

    Attributes:
        recipe: The recipe.
        negatives: The chains; None for a plain classifier.
        class_weight: Weight of each class in the cross-entropy, shape (K,), or None.
    """

    recipe: Recipe
    negatives: Negatives | None = None
    class_weight: Tensor | None = None

    def classification_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy with the recipe's weights and smoothing."""
        return cross_entropy(
            logits,
            labels,
            class_weight=self.class_weight,
            label_smoothing=self.recipe.label_smoothing,
        )

    def contrast(
        self, energy_data: Tensor, energy_negative: Tensor, weight: float
    ) -> ContrastiveTerms:
        """Contrastive objective with the recipe's penalties."""
        recipe = self.recipe
        return contrastive_loss(
            energy_data,
            energy_negative,
            weight=weight,
            energy_l2=recipe.energy_l2,
            gauge=recipe.gauge,
            thermostat=recipe.thermostat,
        )


class Moved(NamedTuple):
    """Chains after a step: proposals, until the trainer commits them."""

    draw: Draw
    x: Tensor  # (M, *shape) new positions
    moves: int  # Langevin moves made
    seconds: float = 0.0  # spent on moves before the loss; on a GPU, on asking for them


class Outcome(NamedTuple):
    """What a step computed. The parameters' gradients are in their `.grad`."""

    loss: Tensor  # scalar that was differentiated
    classification: Tensor  # scalar, cross-entropy
    logits: Tensor  # (B, K) of the classification stream
    energy_data: Tensor | None = None  # (B',)
    energy_negative: Tensor | None = None  # (M,)
    terms: ContrastiveTerms | None = None
    moved: Moved | None = None


def plain_step(
    model: JEM, batch: Batch, method: Method, weight: float, extra_steps: int
) -> Outcome:
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
    logits = model.logits(batch.x)
    loss = method.classification_loss(logits, batch.labels)
    loss.backward()
    return Outcome(loss, loss, logits)


def classic_step(
    model: JEM, batch: Batch, method: Method, weight: float, extra_steps: int
) -> Outcome:
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
    negatives = _required(method)
    num_steps = method.recipe.num_steps + extra_steps
    draw, x_negative, seconds = run_chains(model, negatives, num_steps)
    logits = model.logits(batch.x)
    same = batch.x_data is batch.x
    energy_data = joint_energy(logits if same else model.logits(batch.x_data))
    with evaluation_mode(model):
        energy_negative = model.energy(x_negative, draw.labels)

    classification = method.classification_loss(logits, batch.labels)
    terms = method.contrast(energy_data, energy_negative, weight)
    loss = classification + terms.loss
    loss.backward()
    moved = Moved(draw, x_negative, num_steps, seconds)
    return Outcome(loss, classification, logits, energy_data, energy_negative, terms, moved)


def fused_step(
    model: JEM, batch: Batch, method: Method, weight: float, extra_steps: int
) -> Outcome:
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
    negatives = _required(method)
    num_steps = method.recipe.num_steps + extra_steps
    draw, x_negative, seconds = run_chains(model, negatives, num_steps - 1)
    x_negative = x_negative.detach().requires_grad_()

    logits, logits_data, logits_negative = joint_forward(model, batch, x_negative)
    energy_data = joint_energy(logits_data)
    energy_negative = joint_energy(logits_negative, draw.labels)
    energy_negative.retain_grad()

    classification = method.classification_loss(logits, batch.labels)
    terms = method.contrast(energy_data, energy_negative, weight)
    loss = classification + terms.loss
    loss.backward()

    grad = input_gradient(x_negative, energy_negative)
    moved = Moved(draw, negatives.update(x_negative, grad), num_steps, seconds)
    return Outcome(loss, classification, logits, energy_data, energy_negative, terms, moved)


STEPS = {"plain": plain_step, "classic": classic_step, "fused": fused_step}


def run_chains(model: JEM, negatives: Negatives, num_steps: int) -> tuple[Draw, Tensor, float]:
    """Draw chains and move them, in evaluation mode.

    Args:
        model: The model; its mode is restored.
        negatives: The chains.
        num_steps: Langevin moves.

    Returns:
        What was drawn, the new positions (M, *shape), and the seconds it took.
    """
    started = time.perf_counter()
    draw = negatives.draw()
    with evaluation_mode(model):
        x = negatives.run(draw.x, lambda x: model.energy(x, draw.labels), num_steps)
    return draw, x, time.perf_counter() - started


def joint_forward(model: JEM, batch: Batch, x_negative: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of labelled data, of the density's data and of chains; no chain touches data.

    One concatenated forward where no submodule behaves differently in training. Otherwise the data
    go first, in training mode, and the chains after them in evaluation mode: no chain enters a
    batch statistic, none is dropped out. Two streams of data are one batch to batch normalisation.

    Args:
        model: The model.
        batch: The data, (B, *shape) and (B', *shape).
        x_negative: Chains, shape (M, *shape).

    Returns:
        Logits (B, K), (B', K) and (M, K).
    """
    shared = batch.x_data is batch.x
    x = batch.x if shared else torch.cat([batch.x, batch.x_data])
    if depends_on_mode(model.network):
        logits_all = model.logits(x)
        with evaluation_mode(model):
            logits_negative = model.logits(x_negative)
    else:
        logits_all, logits_negative = model.logits(torch.cat([x, x_negative])).split(
            [len(x), len(x_negative)]
        )
    logits = logits_all[: len(batch.x)]
    return logits, logits if shared else logits_all[len(batch.x) :], logits_negative


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


def _required(method: Method) -> Negatives:
    if method.negatives is None:
        raise RuntimeError(f"step {method.recipe.step!r} needs chains, and the method has none")
    return method.negatives
