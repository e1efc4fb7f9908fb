"""Race recipes on one data set: same network body, data and machine, several seeds, one table.

    python scripts/benchmark_recipes.py --recipes plain fast --seeds 0 1 2

Prints a Markdown table of means (and the range over seeds) on the test part, which nothing chose
on. Agreement is that of a support vector machine, trained on the real training part, with the
class asked of fresh samples.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import json
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from sklearn.svm import SVC
from torch import Tensor

import jem
from jem import networks
from jem.data import DataSplits
from jem.evaluation.summary import foreign_sets, summarise
from jem.randomness import derive_seed
from jem.training.recipe import RECIPES
from jem.training.trainer import Trainer

SAMPLES_A_CLASS = 20


@dataclass
class Benchmark:
    """What to race."""

    recipes: tuple[str, ...] = ("plain", "fast")
    """Names of recipes; the first is what times are compared with."""
    data: str = "digits"
    """A named data set."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each seed is another split, another initialisation and other noise."""
    epochs: int | None = None
    """Epochs of every recipe; what the recipe makes of the data if left out."""
    data_root: Path | None = None
    """Folder of downloaded data sets; JEM_DATA if left out."""
    out: Path | None = None
    """JSON file for all figures of all runs."""
    threads: int | None = None
    """Threads of torch; all cores if left out."""


def agreement(model: jem.JEM, splits: DataSplits, seed: int) -> float:
    """Share of fresh samples that an independent classifier gives to the class asked for."""
    judge = SVC(C=10, gamma="scale").fit(splits.train.x.flatten(1), splits.train.y)
    labels = torch.arange(len(splits.classes)).repeat_interleave(SAMPLES_A_CLASS)
    drawn: Tensor = jem.sample(model, labels, seed=seed).cpu()
    return float((torch.as_tensor(judge.predict(drawn.flatten(1))) == labels).float().mean())


def run(name: str, seed: int, args: Benchmark) -> dict[str, Any]:
    """Train one recipe with one seed and measure it."""
    splits = jem.data.load(args.data, root=args.data_root, seed=seed)
    recipe = RECIPES[name]
    if args.epochs is not None:
        recipe = replace(recipe, epochs=args.epochs)
    torch.manual_seed(derive_seed(seed, "network") % 2**32)
    num_classes = len(splits.classes)
    network = networks.network_for(splits.input_shape, num_classes, head=recipe.head)
    model = jem.JEM(network, classes=splits.classes, domain=splits.domain, scaling=splits.scaling)
    result = Trainer(model, recipe, seed=seed, device="cpu").fit(splits.train, splits.validation)
    row = summarise(model, splits, foreign_sets(splits, seed))
    row |= {"seconds": result.seconds, "iterations": result.iterations}
    row |= {"recoveries": result.recoveries}
    if recipe.generative:
        row["agreement"] = agreement(model, splits, seed)
    return row


def spread(values: list[float], digits: int) -> str:
    """Mean and range, as text."""
    low, high = min(values), max(values)
    return f"{statistics.mean(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown table, a column a recipe."""
    names = list(rows)
    baseline = statistics.mean(row["seconds"] for row in rows[names[0]])
    lines = ["| figure | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]

    def add(label: str, cells: list[str]) -> None:
        lines.append(f"| {label} | " + " | ".join(cells) + " |")

    for key, digits in (("accuracy", 4), ("nll", 3), ("ece", 4)):
        add(key, [spread([row[key] for row in rows[name]], digits) for name in names])
    for foreign in rows[names[0]][0]["auroc"]:
        values = {n: [row["auroc"][foreign]["value"] for row in rows[n]] for n in names}
        add(f"AUROC of log-density, {foreign}", [spread(values[n], 4) for n in names])
    add(
        "agreement of samples",
        [
            spread([row["agreement"] for row in rows[n]], 3) if "agreement" in rows[n][0] else "-"
            for n in names
        ],
    )
    add("seconds of fit", [spread([row["seconds"] for row in rows[n]], 1) for n in names])
    ratio = {n: statistics.mean(row["seconds"] for row in rows[n]) / baseline for n in names}
    add(f"times {names[0]}", [f"{ratio[n]:.2f}" for n in names])
    add("updates", [str(rows[n][0]["iterations"]) for n in names])
    add("recoveries", [str(sum(row["recoveries"] for row in rows[n])) for n in names])
    return "\n".join(lines)


def main() -> None:
    """Race, print the table and keep all figures if asked to."""
    args = tyro.cli(Benchmark)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in args.recipes}
    start = time.perf_counter()
    for seed in args.seeds:
        for name in args.recipes:
            rows[name].append(run(name, seed, args))
            print(f"{time.perf_counter() - start:6.0f} s  seed {seed}  {name}", flush=True)
    print(f"\n{args.data}, test part, n = {rows[args.recipes[0]][0]['num_test']}, ", end="")
    print(
        f"seeds {' '.join(map(str, args.seeds))}: mean (range); torch {torch.__version__}, ",
        end="",
    )
    print(f"{torch.get_num_threads()} threads\n")
    print(table(rows))
    if args.out is not None:
        args.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
