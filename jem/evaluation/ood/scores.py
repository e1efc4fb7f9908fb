"""Scores that tell familiar inputs from foreign ones, each higher for in-distribution inputs.

Inputs are in the network's own units (`model.preprocess` makes them from raw data). Scores run in
evaluation mode, work inside `torch.no_grad` and `torch.inference_mode` too, and leave the model as
they found it: mode, flags and gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from jem.errors import InputError
from jem.evaluation.ood.features import (
    FITS,
    Reference,
    as_batch,
    fitted,
    knn,
    mahalanobis,
)
from jem.model import JEM, check_model, evaluation_mode, inference, on_model
from jem.sampling.langevin import LangevinStep, energy_and_gradient, sgld_chain

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

# The step of `energy_change` for a model without sampler settings: inputs on the scale of one.
DEFAULT_STEP = LangevinStep(step_size=0.1, noise_std=0.0, max_rms=0.1)


def _class_logits(model: JEM, x: Tensor) -> Tensor:
    with inference(model):
        logits = model.logits(x)
    if logits.shape[1] == 1:
        raise InputError(
            "this score needs classes, but the model has one output (K = 1): "
            "use 'log_density', 'approximate_mass' or 'energy_change'"
        )
    return logits


def log_density(model: JEM, x: Tensor) -> Tensor:
    r"""Unnormalised log-density, in the OOD literature the (negative) energy score.

    .. math:: s(x) = \log \sum_y \exp f(x)[y] = \log p(x) + \log Z

    Args:
        model: The model; K = 1 too.
        x: Inputs, shape (B, *shape).

    Returns:
        Scores, shape (B,), nats; higher = in-distribution.

    References:
        Grathwohl et al. (2020), arXiv:1912.03263, section 5.3. Liu et al. (2020),
        arXiv:2010.03759.
    """
    with inference(model):
        return model.log_density(x)


def max_probability(model: JEM, x: Tensor) -> Tensor:
    r"""Largest class probability, s(x) = max_y p(y|x).

    In single precision it is 1 for every input whose margin exceeds about 17 nats: those tie.

    Args:
        model: The model, K >= 2.
        x: Inputs, shape (B, *shape).

    Returns:
        Scores, shape (B,), in [1/K, 1]; higher = in-distribution.

    References:
        Hendrycks and Gimpel (2017), arXiv:1610.02136.
    """
    return _class_logits(model, x).softmax(dim=1).amax(dim=1)


def max_logit(model: JEM, x: Tensor) -> Tensor:
    """Largest logit, s(x) = max_y f(x)[y]: minus the lowest joint energy.

    Args:
        model: The model, K >= 2.
        x: Inputs, shape (B, *shape).

    Returns:
        Scores, shape (B,), nats; higher = in-distribution.

    References:
        Hendrycks et al. (2022), arXiv:1911.11132.
    """
    return _class_logits(model, x).amax(dim=1)


def entropy(model: JEM, x: Tensor) -> Tensor:
    r"""Minus the entropy of the class probabilities.

    .. math:: s(x) = \sum_y p(y|x) \log p(y|x)

    Args:
        model: The model, K >= 2.
        x: Inputs, shape (B, *shape).

    Returns:
        Scores, shape (B,), nats, in [-log K, 0]; higher = in-distribution.
    """
    log_p = _class_logits(model, x).log_softmax(dim=1)
    entropies: Tensor = torch.special.entr(log_p.exp()).sum(dim=1)
    return -entropies


def gen(model: JEM, x: Tensor, *, gamma: float = 0.1, num_classes: int = 100) -> Tensor:
    r"""Minus the generalised entropy (GEN) of the M largest class probabilities.

    .. math:: s(x) = -\sum_{m=1}^{M} p_m^\gamma (1 - p_m)^\gamma, \qquad p_1 \ge p_2 \ge \dots

    1 - p_1 is summed from the other classes, so that confident inputs do not tie by rounding.

    Args:
        model: The model, K >= 2.
        x: Inputs, shape (B, *shape).
        gamma: Exponent in (0, 1); the smaller, the more the rare classes count.
        num_classes: M >= 1; all classes where K is smaller.

    Returns:
        Scores, shape (B,), at most 0; higher = in-distribution.

    References:
        Liu, Lochman and Zach (2023), GEN: pushing the limits of softmax-based out-of-distribution
        detection, CVPR.
    """
    if not 0 < gamma < 1:
        raise InputError(f"`gamma` must lie in (0, 1), but got {gamma}")
    if num_classes < 1:
        raise InputError(f"`num_classes` must be at least 1, but got {num_classes}")
    logits = _class_logits(model, x).sort(dim=1, descending=True).values
    log_p = logits.log_softmax(dim=1)
    log_rest = torch.log1p(-log_p[:, 1:].exp())
    log_rest_first = log_p[:, 1:].logsumexp(dim=1, keepdim=True)
    terms = log_p + torch.cat([log_rest_first, log_rest], dim=1)
    return -(gamma * terms[:, :num_classes]).exp().sum(dim=1)


def approximate_mass(model: JEM, x: Tensor) -> Tensor:
    r"""Minus the norm of the score function: typical points lie where the density is flat.

    .. math:: s(x) = -\lVert \nabla_x \log p(x) \rVert_2

    Args:
        model: The model; K = 1 too.
        x: Inputs, shape (B, *shape).

    Returns:
        Scores, shape (B,), nats per unit of x, at most 0; higher = in-distribution.

    References:
        Grathwohl et al. (2020), arXiv:1912.03263, section 5.3.
    """
    with evaluation_mode(model):
        energy, grad = energy_and_gradient(x, model.energy)
    norm: Tensor = torch.linalg.vector_norm(grad.flatten(1), dim=1, dtype=energy.dtype)
    return -norm


def energy_change(model: JEM, x: Tensor, *, num_steps: int = 5) -> Tensor:
    r"""Energy lost on a short noise-free Langevin run from x: foreign inputs roll downhill.

    .. math:: s(x) = E(x_T) - E(x), \qquad x_{t+1} = x_t - \eta \nabla_x E(x_t)

    The steps are those of `model.sampler` (step size, clamp, cap) inside `model.domain`; without
    sampler settings eta is 0.1 and the root mean square of a step is capped at 0.1.

    Args:
        model: The model; K = 1 too.
        x: Inputs, shape (B, *shape).
        num_steps: T >= 1.

    Returns:
        Scores, shape (B,), nats, mostly negative; higher = in-distribution.

    References:
        Nijkamp et al. (2019), arXiv:1904.09770, for short runs from the model.
    """
    if num_steps < 1:
        raise InputError(f"`num_steps` must be at least 1, but got {num_steps}")
    step = DEFAULT_STEP if model.sampler is None else replace(model.sampler.step, noise_std=0.0)
    with inference(model):
        moved = sgld_chain(
            x,
            model.energy,
            [step] * num_steps,
            generator=torch.Generator(x.device),
            bounds=model.bounds(x.device),
        )
        return model.energy(moved) - model.energy(x)


ScoreFunction = Callable[..., Tensor]
Option = int | float | None

SCORES: dict[str, ScoreFunction] = {
    "log_density": log_density,
    "max_probability": max_probability,
    "max_logit": max_logit,
    "entropy": entropy,
    "gen": gen,
    "approximate_mass": approximate_mass,
    "energy_change": energy_change,
    "knn": knn,
    "mahalanobis": mahalanobis,
}

FROM_LOGITS = ("log_density", "max_probability", "max_logit", "entropy", "gen")
"""Scores that are functions of the logits: see `score_logits`."""

OF_DENSITY = ("log_density", "approximate_mass", "energy_change")
"""Scores of the density alone, which a network that ends in a softmax does not have."""

_LOGITS = JEM(nn.Identity())  # the model whose logits are its inputs


def score_logits(logits: Tensor, name: str = "log_density", **options: Option) -> Tensor:
    """Score inputs whose logits are at hand, without another pass through the network.

    Args:
        logits: f(x), shape (B, K).
        name: One of `FROM_LOGITS`.
        options: Passed to the score, such as `gamma` of `gen`.

    Returns:
        Scores, shape (B,), higher = in-distribution.

    Raises:
        InputError: If the score is unknown, or needs more than the logits.

    Example:
        >>> score_logits(torch.tensor([[3.0, 1.0]]), "max_logit")
        tensor([3.])
    """
    function = _with_options(name, options)
    if name not in FROM_LOGITS:
        raise InputError(f"the score '{name}' needs inputs and network, not logits alone")
    return function(_LOGITS, logits)


def score(
    model: JEM,
    x: Tensor | ArrayLike,
    name: str = "log_density",
    *,
    reference: Reference | None = None,
    batch_size: int = 256,
    **options: Option,
) -> Tensor:
    """Score any number of inputs with bounded memory.

    Args:
        model: The model.
        x: A batch (B, *shape) or one input, tensor or array, floats in the network's units; moved
            to the model's device and precision a batch at a time.
        name: A key of `SCORES`.
        reference: (x_train, y_train) for the scores on features, or what was fitted on them; the
            other scores do not look at it.
        batch_size: Inputs computed at once.
        options: Passed to the score, such as `k` of `knn`.

    Returns:
        Scores, shape (B,), higher = in-distribution, on the device of `x`; one input gives B = 1.
        NaN where input or network is: `OODDetector` and `ood_metrics` refuse these.

    Raises:
        InputError: If the score is unknown, lacks its reference, has no such option or does not
            suit the model, or the inputs do not fit.

    Example:
        >>> model = JEM(torch.nn.Linear(2, 3))
        >>> score(model, torch.zeros(5, 2), "entropy").shape, score(model, torch.zeros(2)).shape
        (torch.Size([5]), torch.Size([1]))
    """
    check_model(model)
    x, function = as_batch(x, model.input_shape), _with_options(name, options)
    if batch_size < 1:
        raise InputError(f"`batch_size` must be at least 1, but got {batch_size}")
    if not len(x):
        return x.new_empty(0)
    with torch.inference_mode(False), torch.no_grad():
        if name in FITS:
            kind: Any = FITS[name]
            function = partial(function, reference=fitted(model, kind, reference, batch_size))
        batches = (on_model(model, rows) for rows in torch.split(x, batch_size))
        return torch.cat([function(model, rows) for rows in batches]).to(x.device)


def named(name: str) -> ScoreFunction:
    """Return the score of that name.

    Args:
        name: A key of `SCORES`.

    Raises:
        InputError: If there is none.
    """
    if name not in SCORES:
        raise InputError(f"unknown OOD score {name!r}: expected one of {', '.join(SCORES)}")
    return SCORES[name]


def _with_options(name: str, options: dict[str, Option]) -> ScoreFunction:
    """The score with its options set, which it must have."""
    function = named(name)
    known = [*signature(function).parameters][2:]  # after model and x
    for option in options:
        if option not in known or option == "reference":
            raise InputError(f"the score '{name}' has no option `{option}`")
    return partial(function, **options)
