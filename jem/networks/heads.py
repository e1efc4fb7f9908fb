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
