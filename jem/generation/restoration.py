"""Complete inputs of which a part is known, and clean noisy ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from jem.errors import InputError
from jem.generation.chains import (
    BLOCK,
    Progress,
    annealed,
    chain_of,
    checked_inputs,
    checked_labels,
    counted,
    guided_energy,
    padded,
    refuse_not_finite,
    run_blocks,
)
from jem.model import JEM
from jem.sampling.base_distributions import GaussianBase
from jem.sampling.langevin import cap_rms, clip_to_bounds, sgld_chain
from jem.sampling.settings import SamplerSettings

INITIAL_NOISE = 0.5
"""Noise of the first step of a completion that begins at noise, in data units: a quarter of the
width of an image."""

DENOISING_STEPS = 20
REACH = 0.5
"""How far denoising may move an input, in standard deviations of the noise. The whole would let
the descent go on to a mode; with half, steps and step size hardly matter."""


def inpaint(
    model: JEM,
    x: Tensor,
    known: Tensor,
    *,
    labels: Tensor | Sequence[int] | None = None,
    seed: int = 0,
    num_steps: int | None = None,
    guidance: float = 1.0,
    initial_noise: float | None = None,
    step_decay: float = 1.0,
    progress: Progress | None = None,
) -> Tensor:
    r"""Complete inputs: keep what is known to the bit, and draw the rest given it.

    Chains begin at `x` with the model's base distribution in the unknown places (class Gaussians
    are drawn given the known places). They move on E(x), or on E_s(x, y) of the class you name,
    and are put back to `x` in the known places after each step. The result is one likely
    completion, drawn far below temperature 1; the mean over several seeds errs less in each
    component, and looks like no input.

    Args:
        model: A model trained with a generative recipe, or with `chain` and `domain` set.
        x: Inputs, shape (B, *shape), floats in the network's units. What stands in unknown places
            is never looked at; it may be NaN.
        known: Booleans that broadcast to `x`: True is kept, False is drawn. One of shape (B, H, W)
            where there are B channels too is refused: it could be a mask an image or a channel.
        labels: Class of each input, shape (B,), if known.
        seed: Completion i depends on the seed, i and input i alone, not on how many there are.
        num_steps: Langevin steps; None takes the model's.
        guidance: See `sample`; without labels of no effect.
        initial_noise: See `sample`; None takes 0.5, or the noise of training throughout where
            chains begin at class Gaussians, which is near enough.
        step_decay: See `sample`.
        progress: Called after each step with steps done and steps in all.

    Returns:
        Completed inputs, shape, dtype and device of `x`.

    Raises:
        InputError: If the model keeps no sampler settings, known values are not finite, or an
            argument does not fit.
    """
    chain = chain_of(model)
    x = checked_inputs(model, x)
    known = _checked_mask(known, x)
    if not bool(x[known].isfinite().all()):
        raise InputError("known values of `x` must be finite; mark others as unknown in `known`")
    noise = usual_noise(chain) if initial_noise is None else initial_noise
    count = chain.num_steps if num_steps is None else num_steps
    steps = annealed(chain.step, count, noise, step_decay)
    classes = _checked_classes(model, labels, len(x))
    on_step = counted(len(steps) * -(-len(x) // BLOCK), progress)

    def run(rows: slice, generator: torch.Generator) -> Tensor:
        given, kept = (padded(part, rows, model.device) for part in (x, known))
        y = None if classes is None else padded(classes, rows, model.device)
        given = given.float()
        return sgld_chain(
            chain.init.complete(given, kept, y, generator=generator),
            guided_energy(model, y, guidance),
            steps,
            generator=generator,
            bounds=model.bounds(),
            after_step=lambda moved: on_step(torch.where(kept, given, moved)),
        )

    drawn = run_blocks(model, len(x), run, seed=seed, name="inpaint")
    return torch.where(known, x, drawn.to(x))


def usual_noise(chain: SamplerSettings) -> float:
    """Noise of the first step of a completion, where none is asked for; in data units."""
    return chain.step.noise_std if isinstance(chain.init, GaussianBase) else INITIAL_NOISE


def denoise(
    model: JEM,
    x: Tensor,
    *,
    noise_std: float = 0.3,
    labels: Tensor | Sequence[int] | None = None,
    seed: int = 0,
    num_steps: int = DENOISING_STEPS,
    guidance: float = 1.0,
    progress: Progress | None = None,
) -> Tensor:
    r"""Clean inputs of Gaussian noise: move each to where the model holds it likely, nearby.

    Chains begin at the input x_0 and move down E(x), or E_s(x, y), inside the ball

    .. math:: \sqrt{\tfrac{1}{D} \sum_i (x_i - x_{0,i})^2} \le \tfrac{1}{2}\,\mathrm{noise\_std}

    so the scale of the energy, which is nominal, does not decide how much is removed: the noise
    you state does.

    Args:
        model: A model trained with a generative recipe, or with `chain` and `domain` set.
        x: Noisy inputs, shape (B, *shape), floats in the network's units; first clipped to the
            domain.
        noise_std: Standard deviation of the noise, in data units; 0 only clips.
        labels: Class of each input, shape (B,), if known.
        seed: Result i depends on the seed, i and input i alone, not on how many there are.
        num_steps: Langevin steps.
        guidance: See `sample`; without labels of no effect.
        progress: Called after each step with steps done and steps in all.

    Returns:
        Cleaned inputs, shape, dtype and device of `x`.

    Raises:
        InputError: If the model keeps no sampler settings, or an argument does not fit.

    References:
        Morozov (1966), for a bound on the residual set by the size of the noise.
    """
    chain = chain_of(model)
    x = checked_inputs(model, x)
    refuse_not_finite(x)
    if not 0 <= noise_std < math.inf:
        raise InputError(f"`noise_std` must be at least 0, but got {noise_std}")
    steps = annealed(chain.step, num_steps, None, 1.0)
    classes = _checked_classes(model, labels, len(x))
    on_step = counted(len(steps) * -(-len(x) // BLOCK), progress)

    def run(rows: slice, generator: torch.Generator) -> Tensor:
        y = None if classes is None else padded(classes, rows, model.device)
        noisy = clip_to_bounds(padded(x, rows, model.device).float(), model.bounds())
        return sgld_chain(
            noisy,
            guided_energy(model, y, guidance),
            steps,
            generator=generator,
            bounds=model.bounds(),
            # The ball's centre lies in the domain, so the way back to it does too.
            after_step=lambda x: on_step(noisy + cap_rms(x - noisy, REACH * noise_std)),
        )

    return run_blocks(model, len(x), run, seed=seed, name="denoise").to(x)


def _checked_mask(known: Tensor, x: Tensor) -> Tensor:
    if not isinstance(known, Tensor) or known.dtype != torch.bool:
        came = known.dtype if isinstance(known, Tensor) else type(known).__name__
        raise InputError(f"`known` must be a tensor of booleans, True = keep, but got {came}")
    if known.ndim == x.ndim - 1 > 1 and len(known) == len(x) == x.shape[1] > 1:
        raise InputError(
            f"`known` of shape {tuple(known.shape)} could be a mask for each of {len(x)} inputs "
            f"or of {len(x)} channels: pass known[:, None] for inputs, known[None] for channels"
        )
    try:
        return known.to(x.device).expand_as(x)
    except RuntimeError as error:
        raise InputError(
            f"`known` must broadcast to the inputs, {tuple(x.shape)}, "
            f"but got shape {tuple(known.shape)}"
        ) from error


def _checked_classes(
    model: JEM, labels: Tensor | Sequence[int] | None, count: int
) -> Tensor | None:
    if labels is None:
        return None
    return checked_labels(labels, len(chain_of(model).class_frequencies), count)
