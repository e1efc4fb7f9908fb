"""Turn a trained classifier into a joint energy model: what it gains and what it loses.

    python scripts/benchmark_finetune.py --seeds 0 1 2

A plain classifier is trained; its weights are kept and trained on as a JEM for a share of that
time, with the accuracy on the validation part guarded. Prints a Markdown table of means (and the
range over seeds) before and after, on the test part, which nothing chose on.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import json
import math
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from figures import figures_of

import jem
from jem import networks
from jem.data import DataPart, DataSplits
from jem.randomness import derive_seed, named_generator
from jem.training.recipe import Recipe
from jem.training.recipes import RECIPES
from jem.training.trainer import Trainer


@dataclass
class Benchmark:
    """What to measure."""

    data: str = "digits"
    """A named data set of images."""
    ood_sets: tuple[str, ...] = ()
    """More OOD sets, beside those that are made up: named data sets or files."""
    data_root: Path | None = None
    """Folder of downloaded data sets; JEM_DATA if left out."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each seed is another split, another initialisation and other noise."""
    share: float = 0.1
    """Time of fine-tuning, as a share of that of the plain classifier."""
    update_cost: float = 3.0
    """Time of an update of fine-tuning in updates of the plain classifier: turns the share into
    updates. The table says what share it came to."""
    accuracy_margin: float | None = 0.01
    """Largest loss of validation accuracy that the density may cost; None does not look."""
    epochs: int | None = None
    """Epochs of the plain classifier; about 1,500 updates if left out."""
    part: str = "test"
    """Part that is measured: test, or validation to choose settings on (with other seeds)."""
    out: Path | None = None
    """JSON file for all figures of all runs."""
    threads: int | None = None
    """Threads of torch; all cores if left out."""


def fit(model: jem.JEM, recipe: Recipe, data: DataSplits, seed: int) -> dict[str, Any]:
    """Train, and say how long it took and what the guard of the accuracy saw."""
    start = time.process_time()
    result = Trainer(model, recipe, seed=seed, device="cpu").fit(data.train, data.validation)
    row = {"cpu_seconds": time.process_time() - start, "iterations": result.iterations}
    within = [epoch["within_margin"] for epoch in result.epochs if "within_margin" in epoch]
    return row | {"recoveries": result.recoveries, "epochs_within": sum(within)}


def run(seed: int, args: Benchmark) -> dict[str, dict[str, Any]]:
    """Train plain, measure, fine-tune, measure."""
    data = jem.data.load(args.data, root=args.data_root, seed=seed)
    measured = replace(data, test=getattr(data, args.part))
    ood_sets = {
        Path(other).stem: jem.data.load(other, root=args.data_root).test[:2000][0]
        for other in args.ood_sets
    }
    torch.manual_seed(derive_seed(seed, "network") % 2**32)
    network = networks.network_for(data.input_shape, len(data.classes), head="joint")
    model = jem.JEM(network, classes=data.classes, domain=data.domain, scaling=data.scaling)

    plain = replace(RECIPES["plain"], epochs=args.epochs)
    row = fit(model, plain, data, seed)
    before = row | figures_of(model, measured, ood_sets, seed)
    tuning = replace(RECIPES["finetune"], accuracy_margin=args.accuracy_margin)
    updates = max(1, round(args.share * row["iterations"] / args.update_cost))
    epochs = math.ceil(updates * tuning.batch_size / len(data.train))
    some = some_rows(data, updates // epochs * tuning.batch_size, seed)
    row = fit(model, replace(tuning, epochs=epochs), some, seed) | {"epochs": epochs}
    return {"before": before, "after": row | figures_of(model, measured, ood_sets, seed)}


def some_rows(data: DataSplits, count: int, seed: int) -> DataSplits:
    """The data with so many rows of the training part, drawn without replacement."""
    order = torch.randperm(len(data.train), generator=named_generator(seed, "rows"))
    return replace(data, train=DataPart(*data.train[order[:count]]))


def spread(values: list[float], digits: int) -> str:
    """Mean and range, as text."""
    low, high = min(values), max(values)
    return f"{statistics.mean(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown table, a column before and one after."""
    lines = ["| figure | before | after |", "|---|---|---|"]

    def add(label: str, values: dict[str, list[float]], digits: int) -> None:
        cells = " | ".join(spread(values[name], digits) for name in ("before", "after"))
        lines.append(f"| {label} | {cells} |")

    for key, digits in (("accuracy", 4), ("nll", 3), ("ece", 4)):
        add(key, {name: [row[key] for row in rows[name]] for name in rows}, digits)
    for ood_sets in rows["before"][0]["auroc"]:
        values = {name: [row["auroc"][ood_sets]["value"] for row in rows[name]] for name in rows}
        add(f"AUROC of log-density, {ood_sets}", values, 4)
    add("processor seconds", {n: [row["cpu_seconds"] for row in rows[n]] for n in rows}, 1)
    shares = [
        after["cpu_seconds"] / before["cpu_seconds"]
        for before, after in zip(rows["before"], rows["after"], strict=True)
    ]
    lines.append(f"| the same, as a share | 1 | {spread(shares, 3)} |")
    add("updates", {n: [row["iterations"] for row in rows[n]] for n in rows}, 0)
    within = [f"{row['epochs_within']} of {row['epochs']}" for row in rows["after"]]
    lines.append(f"| epochs within the margin, by seed | - | {', '.join(within)} |")
    recoveries = {name: sum(row["recoveries"] for row in rows[name]) for name in rows}
    lines.append(f"| recoveries | {recoveries['before']} | {recoveries['after']} |")
    return "\n".join(lines)


def main(args: Benchmark) -> dict[str, list[dict[str, Any]]]:
    """Run every seed, print the table and keep all figures if asked to."""
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    rows: dict[str, list[dict[str, Any]]] = {"before": [], "after": []}
    for seed in args.seeds:
        for name, row in run(seed, args).items():
            rows[name].append(row)
        print(f"seed {seed}: done", flush=True)
    print(
        f"\n{args.data}, {args.part} part, n = {rows['before'][0]['num_test']}, seeds "
        f"{' '.join(map(str, args.seeds))}: mean (range); margin {args.accuracy_margin}, "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads\n"
    )
    print(table(rows))
    if args.out is not None:
        args.out.write_text(json.dumps(rows, indent=2) + "\n")
    return rows


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
