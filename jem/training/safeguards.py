"""What a run is guarded against: divergence, a density or a mode that learned nothing."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from jem.attacks import n_fgsm, pgd
from jem.data.batches import BatchStream, Examples
from jem.errors import TrainingDivergedError
from jem.model import JEM, batched_logits, energy_of, inference
from jem.randomness import global_generators_kept, named_generator
from jem.training.optimisation import kept_statistics
from jem.training.update import UpdateContext, UpdateResult, attacks_inputs

MAX_RECOVERIES = 5
"""Recoveries from divergence before a run gives up."""

MOST_NATS_APART = 5.0
"""Between the mean energies of the same data in training and in evaluation mode, beside their
standard deviation."""


class Diverged(Exception):  # noqa: N818
    """An update that must not be applied; the loop goes back to a checkpoint."""


def is_healthy(result: UpdateResult, grad_norm: Tensor, max_energy_gap: float) -> Tensor:
    """Whether an update may be applied: everything finite, data and chains not torn apart.

    Args:
        result: What was computed.
        grad_norm: Norm of the parameters' gradient, a scalar; infinite or NaN if any component is.
        max_energy_gap: Largest size of the gap that is allowed, in nats.

    Returns:
        A boolean scalar, on the device: reading it is what synchronises.
    """
    healthy = result.loss.isfinite() & grad_norm.isfinite()
    if result.terms.gap is not None:
        healthy &= result.terms.gap.abs() <= max_energy_gap  # False for NaN
    if result.proposed is not None:
        healthy &= result.proposed.x.isfinite().all()
    return healthy.detach()


def mask_gradients(module: nn.Module, healthy: Tensor) -> None:
    """Set every gradient to zero unless the update was healthy, without asking the device.

    Args:
        module: Its parameters' gradients are changed in place.
        healthy: A boolean scalar. A product with zero would keep NaN; `where` does not.
    """
    for parameter in module.parameters():
        if parameter.grad is not None:
            parameter.grad = torch.where(healthy, parameter.grad, 0.0)


def give_up(context: UpdateContext, iteration: int) -> TrainingDivergedError:
    """Make the error that ends a run, with the settings to try for its objective.

    Args:
        context: The recipe and the objective of the run.
        iteration: Where it diverged for the last time.
    """
    recipe = context.recipe
    settings = [f"--learning-rate {recipe.learning_rate / 4:g}", "--max-grad-norm 1"]
    if recipe.attack_eps:
        settings.append(f"--attack-eps {recipe.attack_eps / 2:.2g}")
    if context.trains_density:
        settings.append(f"--density-weight {recipe.density_weight / 3:.2g}")
    if "chains" in context.objective.needs:
        settings += [
            f"--num-steps {recipe.num_steps * 2}",
            f"--energy-l2 {max(recipe.energy_l2 * 3, 0.03):.2g}",
        ]
    return TrainingDivergedError(
        f"training diverged at update {iteration} after {MAX_RECOVERIES} recoveries; "
        f"try one of: {', '.join(settings)}"
    )


LEAST_AUROC, LEAST_AUROC_OF_IMAGES = 0.7, 0.9
"""Below it, against noise, a density is doubted; two moons have 0.77, images 0.84 too early."""


def why_doubted(model: JEM, context: UpdateContext, as_given: str, examples: Examples) -> str:
    """Say what is wrong with a model whose training has ended; empty if nothing is.

    Args:
        model: The model.
        context: The objective of the run.
        as_given: Why it is as it was given; empty if it was trained.
        examples: Held-out ones, of which 256 are looked at.
    """
    if as_given:
        return f"{as_given}, so the model is unchanged; train longer or lower --density-weight"
    if not context.trains_density:
        return ""
    x, _ = next(BatchStream(examples, 256, seed=0, name="noise", device=model.device).epoch(0))
    low, high = model.bounds() or (x, x)
    noise = low + (high - low) * torch.rand(x.shape, generator=named_generator(0, "noise")).to(x)
    model = model.density_model
    data, other = (batched_logits(model, rows).logsumexp(dim=1) for rows in (x, noise))
    auroc = float((data[:, None] > other).double().mean())
    return (auroc < (LEAST_AUROC_OF_IMAGES if x.ndim == 4 else LEAST_AUROC)) * (
        f"the log-density hardly tells held-out examples from uniform noise (AUROC {auroc:.2f}): "
        "too few updates (validation examples, too, may end training early), or data that fill "
        "their range evenly; train longer (--epochs)"
    )


MOST_OVERFITTED = 0.3
"""Share of a batch that may keep its class in the attack of training and lose it in a search."""


def check_attacked(model: JEM, examples: BatchStream, context: UpdateContext) -> dict[str, float]:
    """Check that what withstands the attack of training withstands a search, too.

    Training on attacks of one step can end in *catastrophic overfitting*: within an epoch the
    network learns to recognise them, and falls to every other attack.

    Args:
        model: The model of training, as it is now.
        examples: Training examples, of which the first batch is looked at, the same every time.
        context: The recipe, which says whether and how far inputs are attacked.

    Returns:
        `attacked_accuracy`, that of the batch under `pgd` of 10 steps; nothing without attacks.

    Raises:
        Diverged: If that is lower than under the attack of training by more than 0.3.

    References:
        Wong et al. (2020), arXiv:2001.03994, section 5.4.
    """
    if not attacks_inputs(model, context):
        return {}
    x, y = next(examples.epoch(0))
    generator = named_generator(0, "attack", device=x.device)
    how: Any = {"eps": context.recipe.attack_eps, "bounds": model.bounds(), "generator": generator}
    with inference(model):
        learned, searched = (
            float(
                (model.logits(attack(model.logits, x, y, **how)).argmax(dim=1) == y).float().mean()
            )
            for attack in (n_fgsm, partial(pgd, num_steps=10))
        )
    if learned - searched > MOST_OVERFITTED:
        raise Diverged
    return {"attacked_accuracy": searched}


def check_modes(model: JEM, examples: BatchStream, context: UpdateContext, epoch: int) -> None:
    """Check that a model has learned in evaluation mode, too, what it has in training mode.

    A network in which the two differ can be perfect in training, and useless afterwards. It is
    asked from the middle of a run on, as early averages and running statistics lag behind.

    Args:
        model: The averaged model; its modes and statistics are left as they are.
        examples: Training examples, of which the first batch is looked at, the same every time.
        context: The recipe and the objective. Energies are compared if a density is trained,
            nothing if training is in evaluation mode.
        epoch: Epochs that have ended.

    Raises:
        TrainingDivergedError: If accuracy is that of the commonest class in evaluation mode alone,
            or the mean energies lie far apart.
    """
    if 2 * epoch < context.recipe.epochs or context.recipe.freeze_norm_and_dropout:
        return
    model, (x, labels) = model.trained, next(examples.epoch(0))
    devices = [x.device] if x.is_cuda else []
    with inference(model), global_generators_kept(devices), kept_statistics(model):
        predicted = model.logits(x)
        model.train()
        trained = model.logits(x)
    right, right_trained = (
        float((logits.argmax(dim=1) == labels).float().mean()) for logits in (predicted, trained)
    )
    chance = float(labels.bincount().max()) / len(labels)
    error = len(labels) ** -0.5  # twice the largest standard error of a share
    energies = energy_of(predicted)
    apart = abs(float(energies.mean() - energy_of(trained).mean()))
    allowed = MOST_NATS_APART + float(energies.std(correction=0))
    lost = right <= chance + error and right_trained - right > (1 - chance) / 2 + error
    if lost or (context.trains_density and not apart <= allowed):
        raise TrainingDivergedError(
            "the network works only in training mode: on the same training examples accuracy "
            f"{right:.3f} in evaluation mode against {right_trained:.3f} in training mode, mean "
            f"energies {apart:.1f} nats apart; check code that depends on the mode "
            "(`self.training`, slow running statistics), use group normalisation, or train longer"
        )
