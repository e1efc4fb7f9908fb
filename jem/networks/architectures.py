"""Networks x -> logits, small and smooth enough to be sampled from.

Every network remembers how it was made in `.spec` (plain values), so that a run folder can build
it again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from jem.checks import check_choice, check_integer, check_number, refuse
from jem.networks.heads import HEADS, Head, factored_logits, log_density

Norm = Literal["none", "batch", "group"]
POOLED_SIZE = 32
"""Pixels a side that the usual energy network sees at most; larger images are average-pooled."""


class Network(nn.Module):
    """A body that computes features and a head that turns them into logits.

    Args:
        body: Maps (B, *shape) to features (B, F).
        head: Maps features to logits (B, K).
        spec: How this network was made: `{"name": ..., **arguments}`.
    """

    def __init__(self, body: nn.Module, head: nn.Module, spec: dict[str, Any]) -> None:
        super().__init__()
        self.body, self.head, self.spec = body, head, spec

    def features(self, x: Tensor) -> Tensor:
        """Features before the head, shape (B, F), of inputs (B, *shape)."""
        return self.body(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (B, K), of inputs (B, *shape)."""
        return self.head(self.body(x))  # type: ignore[no-any-return]


class Towers(nn.Module):
    r"""A classifier h and an energy network t side by side, which share no weights: see `towers`.

    .. math:: f(x)[y] = \log \mathrm{softmax}(h(x))[y] + \log \sum_k \exp t(x)[k]

    Args:
        classifier: h, maps (B, *shape) to (B, K).
        energy_network: t, maps (B, *shape) to (B, K).
        spec: How this network was made: `{"name": ..., **arguments}`.

    Attributes:
        energy_outputs: K.
    """

    def __init__(
        self, classifier: nn.Module, energy_network: nn.Module, spec: dict[str, Any]
    ) -> None:
        super().__init__()
        self.classifier, self.energy_network, self.spec = classifier, energy_network, spec
        self.energy_outputs: int = spec["num_classes"]

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (B, K), of inputs (B, *shape)."""
        g = log_density(self.energy_network(x))
        return factored_logits(torch.cat([self.classifier(x), g[:, None]], dim=1))


def towers(classifier: nn.Module, *, input_shape: Sequence[int], num_classes: int) -> Towers:
    """Give any network a density beside it that costs the classifier nothing.

    Cross-entropy alone trains the classifier, as the recipe `plain` does. The density is that of a
    small network, a joint energy model of its own with the same classes: energies, chains and
    samples are from it. A classifier that is trained already, and stays as it is, takes
    `jem.companion`.

    Args:
        classifier: Maps inputs (B, *input_shape) to logits (B, num_classes).
        input_shape: Shape of one input.
        num_classes: K.

    Returns:
        A network (B, *input_shape) -> (B, K).

    Example:
        >>> both = towers(nn.Linear(2, 3), input_shape=(2,), num_classes=3)
        >>> both(torch.zeros(5, 2)).shape
        torch.Size([5, 3])
    """
    shape, own = [int(n) for n in input_shape], getattr(classifier, "spec", None)
    reference = own if isinstance(own, str) else None  # your `spec` may be anything at all
    spec: dict[str, Any] = {"name": "towers", "classifier_spec": reference}
    spec |= {"input_shape": shape, "num_classes": num_classes}
    if isinstance(classifier, Network):
        spec = classifier.spec | {"head": "towers"}
    return Towers(classifier, usual_energy_network(shape, num_classes), spec)


def _network(body: list[nn.Module], num_features: int, spec: dict[str, Any]) -> Network | Towers:
    """A body with the head that its spec names."""
    shape, num_classes = spec["shape"], spec["num_classes"]
    head = HEADS["joint" if spec["head"] == "towers" else spec["head"]](num_features, num_classes)
    network = Network(nn.Sequential(*body), head, spec)
    if spec["head"] == "towers":
        return towers(network, input_shape=shape, num_classes=num_classes)
    return network


def _checked(
    shape: Sequence[int], num_classes: int, head: str, axes: int | None = None
) -> tuple[int, ...]:
    shape = tuple(int(n) for n in shape)
    if not shape or min(shape) < 1 or (axes is not None and len(shape) != axes):
        wanted = "(C, H, W)" if axes == 3 else "positive sizes"
        refuse("shape", f"be {wanted}, without the batch axis", shape)
    check_integer("num_classes", num_classes, 1)
    check_choice("head", head, get_args(Head))
    return shape


def mlp(
    shape: Sequence[int],
    num_classes: int,
    *,
    width: int = 128,
    depth: int = 3,
    dropout: float = 0.0,
    head: Head = "joint",
) -> Network | Towers:
    """Multilayer perceptron with SiLU units, for tables and points.

    Args:
        shape: Shape of one input; it is flattened.
        num_classes: K >= 1.
        width: Units of each hidden layer.
        depth: Number of hidden layers, >= 1.
        dropout: Probability of dropping a unit in training, in [0, 1).
        head: `"joint"`, `"factored"` (see `FactoredHead`) or `"towers"` (see `towers`).

    Returns:
        A network (B, *shape) -> (B, K).
    """
    shape = _checked(shape, num_classes, head)
    check_integer("width", width, 1)
    check_integer("depth", depth, 1)
    check_number("dropout", dropout, "[0, 1)")
    layers: list[nn.Module] = [nn.Flatten()]
    inputs = math.prod(shape)
    for _ in range(depth):
        layers += [nn.Linear(inputs, width), nn.SiLU()]
        layers += [nn.Dropout(dropout)] if dropout else []
        inputs = width
    spec = {"name": "mlp", "shape": list(shape), "num_classes": num_classes, "width": width}
    spec |= {"depth": depth, "dropout": dropout, "head": head}
    return _network(layers, inputs, spec)


def small_cnn(
    shape: Sequence[int], num_classes: int, width: int = 32, *, head: Head = "joint"
) -> Network | Towers:
    """Small smooth convolutional network for images from 8x8 to 64x64.

    One convolution at full size, then some that halve it until at most 7 pixels a side are left
    (or the shorter side is down to one), then one more at that size. The features are flattened,
    not pooled: a pooled head forgets where strokes are, and its samples tile them.

    Args:
        shape: (C, H, W), each side at least 4.
        num_classes: K >= 1.
        width: Channels at full size; doubled at each halving, up to four times.
        head: `"joint"`, `"factored"` (see `FactoredHead`) or `"towers"` (see `towers`).

    Returns:
        A network (B, C, H, W) -> (B, K).

    Example:
        >>> import torch
        >>> small_cnn((1, 28, 28), 10)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    shape = _checked(shape, num_classes, head, axes=3)
    channels, *size = shape
    check_integer("width", width, 1)
    if min(size) < 4:
        refuse("shape", "have at least 4x4 pixels for `small_cnn`", shape, "use `mlp`")
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.SiLU()]
    now = width
    while True:
        wider = min(2 * now, 4 * width)
        layers += [nn.Conv2d(now, wider, 4, stride=2, padding=1), nn.SiLU()]
        now, size = wider, [n // 2 for n in size]
        if max(size) <= 7 or min(size) < 2:
            break
    layers += [nn.Conv2d(now, now, 3, padding=1), nn.SiLU(), nn.Flatten()]
    spec = {"name": "small_cnn", "shape": list(shape), "num_classes": num_classes}
    spec |= {"width": width, "head": head}
    return _network(layers, now * math.prod(size), spec)


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        return nn.GroupNorm(math.gcd(channels, 8), channels)
    return nn.Identity()


def pooled_cnn(
    shape: Sequence[int],
    num_classes: int,
    width: int = 32,
    *,
    norm: Norm = "group",
    head: Head = "joint",
) -> Network | Towers:
    """Convolutional network for photographs, and other colour images of 16 pixels and more.

    A first convolution, then blocks that halve the image by averaging: convolution, pooling, norm,
    SiLU, convolution, norm, SiLU. Averages, unlike strides and maxima, leave chains no
    checkerboard. What is left, 2 to 3 pixels a side, is flattened, not pooled.

    Args:
        shape: (C, H, W), each side at least 8.
        num_classes: K >= 1.
        width: Channels of the first block; doubled at each block, up to four times.
        norm: `"group"`, `"batch"` or `"none"`.
        head: `"joint"`, `"factored"` (see `FactoredHead`) or `"towers"` (see `towers`).

    Returns:
        A network (B, C, H, W) -> (B, K).
    """
    shape = _checked(shape, num_classes, head, axes=3)
    channels, *size = shape
    check_integer("width", width, 2)
    check_choice("norm", norm, ("none", "batch", "group"))
    if min(size) < 8:
        refuse("shape", "have at least 8x8 pixels for `pooled_cnn`", shape, "use `mlp`")
    now, wider = max(1, width // 2), width
    layers: list[nn.Module] = [nn.Conv2d(channels, now, 3, padding=1), nn.SiLU()]
    while max(size) > 4 and min(size) > 3:
        layers += [nn.Conv2d(now, wider, 3, padding=1), nn.AvgPool2d(2), _norm(norm, wider)]
        layers += [nn.SiLU(), nn.Conv2d(wider, wider, 3, padding=1), _norm(norm, wider), nn.SiLU()]
        now, wider, size = wider, min(2 * wider, 4 * width), [n // 2 for n in size]
    if min(size) > 3:
        layers, size = [*layers, nn.AvgPool2d(2)], [n // 2 for n in size]
    layers.append(nn.Flatten())
    spec = {"name": "pooled_cnn", "shape": list(shape), "num_classes": num_classes}
    spec |= {"width": width, "norm": norm, "head": head}
    return _network(layers, now * math.prod(size), spec)


class WideBlock(nn.Module):
    """Pre-activation residual block of two 3x3 convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str, dropout: float) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            _norm(norm, inputs),
            nn.LeakyReLU(0.2),
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.Dropout(dropout),
            _norm(norm, outputs),
            nn.LeakyReLU(0.2),
            nn.Conv2d(outputs, outputs, 3, stride=stride, padding=1),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H/stride, W/stride)."""
        return self.branch(x) + self.shortcut(x)  # type: ignore[no-any-return]


def wide_resnet(
    shape: Sequence[int],
    num_classes: int,
    *,
    depth: int = 28,
    width: int = 10,
    norm: Norm = "none",
    dropout: float = 0.0,
    head: Head = "joint",
) -> Network | Towers:
    """Wide residual network as the JEM papers use it: LeakyReLU(0.2), biased convolutions.

    Args:
        shape: (C, H, W), each side at least 4.
        num_classes: K >= 1.
        depth: Layers, 6 n + 4: 10, 16, 22, 28, ...
        width: Channels are 16, 32 and 64 times this.
        norm: `"none"` (JEM), `"batch"` (JEM++, SADA-JEM) or `"group"`.
        dropout: Probability of dropping an activation in training, in [0, 1).
        head: `"joint"`, `"factored"` (see `FactoredHead`) or `"towers"` (see `towers`).

    Returns:
        A network (B, C, H, W) -> (B, K).

    References:
        Zagoruyko and Komodakis (2016), arXiv:1605.07146.
    """
    shape = _checked(shape, num_classes, head, axes=3)
    if depth < 10 or (depth - 4) % 6:
        refuse("depth", "be 6 n + 4 (10, 16, 22, 28, ...)", depth)
    check_integer("width", width, 1)
    check_choice("norm", norm, ("none", "batch", "group"))
    check_number("dropout", dropout, "[0, 1)")
    layers: list[nn.Module] = [nn.Conv2d(shape[0], 16, 3, padding=1)]
    now = 16
    for stage in range(3):
        for block in range((depth - 4) // 6):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(WideBlock(now, 16 * width * 2**stage, stride, norm, dropout))
            now = 16 * width * 2**stage
    layers += [_norm(norm, now), nn.LeakyReLU(0.2), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    spec = {"name": "wide_resnet", "shape": list(shape), "num_classes": num_classes}
    spec |= {"depth": depth, "width": width, "norm": norm, "dropout": dropout, "head": head}
    return _network(layers, now, spec)


NETWORKS: dict[str, Callable[..., Network | Towers]] = {
    "mlp": mlp,
    "small_cnn": small_cnn,
    "pooled_cnn": pooled_cnn,
    "wide_resnet": wide_resnet,
}


def is_embedding(shape: Sequence[int]) -> bool:
    """Whether inputs of a shape are vectors of 100 numbers or more, as other networks make them.

    Such features are ready to be divided by a line, and too many to be learned by heart: a wide
    layer with dropout and noisy inputs serve them better than depth.

    Args:
        shape: Shape of one input.
    """
    return len(shape) == 1 and shape[0] >= 100


def usual_head(shape: Sequence[int]) -> Head:
    """The head that is best for classifier and density together, by the shape of one input.

    In colour one body for both costs the classifier accuracy (docs/log.md), so images of several
    channels and 16 pixels a side or more get two towers.
    """
    colour = len(shape) == 3 and shape[0] > 1 and min(shape[1:]) >= 16
    return "towers" if colour else "factored"


def network_for(
    shape: Sequence[int], num_classes: int, *, head: Head | None = None
) -> Network | Towers:
    """Choose a network by input shape: for images of 8 pixels or more a CNN, else `mlp`.

    Images of several channels and 16 pixels or more get `pooled_cnn`, others `small_cnn`. For
    embeddings the one hidden layer of the `mlp` is wide, with dropout.

    Args:
        shape: Shape of one input: (D,) for a table, (C, H, W) for images.
        num_classes: K >= 1.
        head: `"factored"` trains steadier than `"joint"`, which is the reading of the JEM paper;
            `"towers"` keeps classifier and density apart. If None: `usual_head`.

    Returns:
        A network (B, *shape) -> (B, K).
    """
    head = head or usual_head(shape)
    if len(shape) == 3 and shape[0] > 1 and min(shape[1:]) >= 16:
        return pooled_cnn(shape, num_classes, head=head)
    if len(shape) == 3 and min(shape[1:]) >= 8:
        return small_cnn(shape, num_classes, head=head)
    if is_embedding(shape):
        return mlp(shape, num_classes, width=512, depth=1, dropout=0.5, head=head)
    return mlp(shape, num_classes, head=head)


def usual_energy_network(shape: Sequence[int], num_classes: int) -> nn.Module:
    """The usual network of a density beside a classifier; it sees large images average-pooled.

    Args:
        shape: Shape of one input.
        num_classes: K.

    Returns:
        A module (B, *shape) -> (B, K) with the factored head.
    """
    if len(shape) != 3:
        return network_for(shape, num_classes)
    window = math.ceil(max(shape[1:]) / POOLED_SIZE)
    pooled = (shape[0], *(math.ceil(n / window) for n in shape[1:]))
    build = small_cnn if min(pooled[1:]) >= 8 else mlp
    network = build(pooled, num_classes, head="factored")
    return network if window == 1 else nn.Sequential(nn.AvgPool2d(window, ceil_mode=True), network)
