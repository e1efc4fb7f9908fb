"""Scores of the features before the head: distances to the training data, and clipped features."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jem.checks import check_integer, check_number, refuse
from jem.errors import InputError
from jem.model import JEM, on_model
from jem.networks.architectures import Towers
from jem.networks.companion import Companion
from jem.networks.heads import Factored, FactoredHead
from jem.sampling.moments import centred_by_class, ledoit_wolf

Reference = dict[str, Tensor]
"""What a score compares with, as named tensors: N x F numbers for `knn`, F x F for `mahalanobis`,
with N reference inputs of F features."""


def features_of(model: JEM, x: Tensor) -> Tensor:
    """Features of inputs, flattened, in float32 at least.

    Args:
        model: A model. Features are what its network has as a method `features(x)`, or else what
            goes into its last linear layer; of a companion they are those of its classifier.
        x: Inputs, shape (B, *shape).

    Returns:
        Shape (B, F), on the model's device.

    Raises:
        InputError: If the network has neither such a method nor a linear layer.
    """
    x, features = on_model(model, x), getattr(_classifier(model), "features", None)
    if not callable(features) or isinstance(features, nn.Module):  # a part of VGG, not a method
        z = _before_last_linear(model, x)
    else:
        z = features(x)
    z = z.flatten(1)
    return z.float() if z.dtype in (torch.float16, torch.bfloat16) else z


def _classifier(model: JEM) -> nn.Module:
    """The network that classifies: of a companion the given one, of two towers the first."""
    network = model.network
    if isinstance(network, Towers):
        return network.classifier
    if not isinstance(network, Companion):
        return network
    if network.classifier.module is None:
        raise InputError("this score needs a classifier that is a module: use 'combined'")
    return network.classifier.module.to(model.device)


def last_linear(model: JEM) -> nn.Linear:
    """The last linear layer of a network, in the order of its modules.

    Raises:
        InputError: If it has none.
    """
    network = _classifier(model)
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise InputError(
            "this score needs a network with a linear layer or a method `features(x)`, "
            f"and {type(network).__name__} has neither: use a score of the logits"
        )
    return layers[-1]


def plain_head(model: JEM, num_features: int) -> nn.Linear:
    """The last layer of a network whose logits are linear in its features.

    Raises:
        InputError: If they are not: it has the factored head.
    """
    layer = last_linear(model)
    other = any(isinstance(m, FactoredHead | Factored) for m in _classifier(model).modules())
    if other or layer.in_features != num_features:
        raise InputError("this score needs a network whose last layer is linear: use 'combined'")
    return layer


def _before_last_linear(model: JEM, x: Tensor) -> Tensor:
    seen: list[Tensor] = []
    layer = last_linear(model)
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        model.logits(x)
    finally:
        hook.remove()
    if not seen or seen[0].shape[0] != x.shape[0]:  # `len` would fix the batch of a graph
        refuse("network", "pass one row for each input to its last linear layer", "other rows")
    return seen[0]


def neighbour_bank(features: Tensor, labels: Tensor) -> Reference:
    """What `knn` compares with: all training features, scaled to length one.

    Args:
        features: Shape (N, F).
        labels: Not used.
    """
    return {"features": F.normalize(features, dim=1)}


def knn(features: Tensor, bank: Reference, *, k: int | None = None) -> Tensor:
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
    nearest = z[:, :0]
    mode = "use_mm_for_euclid_dist"  # for every size of batch: a graph cannot choose
    for start in range(0, kept.shape[0], 4096):
        rows = (kept[start : start + 4096] - centre).to(z)
        far = torch.cdist(z, rows, compute_mode=mode)
        distances = torch.cat([nearest, far], dim=1)
        nearest = distances.topk(min(k, distances.shape[1]), dim=1, largest=False).values
    return -nearest.amax(dim=1)


def class_gaussians(features: Tensor, labels: Tensor) -> Reference:
    """What `mahalanobis` compares with: a mean for each class that occurs, and one covariance.

    Args:
        features: Features of training inputs, shape (N, F), N >= 1.
        labels: Class indices, shape (N,).

    Returns:
        `means` (K, F) and `whitening` (F, F), after which the covariance within classes, which is
        that of `jem.sampling.moments.ledoit_wolf`, is the identity.
    """
    means, within, _ = centred_by_class(features, labels)
    covariance = ledoit_wolf(within)
    # Constant features leave a factor that float32 cannot hold: a millionth of the mean variance
    # is added.
    floor = (1e-6 * covariance.diagonal().mean()).clamp_min(1e-12)
    covariance.diagonal().add_(floor)
    identity = torch.eye(len(covariance)).to(covariance)
    cholesky = torch.linalg.cholesky(covariance)
    whitening = torch.linalg.solve_triangular(cholesky, identity, upper=False).T
    return {"means": means.to(features), "whitening": whitening.to(features)}


def mahalanobis(features: Tensor, gaussians: Reference) -> Tensor:
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
    means, whitening = (gaussians[name].to(features) for name in ("means", "whitening"))
    centre = means[:1]  # a common offset would cost digits
    white, white_means = (features - centre) @ whitening, (means - centre) @ whitening
    distances = [(white - mean).square().sum(dim=1) for mean in white_means]
    return -torch.stack(distances).amin(dim=0)


# -- scores of a plain head: features that are clipped, or that the head does not see ------------


def clipping(features: Tensor, head: nn.Linear) -> Reference:
    """What `react` needs: the 0.9 quantile of all training features, and the head.

    Args:
        features: Features of training inputs, shape (N, F).
        head: The last layer.
    """
    rank = max(1, round(0.9 * features.numel()))
    return {"limit": features.flatten().kthvalue(rank).values} | _weights(head)


def react(features: Tensor, reference: Reference) -> Tensor:
    r"""Log-density of the logits of clipped features (ReAct).

    .. math:: s(x) = \log \sum_y \exp \left( W \min(h(x), c) + b \right)_y

    Args:
        features: h(x), shape (B, F).
        reference: Of `clipping`.

    Returns:
        Scores, shape (B,), nats; higher = in-distribution.

    References:
        Sun, Guo and Li (2021), arXiv:2111.12797.
    """
    clipped = torch.minimum(features, reference["limit"].to(features))
    return _head_logits(clipped, reference).logsumexp(dim=1)


def head_only(features: Tensor, head: nn.Linear) -> Reference:
    """What `scale` needs: the head.

    Args:
        features: Not used.
        head: The last layer.
    """
    return _weights(head)


def scale(features: Tensor, reference: Reference, *, share: float = 0.15) -> Tensor:
    r"""Log-density of the logits of features that are scaled by how much they are spread (SCALE).

    .. math:: s(x) = \log \sum_y \exp (W r h(x) + b)_y, \qquad
        r = \exp \left( \sum_i h_i(x) \Big/ \sum_{i \in \mathrm{top}} h_i(x) \right)

    Args:
        features: h(x), shape (B, F), those after a ReLU; r is 1 where the largest add up to 0.
        reference: Of `head_only`.
        share: Share of the features, the largest of each input, that make the denominator.

    Returns:
        Scores, shape (B,), nats; higher = in-distribution.

    References:
        Xu et al. (2024), arXiv:2310.00227; its percentile is 100 (1 - `share`).
    """
    check_number("share", share, "(0, 1]")
    size = features.shape[1]
    top = features.topk(max(1, size - round(size * (1 - share))), dim=1).values.sum(dim=1)
    ratio = torch.where(top > 0, features.sum(dim=1) / top, 0.0)
    return _head_logits(features * ratio.exp()[:, None], reference).logsumexp(dim=1)


def residual_space(features: Tensor, head: nn.Linear) -> Reference:
    """What `vim` needs: the directions in which training features vary least, and the head.

    Args:
        features: Features of training inputs, shape (N, F).
        head: The last layer.
    """
    reference, size = _weights(head), features.shape[1]
    weight, bias = reference["weight"].double(), reference["bias"].double()
    origin = -torch.linalg.pinv(weight) @ bias
    centred = features.double() - origin
    kept = 1000 if size >= 2048 else 512 if size >= 768 else size // 2
    least = torch.linalg.eigh(centred.T @ centred / len(centred)).eigenvectors[:, : size - kept]
    scale = _head_logits(features, reference).amax(dim=1).double().mean()
    scale = scale / (centred @ least).norm(dim=1).mean().clamp_min(1e-12)
    reference |= {"origin": origin, "residual": least * scale}
    return {name: value.to(features) for name, value in reference.items()}


def vim(features: Tensor, reference: Reference) -> Tensor:
    r"""Log-density less the virtual logit: how far features lie off those of training (ViM).

    .. math:: s(x) = \log \sum_y \exp f(x)[y] - \alpha \lVert R^T (h(x) - o) \rVert_2

    Args:
        features: h(x), shape (B, F).
        reference: Of `residual_space`.

    Returns:
        Scores, shape (B,), nats; higher = in-distribution.

    References:
        Wang et al. (2022), arXiv:2203.10807.
    """
    origin, residual = (reference[name].to(features) for name in ("origin", "residual"))
    virtual: Tensor = ((features - origin) @ residual).norm(dim=1)
    return _head_logits(features, reference).logsumexp(dim=1).sub(virtual)


def _weights(head: nn.Linear) -> Reference:
    weight = head.weight.detach()
    bias = weight.new_zeros(len(weight)) if head.bias is None else head.bias.detach()
    return {"weight": weight.clone(), "bias": bias.clone()}


def _head_logits(features: Tensor, reference: Reference) -> Tensor:
    logits: Tensor = F.linear(
        features, reference["weight"].to(features), reference["bias"].to(features)
    )
    return logits
