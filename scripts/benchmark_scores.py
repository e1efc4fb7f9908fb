"""Which score suits a plain classifier, as it is?

    python scripts/benchmark_scores.py --cases digits fashion_mnist

Trains networks by cross-entropy alone (recipe `plain`) without one class of digits, two of images
in colour or of Fashion-MNIST, or 19 intents of banking77, and prints the AUROC of every score for
each OOD set, and the share of each set that is flagged where 95 % of inputs like the data are
accepted: a Markdown table of means over models. With `--recipe fast` the same for joint energy
models, and with `--recipe companion` for companions of plain classifiers.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import tyro

import jem
from jem.data import make_ood_set
from jem.evaluation.ood import SCORES, SUMS
from jem.networks import make_network
from jem.serving.scorer import fit_scorer
from jem.training.recipes import RECIPES
from jem.training.trainer import Trainer

sys.path.insert(0, str(Path(__file__).parent))
from benchmark_verdict import banking77, images


@dataclass
class Benchmark:
    """What to train, and how often."""

    cases: tuple[str, ...] = ("digits", "fashion_mnist")
    """Data sets: of Fashion-MNIST 5,000 inputs."""
    models: int = 3
    """Models of each, which leave out other classes."""
    seed: int = 0
    """Of the first model; the default score was chosen with seeds from 100 on."""
    scores: tuple[str, ...] = (*SUMS, *SCORES)
    """Scores, and sums of them."""
    recipe: str = "plain"
    """How they are trained."""
    data_root: Path | None = None
    """Folder of downloaded data sets; JEM_DATA if left out."""


def measured(name: str, seed: int, args: Benchmark) -> dict[str, dict[str, tuple[float, float]]]:
    """(AUROC, share flagged) of each score for each OOD set."""
    read = banking77 if name == "banking77" else partial(images, name)
    data, sets = read(seed, args.data_root)
    if data.kind == "image":
        sets["uniform noise"] = make_ood_set("uniform_noise", data, 1000, seed=seed)
    about = {"classes": data.classes, "domain": data.domain, "scaling": data.scaling}
    shape, network = data.input_shape, None
    for recipe in ("plain", "companion") if args.recipe == "companion" else (args.recipe,):
        settings = RECIPES[recipe]
        if name not in ("digits", "banking77"):
            settings = replace(settings, epochs=8)
        if network is None:
            network = make_network(None, shape, len(data.classes), settings.head, seed)
        else:
            network = jem.companion(network, input_shape=shape, num_classes=len(data.classes))
        model = jem.JEM(network, **about)
        Trainer(model, settings, seed=seed, device="cpu").fit(data.train, data.validation)
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for score in args.scores:
        try:
            detector = fit_scorer(model, data, score=score).detector
        except jem.InputError:  # a head that is not linear
            continue
        inside = detector.score(data.test[:][0])
        found[score] = {}
        for other, x in sets.items():
            scores = detector.score(x)
            flagged = float(detector.verdict(scores).is_ood.double().mean())
            found[score][other] = jem.ood_metrics(inside, scores).auroc, flagged
    return found


def main() -> None:
    """Train, and print the tables."""
    args = tyro.cli(Benchmark)
    torch.set_num_threads(1)
    for name in args.cases:
        cells: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for seed in range(args.seed, args.seed + args.models):
            for score, figures in measured(name, seed, args).items():
                for other, pair in figures.items():
                    cells[score][other].append(pair)
            print(f"{name} {seed}: done", file=sys.stderr, flush=True)
        sets = list(next(iter(cells.values())))
        print(f"\n| {name}, {args.recipe}: AUROC / flagged | " + " | ".join(sets) + " | mean |")
        print("|---" * (len(sets) + 2) + "|")
        for score, row in cells.items():
            means = [[statistics.mean(v) for v in zip(*row[s], strict=True)] for s in sets]
            mean = [statistics.mean(v) for v in zip(*means, strict=True)]
            shown = " | ".join(f"{a:.3f} / {f:.2f}" for a, f in [*means, mean])
            print(f"| {score} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
