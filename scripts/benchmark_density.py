"""A density of images without classes: the recipe of a tutorial, and `fast` with one output.

    python scripts/benchmark_density.py --data mnist --num-train 1000

Both train the same network, on the same images, for the same processor seconds: those that the
recipe of the tutorial takes. Then the script does what the tutorial does with one test image, and
with as many as `num_test`: it adds noise, mirrors it along both sides, and shrinks it to a
quarter. The AUROC says how often a test image has a higher log-density than one that was changed
so, or than uniform noise, letters and photo patches.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from torch import Tensor
from torch.nn import functional as F

import jem
from jem.data import DataPart, DataSplits
from jem.data.shifts import make_ood_set
from jem.evaluation.ood import ood_metrics
from jem.model import batched_logits
from jem.plotting import inputs_figure, save_figure
from jem.randomness import named_generator

RECIPES = {
    "image_ebm": jem.RECIPES["image_ebm"],
    "fast, one output": replace(jem.RECIPES["fast"], head="density"),
}
MADE_UP = ("uniform_noise", "photo_patches", "letters")


@dataclass
class Benchmark:
    """What to train, and for how long."""

    data: str = "mnist"
    """Images of one channel: a named data set, or a file."""
    num_train: int | None = None
    """Training images: the first ones; all if left out."""
    epochs: int = 1
    """Epochs of `image_ebm`; the tutorial makes 60, of 468 updates."""
    num_test: int = 1000
    """Test images: the first ones."""
    seed: int = 0
    """Of everything."""
    out: Path = Path("density")
    """Folder of the pictures of samples."""
    data_root: Path | None = None
    """Folder of downloaded data sets; JEM_DATA if left out."""
    threads: int | None = 1
    """Threads of torch."""


def shrunk(x: Tensor) -> Tensor:
    """Images at a quarter of their size, in the middle of nothing."""
    height, width = x.shape[2:]
    small = F.interpolate(x, (height // 4, width // 4), mode="bilinear", antialias=True)
    sides = [(length - length // 4) for length in (width, height)]
    padding = [part for side in sides for part in (side // 2, side - side // 2)]
    return F.pad(small, padding, value=float(x.min()))


def noisy(x: Tensor) -> Tensor:
    """Images with noise of standard deviation 0.3, inside their range."""
    noise = torch.empty_like(x).normal_(generator=named_generator(0, "noise"))
    return (x + 0.3 * noise).clamp(x.min(), x.max())


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "noise of 0.3 added": noisy,
    "mirrored along both sides": lambda x: x.flip([2, 3]),
    "shrunk to a quarter": shrunk,
}


def trained(
    recipe: jem.Recipe, epochs: int, data: DataSplits, args: Benchmark
) -> tuple[jem.JEM, float, int]:
    """A model of one output, the processor seconds that it took, and its updates."""
    network = jem.networks.make_network(None, data.input_shape, 1, "density", args.seed)
    model = jem.JEM(network, domain=data.domain, scaling=data.scaling)
    started = time.process_time()
    run = jem.Trainer(model, replace(recipe, epochs=epochs), seed=args.seed, device="cpu")
    fit = run.fit(data.train)
    return model.eval(), time.process_time() - started, fit.iterations


def main() -> None:
    """Train, measure, draw, and print the tables."""
    args = tyro.cli(Benchmark)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    data = jem.data.load(args.data, root=args.data_root, seed=args.seed)
    data = replace(data, train=DataPart(*data.train[: args.num_train]))
    x = data.test[: args.num_test][0]
    others = {name: change(x) for name, change in CHANGES.items()}
    others |= {name: make_ood_set(name, data, len(x), seed=args.seed) for name in MADE_UP}
    columns: dict[str, list[str]] = {}
    epochs, allowed = args.epochs, 0.0
    for name, recipe in RECIPES.items():
        if allowed:
            epochs = max(1, round(allowed / trained(recipe, 1, data, args)[1]))
        model, seconds, updates = trained(recipe, epochs, data, args)
        print(f"{name}: {updates:,} updates in {seconds:.0f} s", flush=True)
        allowed = allowed or seconds
        test, *rest = (batched_logits(model, part)[:, 0] for part in (x, *others.values()))
        cells = [
            f"{seconds:.0f} s, {updates:,} updates",
            f"{test.mean() - rest[len(CHANGES)].mean():.2f}",
        ]
        cells += [f"{values[0] - test[0]:+.2f}" for values in rest[: len(CHANGES)]]
        for values in rest:
            found = ood_metrics(test, values)
            low, high = found.intervals["auroc"]
            cells.append(f"{found.auroc:.3f} ({low:.3f} to {high:.3f})")
        columns[name] = cells
        started = time.process_time()
        drawn = jem.sample(model, count=32, seed=args.seed)
        print(f"{name}: 32 samples in {time.process_time() - started:.0f} s", flush=True)
        path = args.out / f"{name.partition(',')[0]}.png"
        save_figure(inputs_figure(drawn, model.bounds("cpu"), columns=8), path)
    rows = ["training", "mean log-density of test images minus that of uniform noise, nats"]
    rows += [f"first test image, {name}: change of log-density" for name in CHANGES]
    rows += [f"AUROC against {name.replace('_', ' ')}" for name in others]
    print("\n| | " + " | ".join(columns) + " |\n" + "|---" * (1 + len(columns)) + "|")
    for row, *cells in zip(rows, *columns.values(), strict=True):
        print("| " + " | ".join([row, *cells]) + " |")
    print(f"\n{args.data}, n = {len(x)}, seed {args.seed}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
