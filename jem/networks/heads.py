"""Heads: what turns the features of a network into logits, and how logits are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from jem.checks import refuse

Head = Literal["joint", "factored"]


class JointHead(nn.Module):
    """The plain reading: logits are one linear map of the features."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_features, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, F) to logits (B, K), in the weights' precision under autocast too."""
        with torch.autocast(features.device.type, enabled=False):
            logits: Tensor = self.linear(features.to(self.linear.weight.dtype))
        return logits


class FactoredHead(nn.Module):
    r"""A classifier and a density that do not pull at each other: p(x, y) = p(x) p(y|x).

    .. math:: f(x)[y] = \log \mathrm{softmax}(h(x))[y] + g(x)

    The softmax of these logits is that of h, and their logsumexp is exactly g(x), so E(x) = -g(x):
    cross-entropy has no gradient through g, and does not raise the density of data as a
    by-product.
    """

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_features, num_classes + 1)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, F) to logits (B, K), in the weights' precision under autocast too."""
        with torch.autocast(features.device.type, enabled=False):
            out: Tensor = self.linear(features.to(self.linear.weight.dtype))
        return out[:, :-1].log_softmax(dim=1) + out[:, -1:]


HEADS: dict[str, Callable[[int, int], nn.Module]] = {"joint": JointHead, "factored": FactoredHead}


_KEEP_VALUES = {
    "Alias", "Clone", "Permute", "Select", "Slice", "Squeeze", "ToCopy", "Transpose", "UnsafeView",
    "Unsqueeze", "View",
}  # fmt: skip
"""Operations of torch's graph that give values another shape, order, place or type alone."""


def ends_in_softmax(logits: Tensor) -> bool:
    """Whether the last operation that made values is a softmax or its logarithm.

    It looks at the graph of the logits, not at their values: the logsumexp of a factored head may
    be 0 too, before the head has learned.

    Args:
        logits: What a network returned, with its graph.
    """
    last = logits.grad_fn
    while last is not None and last.name().split("Backward")[0] in _KEEP_VALUES:
        last = last.next_functions[0][0]
    return last is not None and "softmax" in last.name().lower()


def log_density(logits: Tensor) -> Tensor:
    r"""Log-density of inputs whose logits are at hand: *unnormalised*, and no likelihood.

    .. math:: \log p(x) + \log Z = \log \sum_y \exp f(x)[y]

    Args:
        logits: f(x), shape (B, K).

    Returns:
        Log-density, shape (B,), nats; high = likely.
    """
    return torch.logsumexp(logits, dim=1)


def joint_energy(logits: Tensor, y: Tensor | None = None) -> Tensor:
    r"""Energy from logits, of the input alone or of the input with a class.

    .. math:: E(x, y) = -f(x)[y], \qquad E(x) = -\log \sum_y \exp f(x)[y]

    Args:
        logits: f(x), shape (B, K).
        y: Class indices, shape (B,); `None` sums the classes out.

    Returns:
        Energies, shape (B,), nats; low = compatible.

    Raises:
        InputError: If `y` does not hold one class index a row.

    References:
        Grathwohl et al. (2020), arXiv:1912.03263, equations 5 and 6.

    Example:
        >>> joint_energy(torch.zeros(1, 4)).item()
        -1.3862943649291992
    """
    if y is None:
        return -log_density(logits)
    if not isinstance(y, Tensor) or y.is_floating_point() or y.dtype == torch.bool:
        refuse("y", "be a tensor of class indices", getattr(y, "dtype", type(y).__name__))
    if y.shape != logits.shape[:1]:  # `gather` would quietly drop the rows that have no index
        refuse("y", f"have shape ({len(logits)},)", tuple(y.shape))
    y = y.to(logits.device, torch.long)
    if y.is_inference():  # no gradient goes past such a tensor
        y = y.clone()
    try:
        return -logits.gather(1, y[:, None]).squeeze(1)
    except RuntimeError:
        low, high = int(y.min()), int(y.max())
        if 0 <= low <= high < logits.shape[1]:
            raise
        refuse("y", f"lie in 0..{logits.shape[1] - 1}", f"{low}..{high}")
