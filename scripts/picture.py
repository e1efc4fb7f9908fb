"""Draw the picture of the README: what a run draws, what it rejects, beside its plain control.

jem train --control --out runs/digits
python scripts/picture.py runs/digits docs/picture.png
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import tyro
from matplotlib.axes import Axes
from torch import Tensor

import jem
from jem.data import DataSplits
from jem.data.shifts import letters, photo_patches
from jem.plotting import save_figure, tile_images
from jem.runs.folder import RunFolder

SAMPLES_A_CLASS = 6
DATA, LETTERS, PHOTOS = "#4477aa", "#ee6677", "#228833"  # told apart by colour-blind people


@dataclass
class Picture:
    """What to draw."""

    run: tyro.conf.Positional[Path]
    """Run folder of images, with a control."""
    out: tyro.conf.Positional[Path]
    """The picture, a .png."""
    seed: int = 0
    """Decides samples and foreign sets."""


def draw_samples(axes: Axes, model: jem.JEM, splits: DataSplits, seed: int) -> None:
    """Show a real input of each class, and fresh samples under it."""
    num_classes = len(splits.classes)
    x, y = splits.test[torch.arange(len(splits.test))]
    real = torch.stack([x[y == label][0] for label in range(num_classes)])
    labels = torch.arange(num_classes).repeat(SAMPLES_A_CLASS)
    fresh = jem.sample(model, labels, seed=seed).cpu()
    grid = tile_images(torch.cat([real, fresh]) / 2 + 0.5, num_classes)
    axes.imshow(grid, cmap="gray", vmin=0, vmax=1)
    rows = 1 + SAMPLES_A_CLASS
    at = (np.arange(rows) + 0.5) * grid.shape[0] / rows
    axes.set_yticks([at[0], at[1:].mean()], ["real", "drawn"])
    columns = (np.arange(num_classes) + 0.5) * grid.shape[1] / num_classes
    axes.set_xticks(columns, list(splits.classes))
    axes.tick_params(length=0)
    axes.set_title("It draws every class")


def draw_scores(axes: Axes, detector: jem.OODDetector, sets: dict[str, Tensor]) -> None:
    """Show the log-densities of the test part and of foreign sets, and the threshold."""
    scores = {name: detector.score(x).cpu().numpy() for name, x in sets.items()}
    low = min(np.quantile(s, 0.01) for s in scores.values())
    high = max(np.quantile(s, 0.99) for s in scores.values())
    bins = np.linspace(low, high, 50)
    for (name, values), colour in zip(scores.items(), (DATA, LETTERS, PHOTOS), strict=True):
        clipped = values.clip(low, high)
        label = f"{name}: {100 * detector.is_ood(sets[name]).float().mean():.1f} % rejected"
        weights = np.full(len(values), 100 / len(values))
        axes.hist(clipped, bins, weights=weights, color=colour, alpha=0.65, label=label)
    axes.axvline(detector.threshold, color="black", linewidth=1, linestyle="--")
    axes.set_ylabel("% of the set")
    axes.set_ylim(top=1.45 * axes.get_ylim()[1])  # room for the legend
    axes.legend(fontsize=8, frameon=False, loc="upper center")


def main() -> None:
    """Draw both halves side by side."""
    args = tyro.cli(Picture)
    model, control = jem.load(args.run), jem.load(args.run / "control")
    config = RunFolder(args.run).read_config()
    splits = jem.data.load(config["data"], seed=config["seed"])
    sets = {
        f"test {splits.name}": splits.test[torch.arange(len(splits.test))][0],
        "letters": letters(1000, splits.input_shape, seed=args.seed),
        "photo patches": photo_patches(1000, splits.input_shape, seed=args.seed),
    }
    figure = plt.figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.1])
    draw_samples(left.subplots(), model, splits, args.seed)
    rows = right.subplots(2, 1)
    both = {
        "It rejects what it has not learned": model,
        "A plain classifier lets more of it pass": control,
    }
    for axes, (title, each) in zip(rows, both.items(), strict=True):
        detector = jem.OODDetector(each).fit(splits.calibration.x, acceptance_rate=0.95)
        draw_scores(axes, detector, sets)
        axes.set_title(title)
    rows[1].set_xlabel("log-density, nats, unnormalised; dashed: accepts 95 %")
    save_figure(figure, args.out)
    print(f"{args.out}: run {args.run}, n = {len(splits.test)} test inputs, seed {args.seed}")


if __name__ == "__main__":
    main()
