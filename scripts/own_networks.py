"""Two networks as users bring them, with batch normalisation.

jem train --data digits --network own_networks:resnet   # in this folder
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn


class Block(nn.Module):
    """Residual block of He et al. (2016), arXiv:1512.03385: two 3x3 convolutions, each normed."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H/stride, W/stride)."""
        return (self.branch(x) + self.shortcut(x)).relu()


def resnet(shape: Sequence[int], num_classes: int) -> nn.Module:
    """ResNet of 14 layers and 175,000 weights; larger images are halved first."""
    halved = 2 if min(shape[1:]) >= 16 else 1
    return nn.Sequential(
        nn.Conv2d(shape[0], 16, 3, halved, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        Block(16, 16, 1), Block(16, 16, 1),
        Block(16, 32, 2), Block(32, 32, 1),
        Block(32, 64, 2), Block(64, 64, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes),
    )  # fmt: skip


def vgg(shape: Sequence[int], num_classes: int) -> nn.Module:
    """Six normed convolutions between poolings, then two linear layers with dropout."""
    layers: list[nn.Module] = []
    now, size = shape[0], list(shape[1:])
    for width in (16, 32, 64):
        for _ in range(2):
            layers += [nn.Conv2d(now, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            now = width
        layers.append(nn.MaxPool2d(2))
        size = [n // 2 for n in size]
    flat = now * math.prod(size)
    layers += [nn.Flatten(), nn.Linear(flat, 128), nn.ReLU(), nn.Dropout(0.3)]
    return nn.Sequential(*layers, nn.Linear(128, num_classes))
