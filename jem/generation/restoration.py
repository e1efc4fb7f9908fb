"""Complete inputs of which a part is known."""

from collections.abc import Sequence

import torch
from torch import Tensor

from jem.checks import check_finite, check_inputs, refuse
from jem.generation.samples import (
    Beginning,
    Progress,
    annealed,
    class_indices,
    guided_energy,
    padded,
    run_blocks,
    sampler_of,
)
from jem.model import JEM
from jem.sampling.base_distributions import GaussianBase, SamplerSettings

INITIAL_NOISE = 0.5
"""Noise of the first step of a completion that begins at noise, in data units: a quarter of the
width of an image."""


def inpaint(
    model: JEM,
    x: Tensor,
    known: Tensor,
    *,
    labels: Tensor | Sequence[int] | None = None,
    seed: int = 0,
    num_steps: int | None = None,
    progress: Progress | None = None,
) -> Tensor:
    r"""Complete inputs: keep what is known to the bit, and draw the rest given it.

    Chains begin at `x` with the model's base distribution in the unknown places (class Gaussians
    are drawn given the known places). They move on E(x), or on E(x, y) of the class you name,
    and are put back to `x` in the known places after each step. The result is one likely
    completion, drawn far below temperature 1; the mean over several seeds errs less in each
    component, and looks like no input. The noise of the steps begins at 0.5 and falls to that of
    training, or is that of training throughout where chains begin at class Gaussians, which is
    near enough.

    Args:
        model: A model trained with chains, or with `sampler` and `domain` set.
        x: Inputs, shape (B, *shape), floats in the network's units. What stands in unknown places
            is never looked at; it may be NaN.
        known: Booleans that broadcast to `x`: True is kept, False is drawn. One of shape (B, H, W)
            where there are B channels too is refused: it could be a mask an image or a channel.
        labels: Class of each input, shape (B,), if known.
        seed: Completion i depends on the seed, i and input i alone, not on how many there are.
        num_steps: Langevin steps; None takes the model's.
        progress: Called after each step with steps done and steps in all.

    Returns:
        Completed inputs, shape, dtype and device of `x`.

    Raises:
        InputError: If the model keeps no sampler settings, known values are not finite, or an
            argument does not fit.

    Example:
        >>> from jem.sampling import LangevinStep, UniformBase
        >>> model = JEM(torch.nn.Linear(2, 2), domain=(-1.0, 1.0))
        >>> init, step = UniformBase(-1.0, 1.0, (2,)), LangevinStep(0.1, 0.01)
        >>> model.sampler = SamplerSettings(init, 20, step, torch.tensor([0.5, 0.5]))
        >>> x = torch.tensor([[0.5, torch.nan]])
        >>> inpaint(model, x, ~x.isnan())[:, 0]
        tensor([0.5000])
    """
    sampler = sampler_of(model)
    check_inputs("x", x, model.input_shape)
    x = x.detach()
    known = _mask(known, x)
    check_finite("known values of x", x.masked_fill(~known, 0.0))
    if labels is not None:
        labels = class_indices("labels", labels, len(sampler.class_frequencies), len(x))
    num_steps = sampler.num_steps if num_steps is None else num_steps

    def begin(rows: slice, generator: torch.Generator) -> Beginning:
        given, kept = (padded(part, rows, model.device) for part in (x, known))
        y = None if labels is None else padded(labels, rows, model.device)
        given = given.float()
        start = sampler.init.complete(given, kept, y, generator=generator)
        energy = guided_energy(model, y, 1.0)
        return Beginning(start, energy, lambda moved: torch.where(kept, given, moved))

    steps = annealed(sampler.step, num_steps, usual_noise(sampler))
    drawn = run_blocks(model, len(x), begin, steps, seed=seed, name="inpaint", progress=progress)
    return torch.where(known, x, drawn.to(x))


def usual_noise(sampler: SamplerSettings) -> float:
    """Noise of the first step of a completion, in data units."""
    return sampler.step.noise_std if isinstance(sampler.init, GaussianBase) else INITIAL_NOISE


def _mask(known: Tensor, x: Tensor) -> Tensor:
    """Check a mask of known places, and expand it to the inputs."""
    if not isinstance(known, Tensor) or known.dtype != torch.bool:
        got = known.dtype if isinstance(known, Tensor) else type(known).__name__
        refuse("known", "be a tensor of booleans, True = keep", got)
    shape = tuple(known.shape)
    if known.ndim == x.ndim - 1 > 1 and len(known) == len(x) == x.shape[1] > 1:
        remedy = "pass known[:, None] for a mask for each input, known[None] for each channel"
        refuse("known", "have all axes, since its first may be inputs or channels", shape, remedy)
    try:
        return known.to(x.device).expand_as(x)
    except RuntimeError:
        refuse("known", f"broadcast to the inputs, {tuple(x.shape)}", f"shape {shape}")
