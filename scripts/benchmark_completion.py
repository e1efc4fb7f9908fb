"""Complete test images whose lower half is missing, and ask a reference classifier.

    python scripts/benchmark_completion.py --seeds 0 1 2

Trains the recipe with each seed, completes test images by the model and by two simple fillings,
and prints a Markdown table: accuracy of a reference classifier
(a small network trained on whole real images)
and error in the missing half, mean and range over seeds; and the differences of each seed with
their intervals.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

import jem
from jem import networks
from jem.evaluation.fidelity.report import (
    MEAN_FILL,
    NEAREST,
    CompletionReport,
    completion_accuracy,
)
from jem.evaluation.statistics import plain
from jem.plotting import inputs_figure, save_figure
from jem.randomness import derive_seed
from jem.report.measure import Subject
from jem.report.samples import reference_classifier_of
from jem.training.recipes import RECIPES
from jem.training.trainer import Trainer


@dataclass
class Benchmark:
    """What to complete."""

    recipe: str = "fast"
    """Name of a recipe that trains the density."""
    data: str = "digits"
    """A named set of images."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each seed is another split, initialisation and reference classifier, and other noise."""
    count: int = 360
    """Test inputs at most."""
    data_root: Path | None = None
    """Folder of downloaded data sets; JEM_DATA if left out."""
    out: Path | None = None
    """JSON file for all figures; a picture of the first seed goes beside it."""
    threads: int | None = None
    """Threads of torch; all cores if left out."""


def run(seed: int, args: Benchmark) -> tuple[CompletionReport, jem.JEM]:
    """Train with one seed and measure completions."""
    splits = jem.data.load(args.data, root=args.data_root, seed=seed)
    recipe = RECIPES[args.recipe]
    torch.manual_seed(derive_seed(seed, "network") % 2**32)
    num_classes = len(splits.classes)
    network = networks.network_for(splits.input_shape, num_classes, head=recipe.head)
    model = jem.JEM(network, classes=splits.classes, domain=splits.domain, scaling=splits.scaling)
    Trainer(model, recipe, seed=seed, device="cpu").fit(splits.train, splits.validation)
    report = completion_accuracy(
        model,
        train=splits.train,
        test=splits.test,
        seed=seed,
        reference=reference_classifier_of(Subject(model, splits), seed),
        count=args.count,
    )
    return report, model


def spread(values: list[float]) -> str:
    """Mean and range, as text."""
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def table(reports: list[CompletionReport]) -> str:
    """Markdown table of fillings."""
    lines = ["| filling of the lower half | accuracy | error (rmse) |", "|---|---|---|"]
    for name in reports[0].fillings:
        accuracy = spread([r.fillings[name].accuracy.value for r in reports])
        error = spread([r.fillings[name].rmse for r in reports])
        lines.append(f"| {name} | {accuracy} | {error} |")
    return "\n".join(lines)


def differences(reports: list[CompletionReport]) -> str:
    """Markdown table of differences: each seed with its interval over test inputs."""
    header = " | ".join(f"run {i + 1}" for i in range(len(reports)))
    lines = [f"| accuracy of | minus that of | {header} |", "|---" * (len(reports) + 2) + "|"]
    for name, filling in reports[0].fillings.items():
        if filling.gain_over_mean is None:
            continue
        for key, other in (("gain_over_mean", MEAN_FILL), ("gain_over_nearest", NEAREST)):
            found = [getattr(r.fillings[name], key) for r in reports]
            cells = (f"{d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}]" for d in found)
            lines.append(f"| {name} | {other} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write(
    reports: list[CompletionReport], model: jem.JEM, seeds: tuple[int, ...], out: Path
) -> None:
    """All figures as JSON, and what the first seed's completions look like."""
    figures = {
        seed: {name: plain(filling) for name, filling in report.fillings.items()}
        for seed, report in zip(seeds, reports, strict=True)
    }
    out.write_text(json.dumps(figures, indent=2) + "\n")
    pictures = {name: x.nan_to_num(0.0) for name, x in reports[0].pictures.items()}
    x = torch.cat(list(pictures.values()))
    columns = len(reports[0].pictures["original"])
    figure = inputs_figure(x, model.bounds("cpu"), columns=columns, row_names=list(pictures))
    save_figure(figure, out.with_suffix(".png"))


def main() -> None:
    """Measure, print the tables and keep all figures if asked to."""
    args = tyro.cli(Benchmark)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    start = time.perf_counter()
    reports: list[Any] = []
    for seed in args.seeds:
        report, model = run(seed, args)
        reports.append(report)
        print(f"{time.perf_counter() - start:6.0f} s  seed {seed}", flush=True)
    seeds = " ".join(map(str, args.seeds))
    print(
        f"\n{args.data}, test part, n = {reports[0].num_inputs}, seeds {seeds}: mean (range); ",
        end="",
    )
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print(table(reports))
    print("\nDifferences, 95% intervals, runs in the order of the seeds\n")
    print(differences(reports))
    if args.out is not None:
        write(reports, model, args.seeds, args.out)


if __name__ == "__main__":
    main()
