"""Race recipes on one data set: same network body, data and machine, several seeds, one table.

    python scripts/benchmark_recipes.py --recipes plain fast --seeds 0 1 2

Prints a Markdown table of means (and the range over seeds) on the test part, which chose
nothing. Every run is a process of its own, one at a time, so that its peak memory is known. On a
machine with other work, processor seconds compare better than seconds. With `--out` each finished
run is kept at once, and a race that was cut goes on where it was; with `--runs` within a run, too.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import json
import multiprocessing
import statistics
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from figures import figures_of
from memory import peak_memory
from torch import Tensor

import jem
from jem import networks
from jem.data import DataSplits
from jem.data.splits import draw_subset
from jem.evaluation.fidelity.distances import frechet_distance
from jem.evaluation.fidelity.reference_classifier import (
    ReferenceClassifier,
    train_reference_classifier,
)
from jem.randomness import derive_seed
from jem.report.samples import LARGEST_TRAINING_SET
from jem.training.recipes import RECIPES
from jem.training.trainer import Trainer

SAMPLES_A_CLASS = 50


@dataclass
class Benchmark:
    """What to race."""

    recipes: tuple[str, ...] = ("plain", "fast")
    """Names of recipes; the first is what times are compared with. `ebmkit` is that package."""
    peer_seconds: float = 200.0
    """Processor seconds that another package trains for."""
    data: str = "digits"
    """A named data set."""
    ood_sets: tuple[str, ...] = ()
    """More OOD sets, beside those that are made up: named data sets or files."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each seed is another split, another initialisation and other noise."""
    epochs: int | None = None
    """Epochs of every recipe; what the recipe makes of the data if left out."""
    flip: bool = False
    """Mirror training images at random, in every recipe."""
    learning_rates: dict[str, float] = field(default_factory=dict)
    """Learning rates that replace those of recipes: names and rates, one after another."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of matrix products and convolutions, in every recipe."""
    data_root: Path | None = None
    """Folder of downloaded data sets; JEM_DATA if left out."""
    out: Path | None = None
    """Keeps the figures of each run, a JSON line each; runs that it holds are not made again."""
    runs: Path | None = None
    """Keeps a run folder of each run; one that was cut goes on from its last checkpoint."""
    threads: int | None = None
    """Threads of torch; all cores if left out."""


def race_one(
    name: str, seed: int, args: Benchmark, reference: ReferenceClassifier | None
) -> dict[str, Any]:
    """Train one recipe with one seed and measure it."""
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    splits = jem.data.load(args.data, root=args.data_root, seed=seed)
    recipe = replace(RECIPES["jem" if name == "ebmkit" else name], precision=args.precision)
    if args.epochs is not None:
        recipe = replace(recipe, epochs=args.epochs)
    if name in args.learning_rates:
        recipe = replace(recipe, learning_rate=args.learning_rates[name])
    if args.flip:
        recipe = replace(recipe, augment_flip=True)
    torch.manual_seed(derive_seed(seed, "network") % 2**32)
    num_classes = len(splits.classes)
    network = networks.network_for(splits.input_shape, num_classes, head=recipe.head)
    model = jem.JEM(network, classes=splits.classes, domain=splits.domain, scaling=splits.scaling)
    row: dict[str, Any] = {"recipe": name, "seed": seed, "precision": args.precision}
    resume = False
    start, wall = time.process_time(), time.perf_counter()
    try:
        if name == "ebmkit":
            import peer_ebmkit

            updates = peer_ebmkit.train(model, splits, args.peer_seconds, seed)
            row |= {"seconds": time.perf_counter() - wall, "iterations": updates, "recoveries": 0}
        else:
            folder = None if args.runs is None else args.runs / f"{args.data}-{name}-{seed}"
            resume = folder is not None and folder.exists()
            trainer = Trainer(model, recipe, seed=seed, device="cpu", run_dir=folder)
            result = trainer.fit(splits.train, splits.validation, resume=resume)
            row |= {"seconds": result.seconds, "iterations": result.iterations}
            row["recoveries"] = result.recoveries
    except jem.TrainingDivergedError as error:
        return row | {"failed": str(error)}
    if not resume:  # else the processor seconds before the cut are not known
        row["cpu_seconds"] = time.process_time() - start
    row["memory"] = peak_memory()
    ood_sets = {
        Path(other).stem: jem.data.load(other, root=args.data_root).test.x[:2000]
        for other in args.ood_sets
    }
    row |= figures_of(model, splits, ood_sets, seed)
    if recipe.trains_density and reference is not None:
        row |= samples_of(model, splits, reference, seed)
    return row


def samples_of(
    model: jem.JEM, splits: DataSplits, reference: ReferenceClassifier, seed: int
) -> dict[str, float]:
    """Agreement and Frechet distance of fresh samples of every class.

    Beside them, the same of real test inputs, for the distance at most as many, and of where
    chains begin, which takes no training at all.
    """
    labels = torch.arange(len(splits.classes)).repeat_interleave(SAMPLES_A_CLASS)
    x = jem.sample(model, labels, seed=seed).cpu()
    begun = jem.sample(model, labels, seed=seed, num_steps=0).cpu()
    real, fake = reference.features(splits.train.x), reference.features(x)
    frechet = frechet_distance(real, fake, seed=seed)

    def distance(inputs: Tensor) -> float:
        return frechet_distance(real, reference.features(inputs), num_bootstrap=0).value

    return {
        "agreement": float((reference.predict(x) == labels).float().mean()),
        "agreement_real": float(
            (reference.predict(splits.test.x) == splits.test.y).float().mean()
        ),
        "frechet": frechet.value,
        "frechet_error": frechet.std_error,
        "frechet_start": distance(begun),
        "frechet_real": distance(splits.test.x[: len(x)]),
    }


