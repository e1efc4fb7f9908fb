"""Embeddings as inputs: accuracy, calibration, and whether unseen classes and far inputs show.

    python scripts/benchmark_embeddings.py --draws 5

Each draw leaves some classes out of training; their test inputs are the near OOD set, and inputs
of another kind the far one. `banking77` are sentence embeddings of 77 intents (19 left out; far:
questions to hotels). `pictures` are the 512 features of a small convolutional network, trained
here on all but two classes of CIFAR-10 (far: handwritten digits). All models see the same training
and test inputs; those of `jem` hold out a share of the former for temperature and threshold. Each
baseline has the score that is usual with it. Prints a Markdown table of means over draws with 95 %
intervals.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import json
import math
import statistics
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import tyro
from PIL import Image
from scipy import stats
from scipy.spatial.distance import cdist
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize
from torch import nn

import jem
from jem.data.named import DATA_ROOT_VARIABLE

Array = npt.NDArray[Any]


class Draw(NamedTuple):
    """Inputs of one draw of classes, as rows."""

    x: Array
    y: Array
    x_test: Array
    y_test: Array
    near: Array
    far: Array


Figures = dict[str, float]
Scores = Callable[[Array], Array]


@dataclass
class Benchmark:
    """What to measure."""

    data: Literal["banking77", "pictures"] = "banking77"
    """Which embeddings."""
    draws: int = 5
    """Draws of classes that are left out; each has a seed of its own."""
    first: int = 20
    """Seed of the first draw; choices were made on draws 0 to 2 and 10 to 12 of `banking77`."""
    models: tuple[str, ...] = ()
    """Names of models; all if left out."""
    root: Path | None = None
    """Folder of the data; JEM_DATA if left out."""
    out: Path | None = None
    """JSON file for the figures of every draw."""
    threads: int = 1
    """Threads of torch."""


def banking77(root: Path, seed: int) -> Draw:
    """Sentence embeddings with 19 of 77 intents left out, and questions to hotels."""
    with np.load(root / "banking77-minilm.npz") as file:
        x, labels, part = file["x"].astype(np.float32), file["labels"], file["part"].astype(str)
        far = file["hotels"].astype(np.float32)
    return leave_out(x, labels, part == "train", 19, far, seed)


def leave_out(x: Array, labels: Array, train: Array, count: int, far: Array, seed: int) -> Draw:
    """Take classes out of the training part, drawn by a seed."""
    out = np.random.default_rng(seed).choice(int(labels.max()) + 1, count, replace=False)
    unseen = np.isin(labels, out)
    own, test = train & ~unseen, ~train & ~unseen
    return Draw(x[own], labels[own], x[test], labels[test], x[~train & unseen], far)


def cifar(root: Path, part: str, count: int) -> tuple[torch.Tensor, Array]:
    """The first pictures of each class from the archive, in [0, 1], and their class indices."""
    images: list[Array] = []
    names: list[str] = []
    with tarfile.open(root / "cifar10-jpeg.tar.gz") as archive:
        for member in archive:
            path = Path(member.name)
            if member.isfile() and path.parts[-3] == part and int(path.stem) < count:
                file = archive.extractfile(member)
                assert file is not None, "a file has content"
                images.append(np.asarray(Image.open(file)))
                names.append(path.parts[-2])
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    return x, np.unique(names, return_inverse=True)[1]


def pictures(root: Path, seed: int) -> Draw:
    """Features of a convolutional network; its training knows neither of two classes of CIFAR-10.

    The features of pictures that it was trained on are sharper than those of new ones, so the
    models are fitted on other pictures.
    """
    (x, labels), (x_test, labels_test) = cifar(root, "train", 2000), cifar(root, "test", 500)
    out = np.random.default_rng(seed).choice(10, 2, replace=False)
    own = np.flatnonzero(~np.isin(labels, out))
    first, second = own[::2], own[1::2]
    body = train_body(x[first], torch.from_numpy(labels[first]), seed)

    def features(images: torch.Tensor) -> Array:
        with torch.no_grad():
            return torch.cat([body(part) for part in images.split(256)]).numpy()

    with np.load(root / "mnist5000.npz") as file:
        digits = torch.from_numpy(file["images"][::5]).float()[:, None] / 255
    digits = nn.functional.pad(digits, (2, 2, 2, 2)).expand(-1, 3, -1, -1)
    unseen = np.isin(labels_test, out)
    return Draw(
        features(x[second]), labels[second], features(x_test[~unseen]), labels_test[~unseen],
        features(x_test[unseen]), features(digits),
    )  # fmt: skip


def train_body(x: torch.Tensor, y: torch.Tensor, seed: int) -> nn.Module:
    """A convolutional network, trained to classify; returned without its last layer."""
    torch.manual_seed(seed)
    channels = (x.shape[1], 64, 128, 256, 512)
    body = nn.Sequential(
        *(block(a, b) for a, b in pairwise(channels)), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    network = nn.Sequential(body, nn.Linear(512, int(y.max()) + 1))
    epochs, size = 12, 64
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * (len(x) // size))
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(size)[: len(x) // size]:
            batch = x[rows].flip(3) if torch.rand(()) < 0.5 else x[rows]
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(batch), y[rows]).backward()
            optimizer.step()
            schedule.step()
    return body.eval()


def block(inputs: int, outputs: int) -> nn.Module:
    """A convolution that halves the side of its input."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def figures(draw: Draw, probabilities: Array | None, score: Scores) -> Figures:
    """What a model and a score are worth."""
    own = torch.from_numpy(score(draw.x_test))
    found: Figures = {}
    if probabilities is not None:
        p, y = torch.from_numpy(probabilities), draw.y_test
        index = torch.from_numpy(np.searchsorted(np.unique(draw.y), y))
        found["accuracy"] = float((p.argmax(dim=1) == index).float().mean())
        found["nll"] = log_loss(y, probabilities, labels=np.unique(draw.y))
        found["ece"] = jem.calibration_report(p, index, num_bootstrap=0).ece
    for name, other in (("near", draw.near), ("far", draw.far)):
        found[name] = jem.ood_metrics(own, torch.from_numpy(score(other))).auroc
    return found


