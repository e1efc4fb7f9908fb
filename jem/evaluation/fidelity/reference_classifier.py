"""The judge: a small network of its own, trained on real data, in whose eyes samples are measured.

The classifier that drew the samples cannot judge them: it holds likely whatever it draws.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jem.checks import as_labels
from jem.errors import InputError
from jem.evaluation.examples import check_inputs, choose_rows
from jem.randomness import derive_seed, global_generators_kept, named_generator

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

LARGEST_SIDE = 32
"""Images are averaged down to at most this many pixels a side before the judge looks."""

LARGEST_TRAINING_SET = 20_000
"""Inputs that a judge learns from; a larger set is sampled."""

EPOCHS = 8
FEWEST_UPDATES = 400
BATCH_SIZE = 128
LEARNING_RATE = 2e-3


class _Downscale(nn.Module):
    """Averages images down to at most 32 pixels a side; smaller ones pass."""

    def forward(self, x: Tensor) -> Tensor:
        size = min(x.shape[2], LARGEST_SIDE), min(x.shape[3], LARGEST_SIDE)
        return x if x.shape[2:] == size else F.adaptive_avg_pool2d(x, size)


class JudgeNetwork(nn.Module):
    """A body, standardised features, and a linear classifier on their positive part.

    Unlike the networks of `jem.networks` it has kinks and pools: it shares neither architecture
    nor weights with a model of theirs.

    Args:
        shape: Shape of one input: (C, H, W) with sides of at least 8 makes a small convolutional
            network with 64 features, anything else a perceptron with 16.
        num_classes: K.
    """

    mean: Tensor  # (F,) of the features of the training inputs
    scale: Tensor  # (F,) their standard deviation

    def __init__(self, shape: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.convolutional = len(shape) == 3 and min(shape[1:]) >= 8
        self.num_features = 64 if self.convolutional else 16
        self.body = nn.Sequential(*(_conv(shape) if self.convolutional else _perceptron(shape)))
        self.head = nn.Linear(self.num_features, num_classes)
        self.register_buffer("mean", torch.zeros(self.num_features))
        self.register_buffer("scale", torch.ones(self.num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs (B, *shape) to logits (B, K)."""
        return self.head(self.body(x).relu())  # type: ignore[no-any-return]

    def features(self, x: Tensor) -> Tensor:
        """Map inputs (B, *shape) to features (B, F), each of mean 0 and variance 1 in training."""
        return (self.body(x) - self.mean) / self.scale  # type: ignore[no-any-return]


