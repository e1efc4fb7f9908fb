"""Leave a class out in turn: are its test inputs told from those of the classes that stay?

    python scripts/benchmark_unseen.py --data digits

The hardest foreign inputs are of the same kind as the data. Each class is taken out once, and with
each choice another split, initialisation and noise; nothing is chosen on what is reported. Prints
a Markdown table, a row a class and one of means, with the AUROC of two scores: the log-density,
and the largest probability, which any classifier has.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import statistics
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro

import jem
from jem import networks
from jem.data import hold_out
from jem.training.recipes import RECIPES
from jem.training.trainer import Trainer

SCORES = ("log_density", "max_probability")


@dataclass
class Benchmark:
    """What to leave out, and who is asked."""

    data: str = "digits"
    """A named data set."""
    recipes: tuple[str, ...] = ("plain", "fast")
    """Names of recipes."""
    epochs: int | None = None
    """Epochs of every recipe; what the recipe makes of the data if left out."""
    flip: bool = False
    """Mirror training images at random, in every recipe."""
    data_root: Path | None = None
    """Folder of downloaded data sets; JEM_DATA if left out."""
    threads: int | None = None
    """Threads of torch; all cores if left out."""


def unseen(index: int, recipe_name: str, args: Benchmark) -> dict[str, float]:
    """AUROC of each score, and accuracy on the classes that stay, with one class left out."""
    data = jem.data.load(args.data, root=args.data_root, seed=index)
    data, ood_sets = hold_out(data, [data.classes[index]])
    recipe = replace(RECIPES[recipe_name], epochs=args.epochs)
    if args.flip:
        recipe = replace(recipe, augment_flip=True)
    network = networks.make_network(
        None, data.input_shape, len(data.classes), recipe.head, seed=index
    )
    model = jem.JEM(network, classes=data.classes, domain=data.domain, scaling=data.scaling)
    Trainer(model, recipe, seed=index, device="cpu").fit(data.train, data.validation)
    x, y = data.test[: len(data.test)]
    probabilities = torch.cat([model.predict_proba(part) for part in x.split(256)])
    found = {"accuracy": float((probabilities.argmax(dim=1) == y).float().mean())}
    for score in SCORES:
        own, other = (jem.OODDetector(model, score).score(z) for z in (x, ood_sets))
        found[score] = jem.ood_metrics(own, other).auroc
    return found


def table(found: dict[str, list[dict[str, float]]], classes: tuple[str, ...]) -> str:
    """Markdown table: a row a class that was left out, and their mean."""
    columns = [(name, score) for name in found for score in SCORES]
    heads = [f"{name}, {score.replace('_', ' ')}" for name, score in columns]
    lines = ["| left out | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for k, label in enumerate(classes):
        cells = [f"{found[name][k][score]:.4f}" for name, score in columns]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    means = [statistics.mean(row[score] for row in found[name]) for name, score in columns]
    lines.append("| mean | " + " | ".join(f"{mean:.4f}" for mean in means) + " |")
    return "\n".join(lines)


def main() -> None:
    """Leave each class out, and print the table."""
    args = tyro.cli(Benchmark)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    classes = jem.data.load(args.data, root=args.data_root, seed=0).classes
    found: dict[str, list[dict[str, float]]] = {name: [] for name in args.recipes}
    for index, label in enumerate(classes):
        for name in args.recipes:
            found[name].append(unseen(index, name, args))
            print(f"without {label}  {name}  {found[name][-1]}", flush=True)
    print(f"\n{args.data}, AUROC of a class left out; torch {torch.__version__}\n")
    print(table(found, classes))
    for name, rows in found.items():
        accuracy = statistics.mean(row["accuracy"] for row in rows)
        print(f"{name}: mean accuracy on the classes that stay {accuracy:.4f}")


if __name__ == "__main__":
    main()
