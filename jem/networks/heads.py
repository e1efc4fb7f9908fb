"""Heads: what turns the features of a network into logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

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
