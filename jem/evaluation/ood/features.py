"""OOD scores on the features before the head: distances to the training data there.

What a score keeps of the training features is fitted once, as named tensors: N x F numbers for
`knn`, F x F for `mahalanobis`, with N training inputs of F features.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from jem.checks import check_integer
from jem.errors import InputError
from jem.model import JEM, on_model
from jem.sampling.moments import tied_moments

Fit = dict[str, Tensor]
"""What a score keeps of the features of the training data."""


def features_of(model: JEM, x: Tensor) -> Tensor:
    """Features of inputs, flattened, in float32 at least.

    Args:
        model: A model whose network gives `features(x)`.
        x: Inputs, shape (B, *shape).

    Returns:
        Shape (B, F), on the model's device.

    Raises:
        InputError: If the network has no such method.
    """
    features = getattr(model.network, "features", None)
    if not callable(features):
        raise InputError(
            "this score needs a network with a method `features(x)`, "
            f"which {type(model.network).__name__} lacks: use a score of the logits"
        )
    z: Tensor = features(on_model(model, x)).flatten(1)
    return z.float() if z.dtype in (torch.float16, torch.bfloat16) else z


def neighbour_bank(features: Tensor, labels: Tensor) -> Fit:
    """What `knn` compares with: all training features, scaled to length one.

    Args:
        features: Shape (N, F).
        labels: Not used.
    """
    return {"features": F.normalize(features, dim=1)}


def knn(features: Tensor, bank: Fit, *, k: int | None = None) -> Tensor:
    r"""Minus the distance to the k-th nearest training input, on features of length one.

    .. math:: s(x) = -\lVert z - z_{(k)} \rVert_2, \qquad z = h(x) / \lVert h(x) \rVert_2

    Args:
        features: h(x), shape (B, F).
        bank: Of `neighbour_bank`.
        k: Which neighbour, 1 <= k <= N; None takes the root of N, at most 50.

    Returns:
        Scores, shape (B,), in [-2, 0]; higher = in-distribution.

    References:
        Sun et al. (2022), arXiv:2204.06507.
    """
    kept = bank["features"]
    k = min(50, math.isqrt(len(kept))) if k is None else k
    check_integer("k", k, 1, len(kept))
    # Features far from the origin differ in their last digits only: their mean is taken off first.
    centre = kept.mean(dim=0)
    z = F.normalize(features, dim=1) - centre.to(features)
    nearest = z.new_empty(len(z), 0)
    for rows in torch.split(kept, 4096):
        distances = torch.cat([nearest, torch.cdist(z, (rows - centre).to(z))], dim=1)
        nearest = distances.topk(min(k, distances.shape[1]), dim=1, largest=False).values
    return -nearest.amax(dim=1)


def class_gaussians(features: Tensor, labels: Tensor) -> Fit:
    """What `mahalanobis` compares with: a mean for each class that occurs, and one covariance.

    Args:
        features: Features of training inputs, shape (N, F), N >= 1.
        labels: Class indices, shape (N,).

    Returns:
        `means` (K, F) and `cholesky` (F, F), the lower triangular factor of the covariance, both
        of `jem.sampling.moments.tied_moments`.
    """
    means, covariance = tied_moments(features, labels)
    # Constant features leave a factor that float32 cannot hold: a millionth of the mean variance
    # is added.
    floor = (1e-6 * covariance.diagonal().mean()).clamp_min(1e-12)
    covariance.diagonal().add_(floor)
    cholesky = torch.linalg.cholesky(covariance)
    return {"means": means.to(features), "cholesky": cholesky.to(features)}


def mahalanobis(features: Tensor, gaussians: Fit) -> Tensor:
    r"""Minus the squared Mahalanobis distance of the features to the nearest class mean.

    .. math:: s(x) = -\min_c \, (h(x) - \mu_c)^T \Sigma^{-1} (h(x) - \mu_c)

    Args:
        features: h(x), shape (B, F).
        gaussians: Of `class_gaussians`.

    Returns:
        Scores, shape (B,), no unit, at most 0; higher = in-distribution.

    References:
        Lee et al. (2018), arXiv:1807.03888.
    """
    means, cholesky = (gaussians[name].to(features) for name in ("means", "cholesky"))
    centred = torch.cat([features, means]) - means[:1]  # a common offset would cost digits
    white = torch.linalg.solve_triangular(cholesky, centred.T, upper=False).T
    distances = [
        (white[: len(features)] - mean).square().sum(dim=1) for mean in white[len(features) :]
    ]
    return -torch.stack(distances).amin(dim=0)
