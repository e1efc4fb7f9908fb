"""The reference classifier: an independent network in whose eyes samples are measured.

The classifier that drew the samples cannot measure them, since it holds likely whatever it draws.
So a small network of its own is trained on real data: it says which class a sample looks like,
and distances between samples and real inputs are taken in its features.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jem.model import inference
from jem.randomness import derive_seed, global_generators_kept, named_generator

LARGEST_SIDE = 32
"""Images are averaged down to at most this many pixels a side before the network sees them."""

EPOCHS = 8
FEWEST_UPDATES = 400
BATCH_SIZE = 128
LEARNING_RATE = 2e-3


class ReferenceClassifier(nn.Module):
    """A small network: a body, standardised features, and a linear layer on their positive part.

    Unlike the networks of `jem.networks` it has kinks and pools: it shares neither architecture
    nor weights with a model of theirs. `train_reference_classifier` makes one.

    Args:
        shape: Shape of one input. (C, H, W) with sides of at least 8 makes a convolutional
            network with 64 features, anything else a perceptron with 16.
        num_classes: K.
        name: Data, number of training inputs and seed; belongs to the name of every figure that
            is measured in these features.
    """

    mean: Tensor  # (F,) of the features of the training inputs
    scale: Tensor  # (F,) their standard deviation

    def __init__(self, shape: Sequence[int], num_classes: int, name: str = "") -> None:
        super().__init__()
        self.name, self.num_classes = name, num_classes
        convolutional = len(shape) == 3 and min(shape[1:]) >= 8
        self.num_features = 64 if convolutional else 16
        self.body = nn.Sequential(*(_convolutions(shape) if convolutional else _layers(shape)))
        self.head = nn.Linear(self.num_features, num_classes)
        self.register_buffer("mean", torch.zeros(self.num_features))
        self.register_buffer("scale", torch.ones(self.num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs (B, *shape) to logits (B, K)."""
        return self.head(self.body(x).relu())  # type: ignore[no-any-return]

    def features(self, x: Tensor) -> Tensor:
        """Map inputs (B, *shape) to features (B, F), double precision, computed in batches.

        Each has mean 0 and variance 1 over the training inputs.
        """
        with inference(self):
            parts = [(self.body(p.cpu()) - self.mean) / self.scale for p in x.split(512)]
            return torch.cat(parts).double()

    def predict(self, x: Tensor) -> Tensor:
        """Class indices (B,) of inputs (B, *shape), computed in batches."""
        with inference(self):
            return torch.cat([self(part.cpu()).argmax(dim=1) for part in x.split(512)])


def _convolutions(shape: Sequence[int]) -> list[nn.Module]:
    height, width = (min(side, LARGEST_SIDE) for side in shape[1:])
    return [
        *([nn.AdaptiveAvgPool2d((height, width))] if max(shape[1:]) > LARGEST_SIDE else []),
        *(nn.Conv2d(shape[0], 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Flatten()),
        nn.Linear(64 * (height // 4) * (width // 4), 64),
    ]


def _layers(shape: Sequence[int]) -> list[nn.Module]:
    return [
        nn.Flatten(),
        *(nn.Linear(math.prod(shape), 64), nn.ReLU()),
        *(nn.Linear(64, 64), nn.ReLU()),
        nn.Linear(64, 16),
    ]


def train_reference_classifier(
    x: Tensor, labels: Tensor, num_classes: int, *, seed: int, data: str = "data"
) -> ReferenceClassifier:
    """Train a reference classifier, apart from every model that it will measure.

    Adam with a learning rate that falls to zero, on cross-entropy: 8 epochs, at least 400 updates
    of 128 inputs. The global random state is left as found.

    Args:
        x: Real inputs of the training part alone, in the network's units, shape (N, *shape).
        labels: Class indices, shape (N,), of at least two classes.
        num_classes: K >= 2.
        seed: Decides first weights and batches.
        data: Name of the data, for the name of the classifier.

    Returns:
        The classifier, in evaluation mode, on the CPU.

    Example:
        >>> x = torch.cat([torch.zeros(20, 2), torch.ones(20, 2)])
        >>> labels = torch.arange(40) // 20
        >>> reference = train_reference_classifier(x, labels, 2, seed=0, data="corners")
        >>> reference.name, reference.predict(torch.tensor([[0.9, 1.1]])).tolist()
        ('corners, 40 training inputs, seed 0', [1])
    """
    x = x.detach().to("cpu", torch.float32)
    name = f"{data}, {len(x):,} training inputs, seed {seed}"
    with torch.inference_mode(False), torch.enable_grad(), global_generators_kept():
        # Of the global generators that of the CPU alone: `torch.manual_seed` reaches others too.
        # The words are parts of the seeds: others would change every figure that was measured.
        torch.default_generator.manual_seed(derive_seed(seed, "judge", "weights"))
        network = ReferenceClassifier(x.shape[1:], num_classes, name)
        _fit(network, x.clone(), labels.clone(), named_generator(seed, "judge", "batches"))
    with inference(network.requires_grad_(False)):
        raw = torch.cat([network.body(part) for part in x.split(512)]).double()
        std = raw.std(dim=0, correction=0)
        network.mean.copy_(raw.mean(dim=0))
        network.scale.copy_(torch.where(std > 1e-6, std, 1.0))  # a constant keeps its scale
    return network.eval()


def _fit(network: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> None:
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
