"""Networks with batch normalisation, trained from scratch by several recipes: one table.

    python scripts/benchmark_own_networks.py --data digits mnist5000.npz --seeds 0 1 2

The networks are those of `own_networks.py`. All recipes train the same network for as many epochs.
Prints a row for each data set, network and recipe, on the test part, which chose nothing.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import json
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import own_networks
import torch
import tyro

import jem
from jem.data import DataPart, DataSplits
from jem.data.shifts import make_ood_set
from jem.evaluation.ood.metrics import ood_metrics
from jem.model import batched_logits
from jem.networks import make_network
from jem.plotting import inputs_figure, save_figure
from jem.randomness import derive_seed
from jem.training.recipes import RECIPES

OOD_SETS = {"noise": "uniform_noise", "photo patches": "photo_patches"}


@dataclass
class Benchmark:
    """What to train."""

    data: tuple[str, ...] = ("digits",)
    """Named data sets, files or folders, of images."""
    networks: tuple[str, ...] = ("resnet", "vgg")
    """Functions of `own_networks.py`."""
    recipes: tuple[str, ...] = ("plain", "fast")
    """Names of recipes; `fast:towers` puts a density beside the network."""
    seeds: tuple[int, ...] = (0,)
    """Each seed is another split, another initialisation and other noise."""
    updates: int = 400
    """Updates of a run, about: whole epochs of batches of 64."""
    limit: int = 5000
    """Examples of each part that are used at most."""
    data_root: Path | None = None
    """Folder of downloaded data sets; JEM_DATA if left out."""
    out: Path | None = None
    """Keeps the figures of each run, a JSON line each; runs that it holds are not made again."""
    pictures: Path | None = None
    """Folder for samples of each model, a row a class."""


def load(name: str, seed: int, args: Benchmark) -> DataSplits:
    """The data, at most `limit` examples of each part."""
    splits = jem.data.load(name, root=args.data_root, seed=seed)
    parts = {
        part: DataPart(*getattr(splits, part)[: args.limit])
        for part in ("train", "validation", "calibration", "test")
    }
    return replace(splits, **parts)


def run_one(
    splits: DataSplits, network: str, recipe: str, seed: int, args: Benchmark
) -> dict[str, Any]:
    """Train and measure one network."""
    torch.manual_seed(derive_seed(seed, "network") % 2**32)
    recipe, _, head = recipe.partition(":")
    module = getattr(own_networks, network)(splits.input_shape, len(splits.classes))
    module = make_network(module, splits.input_shape, len(splits.classes), head or "joint", seed)
    model = jem.JEM(module, classes=splits.classes, domain=splits.domain, scaling=splits.scaling)
    settings = RECIPES[recipe]
    epochs = max(1, round(args.updates * settings.batch_size / len(splits.train)))
    trainer = jem.Trainer(model, replace(settings, epochs=epochs), seed=seed, device="cpu")
    try:
        result = trainer.fit(splits.train, splits.validation)
    except jem.TrainingDivergedError as error:
        return {"failed": str(error)}
    x, y = splits.test.x, splits.test.y
    logits = batched_logits(model, x)
    found: dict[str, Any] = {
        "accuracy": float((logits.argmax(dim=1) == y).float().mean()),
        "nll": float(torch.nn.functional.cross_entropy(logits, y)),
        "seconds": result.seconds,
        "updates": result.iterations,
        "tested": len(x),
    }
    for label, name in OOD_SETS.items():
        outside = batched_logits(model, make_ood_set(name, splits, 1000, seed=seed))
        scores = logits.logsumexp(dim=1), outside.logsumexp(dim=1)
        found[label] = ood_metrics(*scores).auroc
    if settings.trains_density and args.pictures is not None:
        labels = torch.arange(len(splits.classes)).repeat_interleave(8)
        figure = inputs_figure(jem.sample(model, labels, seed=seed), model.bounds(), columns=8)
        args.pictures.mkdir(parents=True, exist_ok=True)
        name = f"{splits.name}-{network}-{recipe}-{seed}.png".replace("/", "_")
        save_figure(figure, args.pictures / name)
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown table, a row for each data set, network and recipe: means over seeds."""
    figures = {"accuracy": 4, "nll": 3} | dict.fromkeys(OOD_SETS, 4) | {"seconds": 0}
    lines = [
        "| data | network | recipe | runs | test accuracy | NLL | AUROC, noise "
        "| AUROC, photo patches | seconds |",
        "|---" * 9 + "|",
    ]
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["data"], row["network"], row["recipe"]), []).append(row)
    for group, members in sorted(groups.items()):
        done = [row for row in members if "failed" not in row]
        cells = [f"{len(done)} of {len(members)}"]
        for name, digits in figures.items():
            values = [row[name] for row in done]
            cells.append(f"{statistics.mean(values):.{digits}f}" if values else "-")
        lines.append("| " + " | ".join((*group, *cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    """Train, print the table, and keep all figures if asked to."""
    args = tyro.cli(Benchmark)
    rows: list[dict[str, Any]] = []
    if args.out is not None and args.out.exists():
        rows = [json.loads(line) for line in args.out.read_text().splitlines()]
    done = {(row["data"], row["network"], row["recipe"], row["seed"]) for row in rows}
    for seed in args.seeds:
        for data in args.data:
            splits = load(data, seed, args)
            for network in args.networks:
                for recipe in args.recipes:
                    key = (Path(data).stem, network, recipe, seed)
                    if key in done:
                        continue
                    row = dict(zip(("data", "network", "recipe", "seed"), key, strict=True))
                    row |= run_one(splits, network, recipe, seed, args)
                    rows.append(row)
                    print(json.dumps(row), flush=True)
                    if args.out is not None:
                        with args.out.open("a") as file:
                            file.write(json.dumps(row) + "\n")
    threads = torch.get_num_threads()
    print(f"\ntorch {torch.__version__}, {threads} threads; means over the runs that ended\n")
    print(table(rows))


if __name__ == "__main__":
    main()
