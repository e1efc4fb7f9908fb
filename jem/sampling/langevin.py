"""Langevin dynamics on any energy function: one step, and chains of steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from jem.errors import InputError

EnergyFunction = Callable[[Tensor], Tensor]
Bounds = tuple[Tensor | float, Tensor | float]


def per_row(values: Tensor, x: Tensor) -> Tensor:
    """View one value a row, shape (B,), so that it broadcasts against x, shape (B, ...)."""
    return values.view(-1, *([1] * (x.ndim - 1)))


def clip_to_bounds(x: Tensor, bounds: Bounds | None) -> Tensor:
    """Clip inputs to (low, high), numbers or tensors that broadcast to one; None leaves them."""
    if bounds is None:
        return x
    low, high = bounds
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return x.clamp(torch.as_tensor(low).to(x), torch.as_tensor(high).to(x))
    return x.clamp(low, high)


def blur(x: Tensor) -> Tensor:
    """Average neighbouring pixels with the weights 1, 2, 1 along both sides of an image.

    A symmetric map whose eigenvalues lie in (0, 1); pixels beyond the border count as zero.

    Args:
        x: Images, shape (B, C, H, W).
    """
    columns = F.pad(x, (1, 1))
    x = (columns[..., :-2] + 2 * columns[..., 1:-1] + columns[..., 2:]) / 4
    rows = F.pad(x, (0, 0, 1, 1))
    return (rows[..., :-2, :] + 2 * rows[..., 1:-1, :] + rows[..., 2:, :]) / 4


@dataclass(frozen=True)
class LangevinStep:
    r"""One Langevin step: its settings, and a call that moves chains by it.

    .. math:: x' = \mathrm{clip}\big(x - \eta P\,\mathrm{clamp}(\nabla_x E(x)) +
    \sigma P^{1/2} \varepsilon\big),
              \qquad \varepsilon \sim N(0, I), \quad P = (1 - s) I + s B^2

    with B the `blur` of an image, and P = I for s = 0. With sigma = sqrt(2 eta), no clamp and
    no bounds this is the unadjusted Langevin algorithm for exp(-E). Other pairs sample at
    another temperature: the usual JEM setting (1, 0.01) has 5e-5, which is close to gradient
    descent and gives no exact sample.

    Blurring makes it cheap to change a whole region and expensive to change single pixels: chains
    are slow to enter the checkerboards that a strided network mistakes for data. It is a
    preconditioner: it changes how fast a chain explores each direction, not what the chain
    converges to.

    Attributes:
        step_size: eta > 0, multiplies the gradient. The paper's alpha is 2 * eta.
        noise_std: sigma >= 0, in data units; 0 draws no noise: gradient descent.
        grad_clamp: Clamp each component of the gradient to [-c, c] first (the proximal step of
            JEM++), or None.
        gradient_blur: s in [0, 1), for images (B, C, H, W).
        normalize_gradient: Divide the gradient of each chain by its root mean square first, so
            that a step changes components by eta, however steep the energy is.

    References:
        Welling and Teh (2011), ICML. Grathwohl et al. (2020), arXiv:1912.03263, equation 3.
        Girolami and Calderhead (2011), JRSS B 73, on preconditioned Langevin steps.

    Example:
        >>> LangevinStep(step_size=0.5, noise_std=1.0).temperature
        1.0
    """

    step_size: float
    noise_std: float
    grad_clamp: float | None = None
    gradient_blur: float = 0.0
    normalize_gradient: bool = False

    @property
    def temperature(self) -> float:
        """Temperature sigma^2 / (2 eta) of the density exp(-E / temperature) that chains explore.

        It holds for small steps without clamp and bounds.
        """
        return self.noise_std**2 / (2 * self.step_size)

    def __call__(
        self,
        x: Tensor,
        grad: Tensor,
        *,
        generator: torch.Generator,
        bounds: Bounds | None = None,
    ) -> Tensor:
        """Move chains once, given the gradient of their energies.

        Args:
            x: Chain positions, shape (B, ...).
            grad: dE/dx, same shape.
            generator: Source of the noise, on the device of `x`. The noise is drawn after the
                gradient was computed, also where the bounds then cut it off.
            bounds: (low, high), numbers or tensors that broadcast to one input; the new position
                is clipped to them.

        Returns:
            New positions, shape and dtype of `x`; differentiable where `x` and `grad` are.
        """
        share = self.gradient_blur
        if self.normalize_gradient:
            rms = grad.flatten(1).square().mean(dim=1).sqrt()
            grad = grad / per_row(rms.clamp_min(1e-12), grad)
        if self.grad_clamp is not None:
            grad = grad.clamp(-self.grad_clamp, self.grad_clamp)
        if share:
            grad = (1 - share) * grad + share * blur(blur(grad))
        moved = x - self.step_size * grad
        if self.noise_std:
            noise = torch.empty_like(moved).normal_(generator=generator)
            if share:  # noise of covariance P: the covariances of independent parts add up
                smooth = blur(torch.empty_like(moved).normal_(generator=generator))
                noise = math.sqrt(1 - share) * noise + math.sqrt(share) * smooth
            moved = moved.add_(noise, alpha=self.noise_std)
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
                f"for a batch of {len(x)}, got {tuple(energy.shape)}"
            )
        (grad,) = torch.autograd.grad(energy.sum(), leaf)
    return energy.detach(), grad


def run_chains(
    x: Tensor,
    energy_fn: EnergyFunction,
    steps: Iterable[LangevinStep],
    *,
    generator: torch.Generator,
    bounds: Bounds | None = None,
    after_step: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Run every chain through Langevin steps: the one loop that all chains of this package take.

    Chains do not interact, no parameter receives a gradient, and `x` is neither changed nor kept
    in the graph.

    Args:
        x: Starting positions, shape (B, ...).
        energy_fn: Maps (B, ...) to energies (B,), row by row. Use a model in evaluation mode.
        steps: The steps in order: `[step] * 20` for twenty equal ones, or ones that anneal. None
            at all return `x`.
        generator: Source of the noise, on the device of `x`.
        bounds: See `LangevinStep`.
        after_step: Called with the positions after each step, clipped already; the chains go on
            from the positions that it returns.

    Returns:
        Final positions, shape and dtype of `x`, detached.

    Example:
        >>> step = LangevinStep(step_size=0.1, noise_std=0.0)
        >>> run_chains(
        ...     torch.ones(1, 2),
        ...     lambda x: x.square().sum(1) / 2,
        ...     [step] * 2,
        ...     generator=torch.Generator(),
        ... )
        tensor([[0.8100, 0.8100]])
    """
    for step in steps:
        _, grad = energy_and_gradient(x, energy_fn)
        x = step(x.detach(), grad, generator=generator, bounds=bounds)
        if after_step is not None:
            x = after_step(x)
    return x
