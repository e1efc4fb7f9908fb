"""Score matching: the gradient of the energy at noisy data, against the noise or by its curvature.

Nothing is sampled. The energy that fits is that of the data with noise, up to a constant.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from jem.checks import refuse
from jem.model import JEM, evaluation_mode
from jem.objectives.base import Batch, Energies, Mean, Terms
from jem.sampling.langevin import per_row

STRIDE = 0.1
"""Distance of the two points of a finite difference from the noisy input, in units of sigma."""
MOST_AXES = 64
"""Numbers of an input up to which the exact trace is offered: each takes a backward pass."""


def score_error(
    energy: Callable[[Tensor], Tensor], x: Tensor, noise: Tensor, std: Tensor
) -> Tensor:
    r"""Error of the score at noisy inputs, by differentiating the energy twice.

    .. math:: \tfrac{1}{D}\,\| \sigma \nabla_x E(x + \sigma\varepsilon) - \varepsilon \|^2

    Its mean is 1 where the energy is constant, and 2 sigma^2 / D times the loss of Vincent. With
    sigma drawn from several, what minimises the mean is -log of the density of data with noise,
    sigma being drawn there with probabilities that are proportional to sigma^2.

    Args:
        energy: Maps inputs (B, *shape) to E, shape (B,), nats, row by row.
        x: Data, shape (B, *shape).
        noise: Standard normal epsilon, shape (B, *shape).
        std: sigma of each row, shape (B,), in units of the data.

    Returns:
        Error of each row, shape (B,), >= 0, with a graph.

    References:
        Vincent (2011), A connection between score matching and denoising autoencoders, equation
        11. Song and Kingma (2021), arXiv:2101.03288, section 3.
    """
    sigma = per_row(std, x)
    noisy = (x + sigma * noise).detach().requires_grad_()
    (slope,) = torch.autograd.grad(energy(noisy).sum(), noisy, create_graph=True)
    return (sigma * slope - noise).square().flatten(1).mean(dim=1)


def difference_error(
    energy: Callable[[Tensor], Tensor], x: Tensor, noise: Tensor, std: Tensor, direction: Tensor
) -> Tensor:
    r"""The same error along one direction, by energies at two points: no second derivative.

    .. math:: \Big( \sigma\, \frac{E(\tilde x + h u) - E(\tilde x - h u)}{2 h} -
              u \cdot \varepsilon \Big)^2, \qquad \tilde x = x + \sigma\varepsilon, \quad
              h = 0.1\,\sigma

    Its mean over directions is `score_error`, up to third derivatives of E times h^2.

    Args:
        energy: Maps inputs (B, *shape) to E, shape (B,), nats, row by row.
        x: Data, shape (B, *shape).
        noise: Standard normal epsilon, shape (B, *shape).
        std: sigma of each row, shape (B,), in units of the data.
        direction: u times any length, shape (B, *shape); standard normal makes all alike.

    Returns:
        Error of each row, shape (B,), >= 0, with a graph.

    References:
        Pang et al. (2020), Efficient learning of generative models via finite-difference score
        matching, arXiv:2007.03317.
    """
    sigma, length = per_row(std, x), direction.flatten(1).norm(dim=1)
    unit = direction / per_row(length, x)
    noisy, stride = x + sigma * noise, STRIDE * sigma * unit
    behind, ahead = energy(torch.cat([noisy - stride, noisy + stride])).chunk(2)
    along = (unit * noise).flatten(1).sum(dim=1)
    return ((ahead - behind) / (2 * STRIDE) - along).square()


def curvature_error(
    energy: Callable[[Tensor], Tensor],
    x: Tensor,
    noise: Tensor,
    std: Tensor,
    directions: Iterable[Tensor],
) -> Tensor:
    r"""The same error by the curvature of the energy: where the noise points to is not used.

    .. math:: 1 + \tfrac{2 \sigma^2}{D} \Big( \tfrac12 \|\nabla E(\tilde x)\|^2 -
              \sum_v v^\top \nabla^2 E(\tilde x)\, v \Big), \qquad
              \tilde x = x + \sigma\varepsilon

    With the D axes as directions, this is implicit score matching with the exact trace; with one
    direction of random signs it is sliced score matching with reduced variance. The mean over
    noise and directions is that of `score_error`.

    Args:
        energy: Maps inputs (B, *shape) to E, shape (B,), nats, row by row.
        x: Data, shape (B, *shape).
        noise: Standard normal epsilon, shape (B, *shape).
        std: sigma of each row, shape (B,), in units of the data.
        directions: v, each of shape (B, *shape), whose sum of v v^T has the identity as its mean.

    Returns:
        Error of each row, shape (B,), with a graph; a single one may be negative.

    References:
        Hyvarinen (2005), JMLR 6, theorem 1. Song et al. (2019), Sliced score matching,
        arXiv:1905.07088, equation 8.
    """
    noisy = (x + per_row(std, x) * noise).detach().requires_grad_()
    (slope,) = torch.autograd.grad(energy(noisy).sum(), noisy, create_graph=True)
    error = slope.square().flatten(1).sum(dim=1) / 2
    for v in directions:
        (bend,) = torch.autograd.grad((slope * v).sum(), noisy, create_graph=True)
        error = error - (v * bend).flatten(1).sum(dim=1)
    return 1 + 2 * std.square() / x[0].numel() * error


@dataclass(frozen=True)
class ScoreMatching:
    """The weighted mean error of the score; the log calls it `score_error`.

    It is 1 for an energy that is constant, and best where it is lowest; it has no zero. Energies
    are computed in evaluation mode, so that rows do not interact.

    Attributes:
        score_noise: Values of sigma, in units of the data; each row draws one.
        score_form: `exact`, `score_error`; `difference`, `difference_error`; or `sliced` or
            `trace`, `curvature_error` along one direction of random signs or along every axis.
    """

    score_noise: tuple[float, ...] = (0.1,)
    score_form: Literal["exact", "difference", "sliced", "trace"] = "exact"

    @property
    def needs(self) -> frozenset[str]:
        """Gradients of inputs, by which samples are drawn; second derivatives but for one form."""
        curvature = set() if self.score_form == "difference" else {"curvature"}
        return frozenset({"input_gradients"} | curvature)

    def __call__(
        self,
        model: JEM,
        batch: Batch,
        energies: Energies,
        *,
        weight: float,
        generator: torch.Generator,
        mean: Mean,
    ) -> Terms:
        """The loss and its term, which is unweighted.

        Raises:
            InputError: If the form is `trace` and inputs have more than 64 numbers.
        """
        x = batch.x_density
        if self.score_form == "trace" and (size := x[0].numel()) > MOST_AXES:
            wanted = f"have at most {MOST_AXES} numbers for the `score_form` 'trace'"
            refuse("inputs", wanted, size, "take 'sliced'")
        drawn = torch.randint(
            len(self.score_noise), (len(x),), generator=generator, device=x.device
        )
        std = x.new_tensor(self.score_noise)[drawn]
        noise = torch.empty_like(x).normal_(generator=generator)
        with evaluation_mode(model):
            if self.score_form == "exact":
                error = score_error(model.energy, x, noise, std)
            elif self.score_form == "trace":
                axes = torch.eye(x[0].numel()).to(x).view(-1, 1, *x.shape[1:])
                error = curvature_error(model.energy, x, noise, std, axes)
            elif self.score_form == "sliced":
                signs = torch.empty_like(x).bernoulli_(generator=generator) * 2 - 1
                error = curvature_error(model.energy, x, noise, std, [signs])
            else:
                direction = torch.empty_like(x).normal_(generator=generator)
                with torch.autocast(x.device.type, enabled=False):  # small differences
                    error = difference_error(model.energy, x, noise, std, direction)
        loss = mean(error)
        return Terms(weight * loss, {"score_error": loss})
