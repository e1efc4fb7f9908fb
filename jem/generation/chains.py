"""What everything that draws shares: energies with guidance, plans of steps, chains in blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from jem.checks import check_integer, check_number
from jem.errors import InputError
from jem.model import JEM, check_model, evaluation_mode, joint_energy
from jem.randomness import named_generator
from jem.sampling.langevin import EnergyFunction, LangevinStep
from jem.sampling.settings import SamplerSettings

BLOCK = 16
"""Chains that share a generator. Blocks always run whole: sample i is the same for any count."""

Progress = Callable[[int, int], None]
"""Called with steps done and steps in all."""


def chain_of(model: JEM) -> SamplerSettings:
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
    step: LangevinStep, num_steps: int, initial_noise: float | None, step_decay: float
) -> list[LangevinStep]:
    r"""Steps whose noise and size fall to those of a given step, or below.

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
    if initial_noise is None and step_decay == 1:
        return [step] * num_steps
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
    if not 0 <= guidance < math.inf:
        raise InputError(f"`guidance` must be at least 0, but got {guidance}")
    if labels is None:
        return model.energy
    if guidance == 1:
        return lambda x: model.energy(x, labels)

    def energy(x: Tensor) -> Tensor:
        logits = model.logits(x)
        # The energy of log-probabilities is -log p(y|x).
        return joint_energy(logits) + guidance * joint_energy(logits.log_softmax(dim=1), labels)

    return energy


def blocks_of(count: int) -> Iterator[slice]:
    """Rows of each block of at most `BLOCK`.

    Example:
        >>> list(blocks_of(20))
        [slice(0, 16, None), slice(16, 20, None)]
    """
    return (slice(i, min(i + BLOCK, count)) for i in range(0, count, BLOCK))


def padded(values: Tensor, rows: slice, device: torch.device) -> Tensor:
    """Rows of a tensor, the last one repeated until the block is full, as an ordinary tensor."""
    part = values[rows].to(device)
    return torch.cat([part, part[-1:].expand(BLOCK - len(part), *part.shape[1:])])


def run_blocks(
    model: JEM,
    count: int,
    run: Callable[[slice, torch.Generator], Tensor],
    *,
    seed: int,
    name: str,
) -> Tensor:
    """Run blocks in order, each with a generator of its own, and join what they return.

    Args:
        model: Put in evaluation mode meanwhile.
        count: Rows in all, at least 1.
        run: Maps the rows of a block and its generator to that many rows, or to a full block.
        seed: Seed of all generators.
        name: What the generators are for.

    Returns:
        `count` rows.
    """
    blocks = []
    # Class indices made in inference mode could not enter the energy's graph.
    with torch.inference_mode(False), torch.no_grad(), evaluation_mode(model):
        for number, rows in enumerate(blocks_of(count)):
            generator = named_generator(seed, name, number, device=model.device)
            blocks.append(run(rows, generator)[: rows.stop - rows.start])
    return torch.cat(blocks)


def counted(total: int, progress: Progress | None) -> Callable[[Tensor], Tensor]:
    """A function to call after each step, which tells `progress` how many there have been.

    It returns what it is given, as `sgld_chain` asks of what it calls after a step.
    """
    done = 0

    def count(x: Tensor) -> Tensor:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)
        return x

    return count


def checked_inputs(model: JEM, x: Tensor, name: str = "x") -> Tensor:
    """Refuse what is no batch of the network's inputs.

    Args:
        model: Whose inputs they are.
        x: Inputs, shape (B, *shape), floats in the network's units.
        name: What an error message calls them.

    Returns:
        The inputs, detached.
    """
    shape = model.input_shape
    sizes = "..." if shape is None else ", ".join(map(str, shape))
    if not isinstance(x, Tensor) or not x.is_floating_point():
        came = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise InputError(
            f"`{name}` must be a tensor of floats in the network's units, shape (B, {sizes}), "
            f"but got {came}; `model.preprocess` makes it of raw data"
        )
    fits = x.ndim >= 2 and (shape is None or tuple(x.shape[1:]) == shape)
    if not fits or not x.numel():
        raise InputError(
            f"`{name}` must be of shape (B, {sizes}), B >= 1, but got {tuple(x.shape)}"
        )
    return x.detach()


def refuse_not_finite(x: Tensor, name: str = "x") -> None:
    """Refuse inputs that hold NaN or infinity."""
    if not bool(x.isfinite().all()):
        row = int((~x.flatten(1).isfinite().all(dim=1)).nonzero()[0])
        raise InputError(f"`{name}` must be finite, but input {row} is not")


def checked_labels(
    labels: Tensor | Sequence[int],
    num_classes: int,
    count: int | None = None,
    name: str = "labels",
) -> Tensor:
    """Class indices as int64, shape (B,).

    Args:
        labels: Class indices.
        num_classes: K.
        count: How many there must be; None takes any number above 0.
        name: What an error message calls them.

    Raises:
        InputError: If they are anything else.
    """
    try:
        wanted = torch.as_tensor(labels)
    except (TypeError, ValueError) as error:
        raise InputError(f"`{name}` must be class indices, but got {labels!r}") from error
    number = wanted.is_floating_point() or wanted.is_complex() or wanted.dtype == torch.bool
    if wanted.ndim != 1 or not len(wanted) or number:
        came = f"{wanted.dtype} of shape {tuple(wanted.shape)}" if wanted.numel() else "none"
        raise InputError(f"`{name}` must be class indices of shape (B,), but got {came}")
    wanted = wanted.long()
    if int(wanted.min()) < 0 or int(wanted.max()) >= num_classes:
        raise InputError(
            f"`{name}` must lie in 0..{num_classes - 1}, "
            f"but got {int(wanted.min())}..{int(wanted.max())}"
        )
    if count is not None and len(wanted) != count:
        raise InputError(f"`{name}` must be {count}, one an input, but got {len(wanted)}")
    return wanted