def _conv(shape: Sequence[int]) -> list[nn.Module]:
    height, width = (min(side, LARGEST_SIDE) // 4 for side in shape[1:])
    return [
        _Downscale(),
        *(nn.Conv2d(shape[0], 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Flatten()),
        nn.Linear(64 * height * width, 64),
    ]


def _perceptron(shape: Sequence[int]) -> list[nn.Module]:
    return [
        nn.Flatten(),
        *(nn.Linear(math.prod(shape), 64), nn.ReLU()),
        *(nn.Linear(64, 64), nn.ReLU()),
        nn.Linear(64, 16),
    ]


@dataclass(frozen=True, eq=False)
class Judge:
    """A trained judge; always in evaluation mode, on the CPU.

    Attributes:
        network: The network.
        name: Data, architecture, number of features and of training inputs, seed: belongs to the
            name of every figure measured in these features.
        input_shape: Shape of one input.
        num_classes: K.
        num_train: Inputs that it learned from.
    """

    network: JudgeNetwork
    name: str
    input_shape: tuple[int, ...]
    num_classes: int
    num_train: int

    @property
    def num_features(self) -> int:
        """F, features of an input."""
        return self.network.num_features

    @cached_property
    def checksum(self) -> str:
        """SHA-256 over names, shapes and bytes of the weights, in hexadecimal.

        Equal for the same data, seed, machine, versions and thread count.
        """
        digest = hashlib.sha256()
        for name, value in sorted(self.network.state_dict().items()):
            digest.update(f"{name} {tuple(value.shape)}".encode())
            digest.update(value.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def features(self, x: Tensor | ArrayLike, batch_size: int = 512) -> Tensor:
        """Features before the last layer, standardised on the training inputs.

        Args:
            x: Inputs in the network's units, shape (B, *shape).
            batch_size: Inputs computed at once.

        Returns:
            Shape (B, F), double precision, on the CPU.

        Raises:
            InputError: If the inputs do not fit or are not finite.
        """
        checked = check_inputs(x, self.input_shape)
        with torch.inference_mode(False), torch.no_grad():
            parts = [self.network.features(part).double() for part in checked.split(batch_size)]
        return torch.cat(parts)

    def predict(self, x: Tensor | ArrayLike, batch_size: int = 512) -> Tensor:
        """Class indices, shape (B,), of inputs as `features` takes them."""
        checked = check_inputs(x, self.input_shape)
        with torch.inference_mode(False), torch.no_grad():
            parts = [self.network(part).argmax(dim=1) for part in checked.split(batch_size)]
        return torch.cat(parts)


def train_judge(
    x: Tensor | ArrayLike,
    labels: Tensor | ArrayLike,
    num_classes: int,
    *,
    seed: int,
    data: str = "data",
    limit: int = LARGEST_TRAINING_SET,
) -> Judge:
    """Train a small classifier, apart from every model that it will judge.

    Adam with a learning rate that falls to zero, on cross-entropy: 8 passes, at least 400 updates
    of 128 inputs. The global random state is left as found.

    Args:
        x: Real inputs of the training part alone, in the network's units, shape (N, *shape).
        labels: Class indices, shape (N,), of at least two classes.
        num_classes: K >= 2.
        seed: Decides first weights, batches, and the sample of a larger set.
        data: Name of the data, for the judge's name.
        limit: Inputs to learn from at most.

    Returns:
        The judge.

    Raises:
        InputError: If inputs and labels are not as said.

    Example:
        >>> x = torch.cat([torch.zeros(20, 2), torch.ones(20, 2)])
        >>> judge = train_judge(x, torch.arange(40) // 20, 2, seed=0, data="corners")
        >>> judge.name, judge.predict([[0.9, 1.1]]).tolist()
        ('corners-mlp-16f-n40-seed0', [1])
    """
    x = check_inputs(x)
    if num_classes < 2:
        raise InputError(f"a judge needs at least two classes, but got num_classes={num_classes}")
    y = as_labels("labels", labels, len(x), num_classes)
    kept = choose_rows(len(x), limit, seed=seed, name="judge")
    x, y = x[kept], y[kept]
    if len(y.unique()) < 2:
        raise InputError("a judge needs inputs of at least two classes, but all labels are equal")
    with torch.inference_mode(False), torch.enable_grad(), global_generators_kept():
        # Of the global generators that of the CPU alone: `torch.manual_seed` reaches others too.
        torch.default_generator.manual_seed(derive_seed(seed, "judge", "weights"))
        network = JudgeNetwork(x.shape[1:], num_classes)
        _fit(network, x, y, named_generator(seed, "judge", "batches"))
    _standardise(network.eval().requires_grad_(False), x)
    kind = "cnn" if network.convolutional else "mlp"
    name = f"{data}-{kind}-{network.num_features}f-n{len(x)}-seed{seed}"
    return Judge(network, name, tuple(x.shape[1:]), num_classes, len(x))


def _fit(network: JudgeNetwork, x: Tensor, y: Tensor, generator: torch.Generator) -> None:
    updates = max(FEWEST_UPDATES, EPOCHS * len(x) // BATCH_SIZE)
    optimiser = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(updates):
        while len(order) < min(BATCH_SIZE, len(x)):
            order = torch.cat([order, torch.randperm(len(x), generator=generator)])
        rows, order = order[:BATCH_SIZE], order[BATCH_SIZE:]
        optimiser.zero_grad()
        F.cross_entropy(network(x[rows]), y[rows]).backward()
        optimiser.step()
        schedule.step()


@torch.no_grad()
def _standardise(network: JudgeNetwork, x: Tensor) -> None:
    """Give features mean 0 and variance 1; one that is constant keeps its scale."""
    raw = torch.cat([network.body(part) for part in x.split(512)]).double()
    std = raw.std(dim=0, correction=0)
    network.mean.copy_(raw.mean(dim=0))
    network.scale.copy_(torch.where(std > 1e-6, std, 1.0))
