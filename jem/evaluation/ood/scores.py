"""OOD scores, each higher for in-distribution inputs: what each needs, and how it is computed.

A score of your own is one function here and one line in `SCORES`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from inspect import Parameter, signature
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from jem.checks import check_integer, check_number
from jem.errors import InputError
from jem.evaluation.ood.fisher import combined, log_p_values, p_value_maps
from jem.model import JEM, on_model
from jem.sampling.langevin import LangevinStep, energy_and_gradient, sgld_chain
from jem.sampling.moments import tied_moments

Fit = dict[str, Tensor]
"""What a score keeps of the features of the training data, fitted once, as named tensors: N x F
numbers for `knn`, F x F for `mahalanobis`, with N training inputs of F features."""

# The step of `energy_change` for a model without sampler settings: inputs on the scale of one.
DEFAULT_STEP = LangevinStep(step_size=0.1, noise_std=0.0, max_rms=0.1)

REASONS = ("", "unlike the data", "between classes", "both")
"""Why an input is flagged, or "" if it is not: low density is 1, low confidence 2, both add up."""


@dataclass(frozen=True)
class Score:
    """An OOD score: what it needs of the network decides what its function takes.

    Attributes:
        needs: "logits": `function(logits)`, the logits of shape (B, K). "features":
            `function(features)`, the features of shape (B, F). "input_gradients":
            `function(x, model)`, inputs of shape (B, *shape) with the model.
        function: Gives scores of shape (B,). Its options are keywords.
        fit: `fit(logits, labels)`, or of features, gives the tensors that the function compares
            with; it then takes them as a second argument.
        fitted_on: The part of the data that `fit` is for.
        of_density: Whether the density counts. Such a score works with one output (K = 1), and
            not on a network that ends in a softmax.
        reason: What a flagged input is, as an index of `REASONS`.
        terms: For a sum of two scores, one of the density and one of the confidence: the
            function that gives both, shape (B, 2). Those that are low then say the reason.
    """

    needs: Literal["logits", "features", "input_gradients"]
    function: Callable[..., Tensor]
    fit: Callable[[Tensor, Tensor], Fit] | None = None
    fitted_on: Literal["train", "validation"] = "train"
    of_density: bool = False
    reason: int = 1
    terms: Callable[..., Tensor] | None = None

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options of the function."""
        parameters = signature(self.function).parameters.values()
        return tuple(p.name for p in parameters if p.kind is Parameter.KEYWORD_ONLY)


def log_density(logits: Tensor) -> Tensor:
    r"""Unnormalised log-density, in the OOD literature the (negative) energy score.

    .. math:: s(x) = \log \sum_y \exp f(x)[y] = \log p(x) + \log Z

    Args:
        logits: f(x), shape (B, K); K = 1 too.

    Returns:
        Scores, shape (B,), nats; higher = in-distribution.

    References:
        Grathwohl et al. (2020), arXiv:1912.03263, section 5.3. Liu et al. (2020),
        arXiv:2010.03759.
    """
    return logits.logsumexp(dim=1)


def max_probability(logits: Tensor) -> Tensor:
    r"""Largest class probability, s(x) = max_y p(y|x).

    In single precision it is 1 for every input whose margin exceeds about 17 nats: those tie.

    Args:
        logits: f(x), shape (B, K).

    Returns:
        Scores, shape (B,), in [1/K, 1]; higher = in-distribution.

    References:
        Hendrycks and Gimpel (2017), arXiv:1610.02136.
    """
    return logits.softmax(dim=1).amax(dim=1)


def max_logit(logits: Tensor) -> Tensor:
    """Largest logit, s(x) = max_y f(x)[y]: minus the lowest joint energy.

    Args:
        logits: f(x), shape (B, K).

    Returns:
        Scores, shape (B,), nats; higher = in-distribution.

    References:
        Hendrycks et al. (2022), arXiv:1911.11132.
    """
    return logits.amax(dim=1)


def entropy(logits: Tensor) -> Tensor:
    r"""Minus the entropy of the class probabilities.

    .. math:: s(x) = \sum_y p(y|x) \log p(y|x)

    Args:
        logits: f(x), shape (B, K).

    Returns:
        Scores, shape (B,), nats, in [-log K, 0]; higher = in-distribution.
    """
    entropies: Tensor = torch.special.entr(logits.softmax(dim=1)).sum(dim=1)
    return -entropies


