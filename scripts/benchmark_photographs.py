"""A small folder of photographs: is a hybrid worth more than HOG and a support vector machine?

    python scripts/benchmark_photographs.py --seeds 0 1 2

Takes 130 pictures of each of four classes of CIFAR-10 (JPEG), drawn by a seed. A jem model trains
on 60 % of them with the defaults of its recipe and uses the rest to choose an epoch and to fit a
temperature. The baseline, histograms of oriented gradients and a support vector machine, trains
on the same 60 % and on all. Prints a Markdown table of figures on 4,000 other pictures: mean, and
lowest to highest over seeds.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import statistics
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import tyro
from PIL import Image
from sklearn.calibration import CalibratedClassifierCV
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import jem
from jem.data.named import DATA_ROOT_VARIABLE
from jem.model import batched_logits
from jem.networks import make_network

Array = npt.NDArray[Any]
CLASSES = ("airplane", "automobile", "cat", "horse")
A_CLASS = 130


@dataclass
class Benchmark:
    """What to measure."""

    recipes: tuple[str, ...] = ("plain", "fast")
    """Recipes of jem."""
    network: str | None = None
    """A network by name and sizes; the usual one if left out."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each seed is other training pictures, another initialisation and other noise."""
    root: Path | None = None
    """Folder of the archive; JEM_DATA if left out."""
    threads: int = 1
    """Threads of torch."""


def read(root: Path) -> dict[str, tuple[Array, Array]]:
    """Pictures (N, H, W, 3), 1,000 a class, and class indices of both parts of the archive."""
    found: dict[str, tuple[list[Array], list[int]]] = {"train": ([], []), "test": ([], [])}
    with tarfile.open(root / "cifar10-jpeg.tar.gz") as archive:
        for member in archive:
            path = Path(member.name)
            if member.isfile() and path.parent.name in CLASSES and int(path.stem) < 1000:
                file = archive.extractfile(member)
                assert file is not None, "a file has content"
                images, labels = found[path.parts[-3]]
                images.append(np.asarray(Image.open(file)))
                labels.append(CLASSES.index(path.parent.name))
    return {part: (np.stack(x), np.array(y)) for part, (x, y) in found.items()}


def hog(x: Array, cell: int = 8, bins: int = 9) -> Array:
    """Histograms of oriented gradients (Dalal and Triggs, 2005, CVPR), blocks of 2 x 2 cells.

    Args:
        x: Pictures, shape (N, H, W, 3), bytes.
        cell: Side of a cell in pixels.
        bins: Orientations, of half a turn.

    Returns:
        Shape (N, F).
    """
    dy, dx = np.gradient(x.astype(float) / 255, axis=(1, 2))
    strongest = (dx**2 + dy**2).argmax(axis=-1)[..., None]
    dx, dy = (np.take_along_axis(g, strongest, axis=-1)[..., 0] for g in (dx, dy))
    size, angle = np.hypot(dx, dy), np.arctan2(dy, dx) % np.pi / np.pi * bins
    low, share = np.floor(angle).astype(int) % bins, angle % 1
    n, height, width = (len(x), x.shape[1] // cell, x.shape[2] // cell)
    cells = np.empty((n, height, width, bins))
    for b in range(bins):
        votes = size * ((low == b) * (1 - share) + ((low + 1) % bins == b) * share)
        votes = votes[:, : height * cell, : width * cell]
        cells[..., b] = votes.reshape(n, height, cell, width, cell).sum(axis=(2, 4))
    corners = [cells[:, i : height - 1 + i, j : width - 1 + j] for i in (0, 1) for j in (0, 1)]
    blocks = np.concatenate(corners, axis=-1)
    blocks /= np.linalg.norm(blocks, axis=-1, keepdims=True) + 1e-3
    return blocks.reshape(n, -1)


def baseline(x: Array, y: Array, x_test: Array) -> Array:
    """Probabilities of a support vector machine on HOG features, scaled by cross-validation."""
    machine = make_pipeline(StandardScaler(), SVC(C=1.0))
    model = CalibratedClassifierCV(machine, ensemble=False).fit(hog(x), y)
    probabilities: Array = model.predict_proba(hog(x_test))
    return probabilities


def main(args: Benchmark) -> None:
    """Train, measure and print."""
    torch.set_num_threads(args.threads)
    data = read(args.root or Path(os.environ[DATA_ROOT_VARIABLE]))
    (pool, pool_y), (x_test, y_test) = data["train"], data["test"]
    found: dict[str, list[tuple[float, ...]]] = {}

    def keep(name: str, probabilities: Array, start: float) -> None:
        p, y = torch.from_numpy(probabilities), torch.from_numpy(y_test)
        accuracy = float((p.argmax(dim=1) == y).double().mean())
        ece = jem.calibration_report(p, y, num_bootstrap=0).ece
        nll = log_loss(y_test, probabilities)
        found.setdefault(name, []).append((accuracy, nll, ece, time.process_time() - start))
        print(f"{name}  {found[name][-1]}", flush=True)

    for seed in args.seeds:
        rng = np.random.default_rng(seed)
        rows = [rng.permutation(np.flatnonzero(pool_y == k))[:A_CLASS] for k in range(4)]
        x, y = pool[np.concatenate(rows)], pool_y[np.concatenate(rows)]
        splits = jem.data.from_arrays(x, np.array(CLASSES)[y], seed=seed)
        trained = splits.scaling.invert(splits.train.x).permute(0, 2, 3, 1).numpy()
        for name, images, labels in (
            ("HOG and SVM, the same 60 %", trained, splits.train.y.numpy()),
            ("HOG and SVM, all", x, y),
        ):
            start = time.process_time()
            keep(name, baseline(images.round().astype(np.uint8), labels, x_test), start)
        for recipe in args.recipes:
            start = time.process_time()
            head = jem.RECIPES[recipe].head
            network = make_network(args.network, splits.input_shape, 4, head, seed)
            model = jem.JEM(
                network, classes=splits.classes, domain=splits.domain, scaling=splits.scaling
            )
            trainer = jem.Trainer(model, recipe, seed=seed, device="cpu")
            trainer.fit(splits.train, splits.validation)
            scorer = jem.fit_scorer(model, splits)
            logits = batched_logits(model, model.preprocess(x_test)).double()
            keep(f"{recipe}, no temperature", logits.softmax(dim=1).numpy(), start)
            temperature = 1.0 if scorer.temperature is None else scorer.temperature.temperature
            keep(f"{recipe}", (logits / temperature).softmax(dim=1).numpy(), start)
    print("\n| | accuracy | NLL | ECE | processor seconds |\n|---|---|---|---|---|")
    for name, figures in found.items():
        cells = [
            f"{statistics.mean(v):.3f} ({min(v):.3f} to {max(v):.3f})"
            for v in zip(*figures, strict=True)
        ]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