def reference_classifier_of(seed: int, args: Benchmark) -> ReferenceClassifier | None:
    """The network in whose features the samples of a seed are measured."""
    splits = jem.data.load(args.data, root=args.data_root, seed=seed)
    if splits.kind != "image":
        return None
    num_classes = len(splits.classes)
    x, y = draw_subset(splits.train, LARGEST_TRAINING_SET, seed=seed, name="judge")
    return train_reference_classifier(x, y, num_classes, seed=seed, data=args.data)


def draws(name: str) -> bool:
    """Whether a recipe makes a model that can be sampled."""
    return name == "ebmkit" or RECIPES[name].trains_density


def spread(values: list[float], digits: int) -> str:
    """Mean and range, as text."""
    low, high = min(values), max(values)
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if low == high else f"{mean} ({low:.{digits}f} to {high:.{digits}f})"


FIGURES = (
    ("accuracy", "accuracy", 4),
    ("NLL, nats", "nll", 3),
    ("ECE", "ece", 4),
    ("NLL after temperature", "nll_scaled", 3),
    ("ECE after temperature", "ece_scaled", 4),
    ("AUROC", "auroc", 4),
    ("agreement of samples", "agreement", 3),
    ("agreement of real test inputs", "agreement_real", 3),
    ("Frechet distance of samples", "frechet", 1),
    ("standard error of it in a run", "frechet_error", 1),
    ("Frechet distance of where chains begin", "frechet_start", 1),
    ("Frechet distance of real test inputs", "frechet_real", 1),
    ("seconds of fit", "seconds", 1),
    ("processor seconds of fit", "cpu_seconds", 1),
    ("peak memory of the process, MiB", "memory", 0),
)


def table(rows: list[dict[str, Any]], names: tuple[str, ...]) -> str:
    """Markdown table, a column a recipe."""
    finished = {n: [r for r in rows if r["recipe"] == n and "failed" not in r] for n in names}
    lines = ["| figure | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]

    def add(label: str, cells: list[str]) -> None:
        lines.append(f"| {label} | " + " | ".join(cells) + " |")

    def cell(values: list[float], digits: int) -> str:
        return spread(values, digits) if values else "-"

    for label, key, digits in FIGURES:
        if key != "auroc":
            values = [[row[key] for row in finished[n] if key in row] for n in names]
            add(label, [cell(v, digits) for v in values])
            continue
        some = next(row for n in names for row in finished[n])
        for ood_sets in some["auroc"]:
            values = [[row["auroc"][ood_sets]["value"] for row in finished[n]] for n in names]
            used = [
                any(r["auroc"][ood_sets]["used_in_training"] for r in finished[n]) for n in names
            ]
            cells = [cell(v, digits) for v in values]
            marked = [
                f"{c} *used in training*" if u else c for c, u in zip(cells, used, strict=True)
            ]
            add(f"AUROC of log-density, {ood_sets}", marked)
    for label, key in (("seconds", "seconds"), ("processor seconds", "cpu_seconds")):
        known = {n: {r["seed"]: r[key] for r in finished[n] if key in r} for n in names}
        ratios = [ratio_text(known[n], known[names[0]]) for n in names]
        add(f"{label}, times {names[0]}", ratios)
    add("updates", [cell([float(r["iterations"]) for r in finished[n]], 0) for n in names])
    add("recoveries", [str(sum(row["recoveries"] for row in finished[n])) for n in names])
    failed = {n: sum(r["recipe"] == n and "failed" in r for r in rows) for n in names}
    attempts = {n: failed[n] + len(finished[n]) for n in names}
    add("runs that diverged for good", [f"{failed[n]} of {attempts[n]}" for n in names])
    return "\n".join(lines)


def ratio_text(seconds: dict[int, float], baseline: dict[int, float]) -> str:
    """Time of a recipe over that of the baseline, in the seeds that both finished."""
    both = seconds.keys() & baseline.keys()
    if not both:
        return "-"
    return f"{sum(seconds[s] for s in both) / sum(baseline[s] for s in both):.2f}"


def main() -> None:
    """Race, print the table and keep all figures if asked to."""
    args = tyro.cli(Benchmark)
    rows: list[dict[str, Any]] = []
    if args.out is not None and args.out.exists():
        rows = [json.loads(line) for line in args.out.read_text().splitlines()]
    rows = [row for row in rows if row.get("precision", args.precision) == args.precision]
    done = {(row["recipe"], row["seed"]) for row in rows}
    processes = multiprocessing.get_context("spawn")
    for seed in args.seeds:
        left = [name for name in args.recipes if (name, seed) not in done]
        drawn = any(draws(name) for name in left)
        reference = reference_classifier_of(seed, args) if drawn else None
        for name in left:
            with processes.Pool(1) as pool:
                row = pool.apply(race_one, (name, seed, args, reference))
            rows.append(row)
            print(f"seed {seed}  {name}  {row.get('failed') or round(row['seconds'])}", flush=True)
            if args.out is not None:
                with args.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    rows = [row for row in rows if row["recipe"] in args.recipes and row["seed"] in args.seeds]
    num_test = next(row["num_test"] for row in rows if "num_test" in row)
    threads = args.threads or torch.get_num_threads()
    print(
        f"\n{args.data}, test part, n = {num_test}, seeds {' '.join(map(str, args.seeds))}: "
        f"mean (range); torch {torch.__version__}, {args.precision}, {threads} threads\n"
    )
    print(table(rows, args.recipes))


if __name__ == "__main__":
    main()
