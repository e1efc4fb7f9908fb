"""Samples of the classes you name, and what all drawing shares: chains in blocks."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from jem.checks import check_integer, check_labels, check_number, refuse
from jem.errors import InputError
from jem.model import JEM, check_model, energy_of, inference
from jem.randomness import named_generator
from jem.sampling.base_distributions import SamplerSettings
from jem.sampling.langevin import (
    Bounds,
    EnergyFunction,
    LangevinStep,
    energy_and_gradient,
    run_chains,
)
from jem.sampling.mala import run_corrected_chains

BLOCK = 16
"""Chains that share a generator, and one batch of the network."""
CHAINS_BESIDE = 4
"""Chains for each sample of a density beside a classifier, until the classifier chooses one."""

Progress = Callable[[int, int], None]
"""Called with steps done and steps in all."""


def sample(
    model: JEM,
    labels: Tensor | Sequence[int] | None = None,
    *,
    count: int | None = None,
    seed: int = 0,
    num_steps: int | None = None,
    guidance: float = 1.0,
    initial_noise: float | None = None,
    metropolis: bool = False,
    progress: Progress | None = None,
) -> Tensor:
    r"""Draw inputs with Langevin chains, for classes you name.

    Chains move on E_s(x, y) = E(x) - s log p(y|x) of their class, where s is the guidance: s = 1
    is the joint energy E(x, y) = -f(x)[y]. They are short and far below temperature 1: samples of
    what the model holds likely, not exact samples of its density. Their steps are those of
    training, made smaller where these would overshoot on E_s (`stable_step`). With the settings of
    training many steps end in few modes; noise that begins high and falls (simulated annealing)
    spreads them over more.

    A network that holds an `energy_network` with classes, as a companion and towers do, draws with
    that alone: p(y|x) here is then that of its `density_model`. The classifier beside it chooses:
    each sample has four chains, and after half of the model's steps only the one goes on that the
    classifier finds most probably of the class.

    Args:
        model: A model trained with chains, or with `sampler` and `domain` set.
        labels: Class indices, shape (B,); None draws the classes too, at their frequencies in the
            training data.
        count: Number of samples where `labels` is None; 16 by default. With labels, B counts.
        seed: Sample i depends on the seed, i and its label alone, not on how many are drawn.
        num_steps: Langevin steps; None takes the model's.
        guidance: s >= 0; below 1 more varied, above 1 more typical of the class.
        initial_noise: Noise of the first step, in data units, falling evenly to that of training
            at the last; None keeps that of training throughout.
        metropolis: Accept or refuse each step by the rule of Metropolis, for vectors. After enough
            steps, chains are then exact samples of exp(-E_s / T) in the domain, with T the
            temperature of their steps. The steps of training are far too few for that: ask
            `jem.evaluation.chains.mixing` how many it takes.
        progress: Called after each step with steps done and steps in all.

    Returns:
        Samples, shape (B, *input_shape), in the network's units, on the model's device.

    Raises:
        InputError: If the model keeps no sampler settings, or an argument is out of range.

    References:
        Grathwohl et al. (2020), arXiv:1912.03263, section 5.1. Kirkpatrick et al. (1983),
        Science 220, for annealing. Roberts and Tweedie (1996), Bernoulli 2, for corrected steps.
    """
    sampler = sampler_of(model)
    frequencies = sampler.class_frequencies
    if labels is not None:
        labels = class_indices("labels", labels, len(frequencies))
        count = len(labels)
    count = 16 if count is None else count
    check_integer("count", count, 1)
    if metropolis:
        check_correctable(model, sampler.step)

    generator = named_generator(seed, "step", device=model.device)
    y = frequencies.to(model.device).multinomial(BLOCK, replacement=True, generator=generator)
    with inference(model):
        x = sampler.init.sample(BLOCK, y, generator=generator)
        step = stable_step(sampler.step, x, guided_energy(model, y, guidance), model.bounds())
    num_steps = sampler.num_steps if num_steps is None else num_steps
    steps = annealed(step, num_steps, initial_noise)
    run = run_corrected_chains if metropolis else run_chains
    half = sampler.num_steps // 2
    beside = model.density_model is not model and len(model.density_model.classes or ()) > 1
    chains = CHAINS_BESIDE if beside and not metropolis and num_steps > half else 1
    left = steps[half:] if chains > 1 else steps

    def begin(rows: slice, generator: torch.Generator) -> Beginning:
        weights = frequencies.to(generator.device)
        y = torch.multinomial(weights, BLOCK, replacement=True, generator=generator)
        if labels is not None:  # the classes of rows that only fill the block do not matter
            y = torch.zeros_like(y)
            y[: rows.stop - rows.start] = labels[rows]
        energy = guided_energy(model, y, guidance)
        starts = [sampler.init.sample(BLOCK, y, generator=generator) for _ in range(chains)]
        if chains > 1:
            go = partial(run_chains, generator=generator, bounds=model.bounds())
            ends = [go(x, energy, steps[:half]) for x in starts]
            starts = [_most_probable(model, torch.stack(ends), y)]
        return Beginning(starts[0], energy)

    return run_blocks(
        model, count, begin, left, seed=seed, name="sample", progress=progress, run=run
    )


def _most_probable(model: JEM, candidates: Tensor, labels: Tensor) -> Tensor:
    """For each row the candidate that the classifier finds most probably of the row's class.

    Args:
        model: The model.
        candidates: Shape (C, B, *shape).
        labels: Class indices, shape (B,).
    """
    log_p = torch.stack([model.logits(x).log_softmax(dim=1) for x in candidates])  # (C, B, K)
    rows = torch.arange(len(labels), device=labels.device)
    return candidates[log_p[:, rows, labels].argmax(dim=0), rows]


# -- what all drawing shares ----------------------------------------------------------------------


def sampler_of(model: JEM) -> SamplerSettings:
    """The sampler settings that a model keeps.

    Raises:
        InputError: If it keeps none, or this is no `JEM`.
    """
    check_model(model)
    if not isinstance(model.sampler, SamplerSettings):
        raise InputError(
            "this model keeps no sampler settings: "
            "train it with a recipe that has chains, such as 'fast'"
        )
    return model.sampler


def check_correctable(model: JEM, step: LangevinStep) -> None:
    """Check that steps of a model can be corrected by the rule of Metropolis.

    Raises:
        InputError: If its inputs are no vectors, or its steps have no noise.
    """
    if model.input_shape is not None and len(model.input_shape) != 1:
        raise InputError(
            "corrected steps are for vectors: the chains of images run so far below temperature 1 "
            "that hardly a step would be accepted"
        )
    if not step.noise_std:
        raise InputError("corrected steps need noise, and the chains of this model have none")


def annealed(
    step: LangevinStep, num_steps: int, initial_noise: float | None = None
) -> list[LangevinStep]:
    r"""Steps whose noise falls evenly to that of a given step.

    .. math:: \sigma_t = \sigma_0 + (\sigma - \sigma_0)\tfrac{t}{T-1}

    Args:
        step: eta, sigma and the rest of a step.
        num_steps: T >= 0.
        initial_noise: sigma_0 in data units; None is sigma itself.

    Returns:
        T steps.

    Raises:
        InputError: If a value is out of range.
    """
    check_integer("num_steps", num_steps, 0)
    check_number("initial_noise", initial_noise, "[0, inf)", optional=True)
    first = step.noise_std if initial_noise is None else initial_noise
    done = [t / (num_steps - 1) for t in range(num_steps)] if num_steps > 1 else [1.0] * num_steps
    return [replace(step, noise_std=first + (step.noise_std - first) * share) for share in done]


def stable_step(
    step: LangevinStep, x: Tensor, energy: EnergyFunction, bounds: Bounds | None = None
) -> LangevinStep:
    r"""The given step, or a smaller one where that overshoots.

    Gradient descent on a quadratic of curvature c diverges where step_size * c > 2: the slope
    along the move changes its sign and grows. Training asks this of E(x), and samples move on
    E(x, y), which is steeper where a network has no factored head.

    Args:
        step: The step of training.
        x: Where chains begin, shape (B, *shape).
        energy: What they move on.
        bounds: What chains are clipped to.

    Returns:
        A step that takes the slope along the move to about zero where `step` would reverse it
        and make it larger, at the same temperature; otherwise `step`.
    """
    _, slope = energy_and_gradient(x, energy)
    bare = replace(step, step_size=step.step_size / 100, noise_std=0.0)
    nearby = bare(x, slope, generator=torch.Generator(), bounds=bounds)
    _, after = energy_and_gradient(nearby, energy)
    slope, after = ((g * (nearby - x)).flatten(1).sum(dim=1) for g in (slope, after))
    ratio = 100 * float((1 - after / slope).nanmedian())  # step_size * c of most chains
    if not ratio > 2:
        return step
    return replace(
        step, step_size=step.step_size / ratio, noise_std=step.noise_std / math.sqrt(ratio)
    )


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
    if len(model.density_model.classes or ()) > 1:
        model = model.density_model
    elif not getattr(model.network, "has_class_gradients", True):
        wanted = "have an output for each class, as its classifier gives no gradients"
        refuse("energy_network", wanted, "one")
    if guidance == 1:
        return lambda x: model.energy(x, labels)

    def energy(x: Tensor) -> Tensor:
        logits = model.logits(x)
        # The energy of log-probabilities is -log p(y|x).
        return energy_of(logits) + guidance * energy_of(logits.log_softmax(dim=1), labels)

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
    run: Callable[..., Tensor] = run_chains,
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
        run: `run_chains`, or `run_corrected_chains`, which takes no constraint.

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
            x = run(x, energy, steps, generator=generator, bounds=bounds, after_step=on_step)
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
