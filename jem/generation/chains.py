"""What all drawing shares: guided energies, annealed steps, and chains in blocks."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from jem.checks import check_integer, check_labels, check_number, refuse
from jem.errors import InputError
from jem.model import JEM, check_model, inference, joint_energy
from jem.randomness import named_generator
from jem.sampling.langevin import EnergyFunction, LangevinStep, sgld_chain
from jem.sampling.settings import SamplerSettings

BLOCK = 16
"""Chains that share a generator, and one batch of the network."""

Progress = Callable[[int, int], None]
"""Called with steps done and steps in all."""


def sampler_of(model: JEM) -> SamplerSettings:
    """The sampler settings that a model keeps.

    Raises:
        InputError: If it keeps none, or this is no `JEM`.
    """
    check_model(model)
    if not isinstance(model.sampler, SamplerSettings):
        raise InputError(
            "this model keeps no sampler settings: "
            "train it with a generative recipe such as 'fast'"
        )
    return model.sampler


def annealed(
    step: LangevinStep,
    num_steps: int,
    initial_noise: float | None = None,
    step_decay: float = 1.0,
) -> list[LangevinStep]:
    r"""Steps whose noise falls to that of a given step, and whose size falls below its size.

    .. math:: \eta_t = \eta\, d^{\,t/(T-1)}, \qquad
              \sigma_t = \big(\sigma_0 + (\sigma - \sigma_0)\tfrac{t}{T-1}\big)\, d^{\,t/2(T-1)}

    so that a decreasing step size keeps the temperature sigma^2 / (2 eta) that the noise asks for.

    Args:
        step: eta, sigma and the rest of a step.
        num_steps: T >= 0.
        initial_noise: sigma_0 in data units; None is sigma itself.
        step_decay: d in (0, 1]: size of the last step over that of the first.

    Returns:
        T steps.

    Raises:
        InputError: If a value is out of range.
    """
    check_integer("num_steps", num_steps, 0)
    check_number("step_decay", step_decay, "(0, 1]")
    check_number("initial_noise", initial_noise, "[0, inf)", optional=True)
    first = step.noise_std if initial_noise is None else initial_noise
    steps = []
    for t in range(num_steps):
        done = t / (num_steps - 1) if num_steps > 1 else 1.0
        shrink = step_decay**done
        noise = (first + (step.noise_std - first) * done) * math.sqrt(shrink)
        steps.append(replace(step, step_size=step.step_size * shrink, noise_std=noise))
    return steps


def guided_energy(model: JEM, labels: Tensor | None, guidance: float) -> EnergyFunction:
    r"""The energy that chains move on.

    .. math:: E_s(x, y) = E(x) - s \log p(y \mid x)

    the density of which is p(x) p(y|x)^s, up to a constant: s = 1 is E(x, y) = -f(x)[y] exactly,
    s = 0 leaves the class out, s > 1 asks for inputs that are more typical of the class than of
    the data. Both terms are read off the logits, whatever the head.

    Args:
        model: The model, in evaluation mode.
        labels: y, shape (B,); None gives E(x).
        guidance: s >= 0.

    Returns:
        Inputs (B, *shape) -> energies (B,), nats.

    References:
        Dhariwal and Nichol (2021), arXiv:2105.05233, equation 14, for powers of p(y|x).
    """
    check_number("guidance", guidance, "[0, inf)")
    if labels is None:
        return model.energy
    if guidance == 1:
        return lambda x: model.energy(x, labels)

    def energy(x: Tensor) -> Tensor:
        logits = model.logits(x)
        # The energy of log-probabilities is -log p(y|x).
        return joint_energy(logits) + guidance * joint_energy(logits.log_softmax(dim=1), labels)

    return energy


class Beginning(NamedTuple):
    """Where the chains of a block begin, what they move on, and what they are held to."""

    x: Tensor  # (BLOCK, *shape)
    energy: EnergyFunction
    constrain: Callable[[Tensor], Tensor] = lambda x: x  # applied after each step


def run_blocks(
    model: JEM,
    count: int,
    begin: Callable[[slice, torch.Generator], Beginning],
    steps: Sequence[LangevinStep],
    *,
    seed: int,
    name: str,
    progress: Progress | None = None,
) -> Tensor:
    """Draw with chains, a block of them at a time.

    Sample i must be the same however many are drawn at once. Each block therefore has a generator
    of its own and always runs whole: with another number of rows, torch would draw other noise
    and round the same row differently.

    Args:
        model: The model; put in evaluation mode meanwhile.
        count: Rows in all, at least 1.
        begin: Maps the rows of a block (the last may be short) and its generator to where its
            chains begin, always a full block.
        steps: Langevin steps of each chain.
        seed: Seed of all generators.
        name: What the generators are for.
        progress: Called after each step of each block.

    Returns:
        Shape (count, *shape), on the model's device.
    """
    blocks, done, total = [], 0, len(steps) * math.ceil(count / BLOCK)
    constrain: Callable[[Tensor], Tensor]
    bounds = model.bounds()

    def on_step(x: Tensor) -> Tensor:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)
        return constrain(x)

    with inference(model):
        for number, rows in enumerate(blocks_of(count)):
            generator = named_generator(seed, name, number, device=model.device)
            x, energy, constrain = begin(rows, generator)
            x = sgld_chain(
                x, energy, steps, generator=generator, bounds=bounds, after_step=on_step
            )
            blocks.append(x[: rows.stop - rows.start])
    return torch.cat(blocks)


def blocks_of(count: int) -> Iterator[slice]:
    """Rows of each block of at most `BLOCK`.

    Example:
        >>> list(blocks_of(20))
        [slice(0, 16, None), slice(16, 20, None)]
    """
    return (slice(i, min(i + BLOCK, count)) for i in range(0, count, BLOCK))


def padded(values: Tensor, rows: slice, device: torch.device) -> Tensor:
    """Rows of a tensor, the last one repeated until the block is full."""
    part = values[rows].to(device)
    return torch.cat([part, part[-1:].expand(BLOCK - len(part), *part.shape[1:])])


def class_indices(
    name: str, labels: Tensor | Sequence[int] | int, num_classes: int, count: int | None = None
) -> Tensor:
    """Class indices as int64, shape (B,).

    Args:
        name: What the user calls them.
        labels: Class indices.
        num_classes: K.
        count: How many there must be, or a single index for all; None takes any number.

    Raises:
        InputError: If they are anything else.
    """
    try:
        indices = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        refuse(name, "be class indices", repr(labels))
    if count is None:
        count = indices.numel()
    elif indices.ndim == 0:
        indices = indices.expand(count)
    check_labels(name, indices, count, num_classes)
    return indices.long()
