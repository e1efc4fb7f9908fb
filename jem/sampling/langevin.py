"""Stochastic gradient Langevin dynamics: one move, one step, one chain, on any energy function."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from jem.errors import InputError

EnergyFunction = Callable[[Tensor], Tensor]
Bounds = tuple[Tensor | float, Tensor | float]


class SGLDInfo(NamedTuple):
    """What a step saw before it moved."""

    energy: Tensor  # (B,) E(x) before the step, nats
    grad_norm: Tensor  # (B,) Euclidean norm of dE/dx before the step


def per_row(values: Tensor, x: Tensor) -> Tensor:
    """View one value a row, shape (B,), so that it broadcasts against x, shape (B, ...)."""
    return values.view(-1, *([1] * (x.ndim - 1)))


def clip_to_bounds(x: Tensor, bounds: Bounds | None) -> Tensor:
    """Clip inputs to (low, high), numbers or tensors that broadcast to one; None leaves them."""
    if bounds is None:
        return x
    low, high = bounds
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return torch.minimum(
            torch.maximum(x, torch.as_tensor(low).to(x)), torch.as_tensor(high).to(x)
        )
    return x.clamp(low, high)


def blur(x: Tensor) -> Tensor:
    """Average neighbouring pixels with the weights 1, 2, 1 along both sides of an image.

    A symmetric map whose eigenvalues lie in (0, 1); beyond the border there is zero.

    Args:
        x: Images, shape (B, C, H, W).
    """
    columns = F.pad(x, (1, 1))
    x = (columns[..., :-2] + 2 * columns[..., 1:-1] + columns[..., 2:]) / 4
    rows = F.pad(x, (0, 0, 1, 1))
    return (rows[..., :-2, :] + 2 * rows[..., 1:-1, :] + rows[..., 2:, :]) / 4


def langevin_update(
    x: Tensor,
    grad: Tensor,
    *,
    step_size: float,
    noise_std: float,
    generator: torch.Generator,
    bounds: Bounds | None = None,
    grad_clamp: float | None = None,
    max_rms: float | None = None,
    gradient_blur: float = 0.0,
) -> Tensor:
    r"""Move chains once, given the gradient of their energies.

    .. math:: x' = \mathrm{clip}\big(x - \eta P\,\mathrm{clamp}(\nabla_x E(x)) +
    \sigma P^{1/2} \varepsilon\big),
              \qquad \varepsilon \sim N(0, I), \quad P = (1 - s) I + s B^2

    with B the `blur` of an image, P = I for s = 0. Smoothing makes a move of a whole region cheap
    and one of single pixels dear: chains are slow to enter the checkerboards that a strided
    network mistakes for data. It is a preconditioner: it changes how fast which direction is
    explored, not what a Langevin chain converges to.

    The noise is drawn after the gradient (twice with smoothing, for P^1/2), also where the bounds
    then cut it off. With sigma = sqrt(2 eta), no clamp and no bounds this is the unadjusted
    Langevin algorithm for exp(-E).

    Args:
        x: Chain positions, shape (B, ...).
        grad: dE/dx, same shape.
        step_size: eta, multiplies the gradient. The paper's alpha is 2 * eta.
        noise_std: sigma >= 0, in data units; 0 draws no noise.
        generator: Source of the noise, on the device of `x`.
        bounds: (low, high), numbers or tensors that broadcast to one input; the new position is
            clipped to them.
        grad_clamp: Clamp each component of the gradient to [-c, c] first (the proximal move of
            JEM++).
        max_rms: Cap on the root mean square of a row's deterministic move, in data units;
            direction is kept.
        gradient_blur: s in [0, 1), for images (B, C, H, W).

    Returns:
        New positions, shape and dtype of `x`, detached.

    References:
        Welling and Teh (2011), ICML. Grathwohl et al. (2020), arXiv:1912.03263, equation 3.
        Girolami and Calderhead (2011), JRSS B 73, on preconditioned Langevin moves.
    """
    if grad_clamp is not None:
        grad = grad.clamp(-grad_clamp, grad_clamp)
    if gradient_blur:
        grad = (1 - gradient_blur) * grad + gradient_blur * blur(blur(grad))
    move = step_size * grad
    if max_rms is not None:
        rms = move.flatten(1).square().mean(dim=1).sqrt()
        move = move * per_row((max_rms / rms.clamp_min(1e-30)).clamp_max(1.0), x)
    moved = x.detach() - move
    if noise_std:
        noise = torch.empty_like(moved).normal_(generator=generator)
        if gradient_blur:  # the covariances of the two parts add up to P
            smooth = blur(torch.empty_like(moved).normal_(generator=generator))
            noise = math.sqrt(1 - gradient_blur) * noise + math.sqrt(gradient_blur) * smooth
        moved = moved.add_(noise, alpha=noise_std)
    return clip_to_bounds(moved, bounds)


def energy_and_gradient(x: Tensor, energy_fn: EnergyFunction) -> tuple[Tensor, Tensor]:
    """Energy of each row and its gradient with respect to that row, wherever this is called.

    Works inside `torch.no_grad` and `torch.inference_mode` too; no parameter receives a gradient.

    Args:
        x: Positions, shape (B, ...); neither changed nor kept in the graph.
        energy_fn: Maps (B, ...) to energies (B,), row by row.

    Returns:
        Energies, shape (B,), nats, and dE/dx, shape of `x`; both detached.

    Raises:
        InputError: If the energy is not of shape (B,), for example (B, 1).
    """
    with torch.inference_mode(False), torch.enable_grad():
        # A tensor made in inference mode cannot require gradients: its clone can.
        leaf = (x.clone() if x.is_inference() else x.detach()).requires_grad_()
        energy = energy_fn(leaf)
        if energy.shape != x.shape[:1]:
            raise InputError(
                f"an energy function must return shape {tuple(x.shape[:1])} "
                f"for a batch of {len(x)}, but returned {tuple(energy.shape)}"
            )
        (grad,) = torch.autograd.grad(energy.sum(), leaf)
    return energy.detach(), grad


def sgld_step(
    x: Tensor,
    energy_fn: EnergyFunction,
    *,
    step_size: float,
    noise_std: float,
    generator: torch.Generator,
    bounds: Bounds | None = None,
    grad_clamp: float | None = None,
    max_rms: float | None = None,
    gradient_blur: float = 0.0,
) -> tuple[Tensor, SGLDInfo]:
    r"""Move every chain by one Langevin step on an energy.

    .. math:: x' = x - \eta \nabla_x E(x) + \sigma \varepsilon, \qquad \varepsilon \sim N(0, I)

    Any pair but sigma = sqrt(2 eta) samples at temperature sigma^2 / (2 eta): the usual JEM
    setting (1, 0.01) is 5e-5, close to gradient descent, and gives no exact sample. Chains do not
    interact, no parameter receives a gradient, and `x` is neither changed nor kept in the graph.

    Args:
        x: Chain positions, shape (B, ...), in data units.
        energy_fn: Maps (B, ...) to energies (B,), row by row. Use a model in evaluation mode.
        step_size: eta > 0, multiplies the gradient. The paper's alpha is 2 * eta.
        noise_std: sigma >= 0, in data units. 0 gives plain gradient descent.
        generator: Source of the noise, on the device of `x`.
        bounds: See `langevin_update`.
        grad_clamp: See `langevin_update`.
        max_rms: See `langevin_update`.
        gradient_blur: See `langevin_update`.

    Returns:
        New positions, shape and dtype of `x`, and the energy and gradient norm *before* the step.

    References:
        Welling and Teh (2011), ICML. Grathwohl et al. (2020), arXiv:1912.03263.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> x, info = sgld_step(
        ...     torch.ones(1, 2),
        ...     lambda x: x.square().sum(1) / 2,
        ...     step_size=0.1,
        ...     noise_std=0.0,
        ...     generator=g,
        ... )
        >>> x, info.energy
        (tensor([[0.9000, 0.9000]]), tensor([1.]))
    """
    energy, grad = energy_and_gradient(x, energy_fn)
    moved = langevin_update(
        x,
        grad,
        step_size=step_size,
        noise_std=noise_std,
        generator=generator,
        bounds=bounds,
        grad_clamp=grad_clamp,
        max_rms=max_rms,
        gradient_blur=gradient_blur,
    )
    return moved, SGLDInfo(energy, grad.flatten(1).norm(dim=1))


def sgld_chain(
    x: Tensor,
    energy_fn: EnergyFunction,
    *,
    num_steps: int,
    step_size: float,
    noise_std: float,
    generator: torch.Generator,
    bounds: Bounds | None = None,
    grad_clamp: float | None = None,
    max_rms: float | None = None,
    gradient_blur: float = 0.0,
) -> Tensor:
    """Run every chain for a number of Langevin steps.

    Args:
        x: Starting positions, shape (B, ...).
        energy_fn: Maps (B, ...) to energies (B,), row by row.
        num_steps: Steps >= 0; 0 returns `x`.
        step_size: See `sgld_step`.
        noise_std: See `sgld_step`.
        generator: See `sgld_step`.
        bounds: See `langevin_update`.
        grad_clamp: See `langevin_update`.
        max_rms: See `langevin_update`.
        gradient_blur: See `langevin_update`.

    Returns:
        Final positions, shape and dtype of `x`, detached.
    """
    for _ in range(num_steps):
        _, grad = energy_and_gradient(x, energy_fn)
        x = langevin_update(
            x,
            grad,
            step_size=step_size,
            noise_std=noise_std,
            generator=generator,
            bounds=bounds,
            grad_clamp=grad_clamp,
            max_rms=max_rms,
            gradient_blur=gradient_blur,
        )
    return x