def gen(logits: Tensor, *, gamma: float = 0.1, num_classes: int = 100) -> Tensor:
    r"""Minus the generalised entropy (GEN) of the M largest class probabilities.

    .. math:: s(x) = -\sum_{m=1}^{M} p_m^\gamma (1 - p_m)^\gamma, \qquad p_1 \ge p_2 \ge \dots

    1 - p_1 is summed from the other classes, so that confident inputs do not tie by rounding.

    Args:
        logits: f(x), shape (B, K).
        gamma: Exponent in (0, 1); the smaller, the more the rare classes count.
        num_classes: M >= 1; all classes where K is smaller.

    Returns:
        Scores, shape (B,), at most 0; higher = in-distribution.

    References:
        Liu, Lochman and Zach (2023), GEN: pushing the limits of softmax-based out-of-distribution
        detection, CVPR.
    """
    check_number("gamma", gamma, "(0, 1)")
    check_integer("num_classes", num_classes, 1)
    log_p = logits.sort(dim=1, descending=True).values.log_softmax(dim=1)
    log_rest = torch.log1p(-log_p[:, 1:].exp())
    log_rest_first = log_p[:, 1:].logsumexp(dim=1, keepdim=True)
    terms = log_p + torch.cat([log_rest_first, log_rest], dim=1)
    return -(gamma * terms[:, :num_classes]).exp().sum(dim=1)


def approximate_mass(x: Tensor, model: JEM) -> Tensor:
    r"""Minus the norm of the score function: typical points lie where the density is flat.

    .. math:: s(x) = -\lVert \nabla_x \log p(x) \rVert_2

    Args:
        x: Inputs, shape (B, *shape).
        model: The model; K = 1 too.

    Returns:
        Scores, shape (B,), nats per unit of x, at most 0; higher = in-distribution.

    References:
        Grathwohl et al. (2020), arXiv:1912.03263, section 5.3.
    """
    energy, grad = energy_and_gradient(x, model.energy)
    norm: Tensor = torch.linalg.vector_norm(grad.flatten(1), dim=1, dtype=energy.dtype)
    return -norm


def energy_change(x: Tensor, model: JEM, *, num_steps: int = 5) -> Tensor:
    r"""Energy lost on a short noise-free Langevin run from x: OOD inputs roll downhill.

    .. math:: s(x) = E(x_T) - E(x), \qquad x_{t+1} = x_t - \eta \nabla_x E(x_t)

    The steps are those of `model.sampler` (step size, clamp, cap) inside `model.domain`; without
    sampler settings eta is 0.1 and the root mean square of a step is capped at 0.1.

    Args:
        x: Inputs, shape (B, *shape).
        model: The model; K = 1 too.
        num_steps: T >= 1.

    Returns:
        Scores, shape (B,), nats, mostly negative; higher = in-distribution.

    References:
        Nijkamp et al. (2019), arXiv:1904.09770, for short runs from the model.
    """
    check_integer("num_steps", num_steps, 1)
    step = DEFAULT_STEP if model.sampler is None else replace(model.sampler.step, noise_std=0.0)
    moved = sgld_chain(
        x,
        model.energy,
        [step] * num_steps,
        generator=torch.Generator(x.device),
        bounds=model.bounds(x.device),
    )
    return model.energy(moved) - model.energy(x)


# -- scores of the features before the head: distances to the training data there ---------------


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


SCORES: dict[str, Score] = {
    "combined": Score(
        "logits",
        combined,
        fit=p_value_maps,
        fitted_on="validation",
        of_density=True,
        terms=log_p_values,
    ),
    "log_density": Score("logits", log_density, of_density=True),
    "max_probability": Score("logits", max_probability, reason=2),
    "max_logit": Score("logits", max_logit),
    "entropy": Score("logits", entropy, reason=2),
    "gen": Score("logits", gen, reason=2),
    "approximate_mass": Score("input_gradients", approximate_mass, of_density=True),
    "energy_change": Score("input_gradients", energy_change, of_density=True),
    "knn": Score("features", knn, fit=neighbour_bank),
    "mahalanobis": Score("features", mahalanobis, fit=class_gaussians),
}
"""Name -> score."""
