"""Randomised smoothing: answers with a radius in which no attacker can change them."""

from statistics import NormalDist
from typing import NamedTuple

import torch
from scipy.stats import beta
from torch import Tensor

from jem.attacks.threat import LogitsFunction
from jem.checks import check_inputs, check_integer, check_number


class Certificate(NamedTuple):
    """What the smoothed classifier says of B inputs."""

    class_index: Tensor  # (B,) int64; -1 where it abstains
    radius: Tensor  # (B,) Euclidean, in the units of the inputs; 0 where it abstains


def certify(
    logits_fn: LogitsFunction,
    x: Tensor,
    *,
    noise_std: float,
    num_selection: int = 100,
    num_samples: int = 1000,
    alpha: float = 0.001,
    batch_size: int = 256,
    generator: torch.Generator,
) -> Certificate:
    r"""Classify by the vote of noisy copies, and say how far no attacker can change the answer.

    .. math:: g(x) = \arg\max_k P(f(x + \sigma\varepsilon) = k), \qquad
              R = \sigma\,\Phi^{-1}(\underline{p})

    where p is a lower confidence bound of the share of the class that leads in `num_selection`
    copies, from `num_samples` other copies. With probability 1 - alpha, for each input, g has the
    same answer everywhere within R. That is a statement on g, and not on `logits_fn` itself. Where
    the bound is not above one half, g abstains. It is of use for classifiers that were trained
    with such noise; others answer wrongly under it, or abstain.

    Args:
        logits_fn: Maps (B, *shape) to logits (B, K), such as `model.logits` in evaluation mode.
        x: Inputs, shape (B, *shape).
        noise_std: sigma, in the units of `x`: 0.25 for images in [0, 1] is 0.5 in [-1, 1]. Noisy
            copies are not clipped.
        num_selection: Copies that choose the class.
        num_samples: Copies that estimate its share. All of n for one class give alpha^(1/n).
        alpha: Probability that a radius is too large, of each input.
        batch_size: Copies computed at once.
        generator: Source of the noise, on the device of `x`.

    Returns:
        Classes and radii.

    Raises:
        InputError: If an argument does not fit.

    References:
        Cohen, Rosenfeld and Kolter (2019), arXiv:1902.02918, algorithm 1 of section 3.2.

    Example:
        >>> linear = lambda x: torch.stack([x[:, 0], -x[:, 0]], dim=1)
        >>> x, generator = torch.tensor([[9.0], [-0.001]]), torch.Generator().manual_seed(0)
        >>> certify(linear, x, noise_std=1.0, generator=generator).class_index
        tensor([ 0, -1])
    """
    check_inputs("x", x)
    check_number("noise_std", noise_std, "(0, inf)")
    check_number("alpha", alpha, "(0, 1)")
    check_integer("num_selection", num_selection, 1)
    check_integer("num_samples", num_samples, 1)

    def votes(row: Tensor, count: int) -> Tensor:
        drawn = []
        for size in torch.arange(count).split(batch_size):
            noise = torch.empty(len(size), *row.shape, dtype=row.dtype, device=row.device)
            noise.normal_(std=noise_std, generator=generator)
            logits = logits_fn(row + noise)
            drawn.append(torch.bincount(logits.argmax(dim=1), minlength=logits.shape[1]))
        return torch.stack(drawn).sum(dim=0)

    classes, radii = [], []
    with torch.inference_mode(False), torch.no_grad():
        for row in x:
            chosen = int(votes(row, num_selection).argmax())
            hits = int(votes(row, num_samples)[chosen])
            radius = certified_radius(hits, num_samples, noise_std, alpha)
            classes.append(chosen if radius else -1)
            radii.append(radius)
    return Certificate(
        torch.tensor(classes, device=x.device), torch.tensor(radii, device=x.device)
    )


def certified_radius(hits: int, count: int, noise_std: float, alpha: float) -> float:
    """Radius by the Clopper-Pearson bound of a share; 0 where that is not above one half.

    Args:
        hits: Copies of the class.
        count: Copies in all.
        noise_std: sigma.
        alpha: Probability that the bound is above the true share.

    Example:
        >>> round(certified_radius(1000, 1000, 1.0, 0.001), 4)
        2.4633
    """
    low = float(beta.ppf(alpha, hits, count - hits + 1)) if hits else 0.0
    return noise_std * NormalDist().inv_cdf(low) if low > 0.5 else 0.0
