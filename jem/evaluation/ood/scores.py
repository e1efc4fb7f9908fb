"""OOD scores, each higher for in-distribution inputs: what each needs, and how it is computed.

A score of your own is one function here and one line in `SCORES`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any, Literal

import torch
from torch import Tensor

from jem.checks import check_integer, check_number, refuse
from jem.evaluation.ood.features import (
    Reference,
    class_gaussians,
    clipping,
    head_only,
    knn,
    mahalanobis,
    neighbour_bank,
    react,
    residual_space,
    scale,
    vim,
)
from jem.model import JEM, on_model

REASONS = ("", "unlike the data", "between classes", "both")
"""Why an input is flagged, or "" if it is not. ONNX files give the index."""


@dataclass(frozen=True)
class Score:
    """How an OOD score is computed: an entry of `SCORES`.

    Attributes:
        takes: "logits": `function(logits)`, the logits of shape (B, K). "features":
            `function(features)`, the features of shape (B, F). "inputs": `function(model, x)`,
            inputs of shape (B, *shape).
        function: Gives scores of shape (B,). Its options are keywords.
        fit: `fit(logits, labels)`, or of features, of training inputs gives the tensors that the
            function compares with; it then takes them as a second argument.
        fit_takes_head: Whether `fit` takes the last layer of the network in place of labels, which
            must then be linear and give the logits.
        uses_density: Whether the density counts. Such a score works with one output (K = 1), and
            not on a network that ends in a softmax.
        reason: What a flagged input is.
        without_ties: A function of the same order where the first would tie by rounding; taken in
            sums.
    """

    takes: Literal["logits", "features", "inputs"]
    function: Callable[..., Tensor]
    fit: Callable[[Tensor, Any], Reference] | None = None
    fit_takes_head: bool = False
    uses_density: bool = False
    reason: Literal["unlike the data", "between classes"] = "unlike the data"
    without_ties: Callable[..., Tensor] | None = None

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


def confidence(logits: Tensor) -> Tensor:
    r"""Log-odds of the most probable class, log p - log(1 - p): its order, without its ties.

    Args:
        logits: f(x), shape (B, K); K = 1 gives infinity, for p = 1.

    Returns:
        Shape (B,), nats, at least -log(K - 1); 0 where all logits are infinite.
    """
    ordered = logits.sort(dim=1, descending=True).values
    odds = ordered[:, 0] - ordered[:, 1:].logsumexp(dim=1)
    return odds.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)


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


def odin(model: JEM, x: Tensor, *, temperature: float = 1000.0, noise: float = 0.0014) -> Tensor:
    r"""Largest class probability at a high temperature, after a small step towards it (ODIN).

    .. math:: s(x) = T \log \max_y p_T(y|x'), \qquad x' = x + \epsilon \,
        \mathrm{sign} \, \nabla_x \log \max_y p_T(y|x), \qquad p_T = \mathrm{softmax}(f / T)

    Args:
        model: The model.
        x: Inputs, shape (B, *shape), in the network's units.
        temperature: T > 0.
        noise: Step size epsilon >= 0, in the network's units.

    Returns:
        Scores, shape (B,), nats, at most 0; higher = in-distribution.

    Raises:
        InputError: If the network gives no gradient of its inputs.

    References:
        Liang, Li and Srikant (2018), arXiv:1706.02690.
    """
    check_number("temperature", temperature, "(0, inf)")
    check_number("noise", noise, "[0, inf)")

    def log_p(inputs: Tensor) -> Tensor:
        return (model.logits(inputs) / temperature).log_softmax(dim=1).amax(dim=1)

    with torch.enable_grad():
        x = on_model(model, x).requires_grad_()
        at_x = log_p(x)
        if not at_x.requires_grad:
            refuse("network", "give gradients of its inputs for the score 'odin'", "none")
        (gradient,) = torch.autograd.grad(at_x.sum(), x)
    return temperature * log_p(x.detach() + noise * gradient.sign())


SCORES: dict[str, Score] = {
    "log_density": Score("logits", log_density, uses_density=True),
    "max_probability": Score("logits", max_probability, reason="between classes",
                             without_ties=confidence),
    "max_logit": Score("logits", max_logit),
    "entropy": Score("logits", entropy, reason="between classes"),
    "gen": Score("logits", gen, reason="between classes"),
    "knn": Score("features", knn, fit=neighbour_bank),
    "mahalanobis": Score("features", mahalanobis, fit=class_gaussians),
    "odin": Score("inputs", odin, reason="between classes"),
    "react": Score("features", react, fit=clipping, fit_takes_head=True),
    "scale": Score("features", scale, fit=head_only, fit_takes_head=True),
    "vim": Score("features", vim, fit=residual_space, fit_takes_head=True),
}  # fmt: skip
"""Name -> score. Any of them add up, as `jem.evaluation.ood.fitted` does it: "knn+log_density"."""

SUMS = {"combined": "log_density+max_probability"}
"""Sums that have a name."""