def logistic(draw: Draw, seed: int) -> Figures:
    """Logistic regression, and its largest probability."""
    model = LogisticRegression(C=10, max_iter=3000).fit(draw.x, draw.y)
    return figures(
        draw, model.predict_proba(draw.x_test), lambda x: model.predict_proba(x).max(axis=1)
    )


def neighbours(draw: Draw, seed: int) -> Figures:
    """Distance to the tenth neighbour, all of length one."""
    index = NearestNeighbors(n_neighbors=10).fit(normalize(draw.x))
    return figures(draw, None, lambda x: -index.kneighbors(normalize(x))[0][:, -1])


def mahalanobis(draw: Draw, seed: int) -> Figures:
    """Distance to the nearest class mean under one shrunk covariance."""
    means = np.stack([draw.x[draw.y == k].mean(axis=0) for k in np.unique(draw.y)])
    centred = draw.x - means[np.searchsorted(np.unique(draw.y), draw.y)]
    values, vectors = np.linalg.eigh(ledoit_wolf(centred, assume_centered=True)[0])
    white = vectors / np.sqrt(values.clip(1e-12))

    def score(x: Array) -> Array:
        found: Array = -cdist(x @ white, means @ white).min(axis=1)
        return found

    return figures(draw, None, score)


def estimator(recipe: str) -> Callable[[Draw, int], Figures]:
    """`JEMClassifier` with its defaults, and the score of its detector."""

    def run(draw: Draw, seed: int) -> Figures:
        model = jem.JEMClassifier(recipe, random_state=seed, device="cpu").fit(draw.x, draw.y)
        detector = model.detector_
        assert detector is not None, "there are rows enough"
        found = figures(
            draw,
            model.predict_proba(draw.x_test),
            lambda x: detector.score(model.model_.preprocess(x)).numpy(),
        )
        density = model.score_samples
        own, near, far = (torch.from_numpy(density(x)) for x in (draw.x_test, draw.near, draw.far))
        found["near, density"] = jem.ood_metrics(own, near).auroc
        found["far, density"] = jem.ood_metrics(own, far).auroc
        found["accepted"] = 1 - float(model.is_ood(draw.x_test).mean())
        return found

    return run


MODELS: dict[str, Callable[[Draw, int], Figures]] = {
    "logistic regression, largest probability": logistic,
    "10th neighbour": neighbours,
    "Mahalanobis": mahalanobis,
    "JEMClassifier('plain')": estimator("plain"),
    "JEMClassifier()": estimator("fast"),
}
COLUMNS = ("accuracy", "nll", "ece", "near", "far", "near, density", "far, density", "accepted",
           "seconds")  # fmt: skip


def cell(values: list[float]) -> str:
    """Mean with half the width of its 95 % interval over draws."""
    if not values:
        return ""
    mean, n = statistics.mean(values), len(values)
    if n == 1:
        return f"{mean:.4g}"
    half = stats.t.ppf(0.975, n - 1) * statistics.stdev(values) / math.sqrt(n)
    return f"{mean:.4f} ± {half:.4f}"


def main() -> None:
    """Measure every model on every draw, and print the table."""
    args = tyro.cli(Benchmark)
    torch.set_num_threads(args.threads)
    names = args.models or tuple(MODELS)
    found: dict[str, list[Figures]] = {name: [] for name in names}
    for seed in range(args.first, args.first + args.draws):
        draw = {"banking77": banking77, "pictures": pictures}[args.data](
            args.root or Path(os.environ[DATA_ROOT_VARIABLE]), seed
        )
        for name in names:
            start = time.process_time()
            found[name].append(MODELS[name](draw, seed))
            found[name][-1]["seconds"] = time.process_time() - start
            print(f"draw {seed}  {name}  {found[name][-1]}", flush=True)
            if args.out is not None:
                args.out.write_text(json.dumps(found))
    print(f"\n{args.data}, {args.draws} draws; torch {torch.__version__}\n")
    print("| | " + " | ".join(COLUMNS) + " |\n" + "|---" * (len(COLUMNS) + 1) + "|")
    for name, rows in found.items():
        cells = [cell([row[c] for row in rows if c in row]) for c in COLUMNS]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
