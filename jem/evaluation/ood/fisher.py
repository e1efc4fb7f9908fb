"""One score out of two: how unlike the data an input is, and how far between the classes it lies.

The log-density finds inputs that are far from the data, the largest class probability those that
lie between classes. Each is blind to what the other sees. Both become p-values, whose logarithms
add up.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from jem.model import log_density

MAX_KNOTS = 256
"""Quantiles of a reference that are kept: what lies below the lowest is continued all the same."""


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


def p_value_maps(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """What `combined` compares with: quantiles and scales of both scores on a reference.

    Args:
        logits: f(x) of inputs like the data, shape (n, K), n >= 1: best those of a validation
            part. Scores of training inputs are too high, which makes later ones look worse than
            they are; a threshold fitted on other inputs makes up for that.
        labels: Not used.

    Returns:
        `knots` (m, 2), m = min(n, 256); `scales` (2,), log 10 of which lie between the median and
        the 5 % quantile; and `roundings`, how many roundings of the logits the sum may show.
    """
    scores = torch.stack([log_density(logits), confidence(logits)], dim=1).double()
    scores = scores.nan_to_num(posinf=1e30, neginf=-1e30).sort(dim=0).values
    ranks = torch.arange(0.5, min(len(scores), MAX_KNOTS)) / min(len(scores), MAX_KNOTS)
    knots = scores[(ranks * len(scores)).long()]
    low, middle = torch.quantile(scores, torch.tensor([0.05, 0.5]).to(scores), dim=0)
    size = logits.abs().amax(dim=1).double().median().clamp(min=1.0)
    scales = torch.maximum((middle - low) / math.log(10), 1e-4 * size)
    gain = 2 * torch.where(middle > low, size / scales, 0.0).sum()
    return {"knots": knots.to(logits), "scales": scales.to(logits), "roundings": gain.to(logits)}


def log_p_values(logits: Tensor, maps: dict[str, Tensor]) -> Tensor:
    r"""Logarithms of the p-values of the density and of the confidence.

    .. math:: p(s) = \frac{1}{m} \sum_{i=1}^m \frac{1}{1 + \exp((s_i - s) / h)}

    This is the share of reference scores below s, smoothed. It rises strictly with s, and below
    all s_i its logarithm goes on falling with slope 1 / h: an empirical p-value stops at
    1 / (n + 1), where an input far from everything would pass if it were only confident.

    Args:
        logits: f(x), shape (B, K).
        maps: Of `p_value_maps`, with s_i and h of each score.

    Returns:
        Shape (B, 2), nats, at most 0: of the log-density, and of `confidence` (0 for K = 1).
    """
    knots, scales = maps["knots"].to(logits), maps["scales"].to(logits)
    scores = torch.stack([log_density(logits), confidence(logits)], dim=1)
    steps = F.logsigmoid((scores[:, None] - knots) / scales)  # (B, m, 2)
    return steps.logsumexp(dim=1) - math.log(len(knots))


def combined(logits: Tensor, maps: dict[str, Tensor]) -> Tensor:
    r"""Fisher's combination of two p-values: low where the density or the confidence is.

    .. math:: s(x) = \log p(\log p(x)) + \log p(\mathrm{logit} \max_y p(y|x))

    With K = 1 it is the first term alone, which has the order of the log-density.

    Args:
        logits: f(x), shape (B, K); K = 1 too.
        maps: Of `p_value_maps`.

    Returns:
        Scores, shape (B,), nats, at most 0; higher = in-distribution.

    References:
        Fisher (1925), Statistical Methods for Research Workers, section 21.1.
    """
    return log_p_values(logits, maps).sum(dim=1)
