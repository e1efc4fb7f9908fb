"""Where chains begin that complete an input: at what a start makes of the part that is known."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jem.sampling.base_distributions import BaseDistribution, GaussianBase
from jem.sampling.langevin import clip_to_bounds


def complete_from(
    start: BaseDistribution,
    x: Tensor,
    known: Tensor,
    labels: Tensor | None = None,
    *,
    generator: torch.Generator,
) -> Tensor:
    r"""Keep what is known, and draw the rest: given it from class Gaussians, else from the start.

    For N(mu, W W^T + diag(d)), with K the known components and
    S = (I + W_K^T diag(d_K)^{-1} W_K)^{-1},

    .. math:: z \mid x_K \sim N\big(S W_K^\top \mathrm{diag}(d_K)^{-1} (x_K - \mu_K),\; S\big),
              \qquad x_U = \mu_U + W_U z + \sqrt{d_U}\, \epsilon

    Args:
        start: Where chains of the model begin.
        x: Inputs, shape (B, *shape). What stands in unknown places is never looked at.
        known: Booleans, shape of `x`.
        labels: Classes, shape (B,); None draws them, from class Gaussians given what is known.
        generator: Source of all randomness, on the device of `x`.

    Returns:
        Shape, dtype and device of `x`.
    """
    if isinstance(start, GaussianBase):
        drawn = _from_gaussians(start, x, known, labels, generator)
    else:
        drawn = start.sample(len(x), labels, generator=generator)
    return torch.where(known, x, drawn.to(x))


def _from_gaussians(
    start: GaussianBase,
    x: Tensor,
    known: Tensor,
    labels: Tensor | None,
    generator: torch.Generator,
) -> Tensor:
    """Draw all components given the known ones, in double precision on the CPU."""
    flat_known = known.flatten(1).cpu()
    flat = x.flatten(1).cpu().double().masked_fill(~flat_known, 0.0)
    given = [_given(start, k, flat, flat_known) for k in range(len(start.means))]
    if labels is None:
        log_weights = torch.stack([part.log_evidence for part in given], dim=1)
        log_weights = log_weights + start.frequencies.double().log()
        weights = log_weights.softmax(dim=1).float().to(generator.device)
        labels = torch.multinomial(weights, 1, generator=generator).squeeze(1)
    labels = labels.cpu()
    mean, root = (
        torch.stack(parts, dim=1)[torch.arange(len(x)), labels]
        for parts in zip(*(part[:2] for part in given), strict=True)
    )

    def normal(*size: int) -> Tensor:
        return (
            torch.empty(size, device=generator.device).normal_(generator=generator).cpu().double()
        )

    z = normal(*mean.shape)[:, :, None]
    z = mean + torch.linalg.solve_triangular(root.mT, z, upper=True).squeeze(2)
    drawn = torch.einsum("bdr,br->bd", start.factors.double()[labels], z)
    drawn = drawn + normal(*flat.shape) * start.variances.double()[labels].sqrt()
    drawn = drawn.view(x.shape) + start.means.double()[labels]
    return clip_to_bounds(drawn.to(x), start.bounds)


class _Given(NamedTuple):
    """What the known components of B inputs say of one Gaussian's latent z."""

    mean: Tensor  # (B, R)
    root: Tensor  # (B, R, R) Cholesky factor of the precision
    log_evidence: Tensor  # (B,) log-density of the known components, up to a constant


def _given(start: GaussianBase, k: int, flat: Tensor, known: Tensor) -> _Given:
    factor, variance = start.factors[k].double(), start.variances[k].double()
    weight = known / variance
    residual = (flat - start.means[k].flatten()) * known
    precision = torch.einsum("dr,bd,ds->brs", factor, weight, factor)
    root = torch.linalg.cholesky(precision + torch.eye(factor.shape[1], dtype=factor.dtype))
    pull = (residual * weight) @ factor
    mean = torch.cholesky_solve(pull[:, :, None], root).squeeze(2)
    quadratic = (residual.square() * weight).sum(dim=1) - (pull * mean).sum(dim=1)
    log_det = 2 * root.diagonal(dim1=1, dim2=2).log().sum(dim=1)
    log_det = log_det + torch.where(known, variance.log(), 0.0).sum(dim=1)
    return _Given(mean, root, -0.5 * (quadratic + log_det))
