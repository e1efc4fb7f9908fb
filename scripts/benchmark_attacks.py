"""What is left of the accuracy of `plain` and `fast` under attack, and how strong the attacks are.

    python scripts/benchmark_attacks.py --data digits
    python scripts/benchmark_attacks.py --data digits --library  # needs `pip install torchattacks`

Trains each recipe once, and attacks test images: projected gradient ascent of 40 steps with five
restarts, then all attacks of `jem.robustness_report`. Sizes are of the range of a pixel. With
`--library` the same attack of torchattacks runs on the same images, and on what survives its
targeted APGD beside ours.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn

import jem
from jem.attacks import apgd, pgd
from jem.data import DataPart, DataSplits
from jem.evaluation.robustness import certify
from jem.evaluation.statistics import Estimate, share_estimate
from jem.randomness import named_generator

STEPS, RESTARTS = 40, 5


@dataclass
class Benchmark:
    """What to train, and how to attack it."""

    data: str = "digits"
    """A named data set of images."""
    recipes: tuple[str, ...] = ("plain", "fast")
    """Names of recipes; the first is the one that attacks are transferred from."""
    linf: tuple[float, ...] = (1, 2, 4, 8, 16, 32)
    """Sizes of attacks by the largest change of a pixel, in 255ths of its range."""
    l2: tuple[float, ...] = (0.25, 0.5, 1.0)
    """Sizes of attacks by the Euclidean length of the change, in the range of a pixel."""
    num_train: int | None = None
    """Training images, drawn without replacement; all if left out."""
    num_test: int = 200
    """Test images that are attacked: the first ones."""
    epochs: int | None = None
    """Epochs of every recipe; what the recipe makes of the data if left out."""
    seed: int = 0
    """Of everything."""
    report: bool = True
    """Also make the report of `jem.robustness_report`, and certify."""
    library: bool = False
    """Run the attacks of torchattacks, too."""
    run: Path | None = None
    """Run folder of `jem train --control`: attack its two models, and train none."""
    data_root: Path | None = None
    """Folder of downloaded data sets; JEM_DATA if left out."""
    threads: int | None = 1
    """Threads of torch."""


def trained(name: str, data: DataSplits, args: Benchmark) -> jem.JEM:
    """A model of a recipe, or that of the run folder."""
    if args.run is not None:
        return jem.load(args.run / ("control" if name == "plain" else "") / "model.pt")
    head = jem.RECIPES[name].head
    network = jem.networks.make_network(
        None, data.input_shape, len(data.classes), head, seed=args.seed
    )
    model = jem.JEM(network, classes=data.classes, domain=data.domain, scaling=data.scaling)
    recipe = replace(jem.RECIPES[name], epochs=args.epochs)
    started = time.process_time()
    jem.Trainer(model, recipe, seed=args.seed, device="cpu").fit(data.train, data.validation)
    print(f"{name}: trained in {time.process_time() - started:.0f} processor seconds", flush=True)
    return model.eval()


def attacked(model: jem.JEM, x: Tensor, y: Tensor, norm: str, eps: float) -> Tensor:
    """Whether images keep their class under `pgd`, shape (N,); eps in the range of a pixel."""
    low, high = model.bounds()
    moved = pgd(
        model.logits, x, y, norm=norm, eps=eps * float(high - low), num_steps=STEPS,
        restarts=RESTARTS, bounds=(low, high), generator=named_generator(0, "attack"),
    )  # fmt: skip
    return right(model, moved, y)


def aimed(model: jem.JEM, x: Tensor, y: Tensor, norm: str, eps: float, kept: Tensor) -> Tensor:
    """Which of the kept images also keep their class under `apgd` towards every wrong class."""
    low, high = model.bounds()
    kept = kept.clone()
    if kept.any():
        moved = apgd(
            model.logits, x[kept], y[kept], norm=norm, eps=eps * float(high - low),
            num_steps=STEPS, restarts=len(model.classes) - 1, loss="targeted_dlr",
            bounds=(low, high), generator=named_generator(0, "attack"),
        )  # fmt: skip
        kept[kept.clone()] = right(model, moved, y[kept])
    return kept


def right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Whether inputs get their class, shape (N,)."""
    with torch.no_grad():
        return model(x).argmax(dim=1) == y


class InUnits(nn.Module):
    """A model of images in [0, 1], as torchattacks wants them."""

    def __init__(self, model: jem.JEM) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of images in [0, 1]."""
        low, high = self.model.bounds()
        return self.model.logits(low + (high - low) * x)


def by_library(model: jem.JEM, x: Tensor, y: Tensor, norm: str, eps: float) -> dict[str, Tensor]:
    """Whether images keep their class under the attacks of torchattacks, shape (N,) each."""
    import torchattacks

    low, high = model.bounds()
    units, x = InUnits(model).eval(), (x - low) / (high - low)
    torch.manual_seed(0)
    how: dict[str, Any] = {"eps": eps, "steps": STEPS}
    step = 2.5 * eps / STEPS
    one = (
        torchattacks.PGD(units, alpha=step, **how)
        if norm == "linf"
        else torchattacks.PGDL2(units, alpha=step, **how)
    )
    kept = right(units, x, y)
    for _ in range(RESTARTS):
        kept &= right(units, one(x, y), y)
    targeted = torchattacks.APGDT(
        units, norm={"linf": "Linf", "l2": "L2"}[norm], n_classes=len(model.classes), **how
    )
    survived = kept.clone()
    if kept.any():
        survived[kept] = right(units, targeted(x[kept], y[kept]), y[kept])
    return {"PGD of torchattacks": kept, "then its targeted APGD": survived}


def shown(share: Estimate | None) -> str:
    """A share with its interval, as a cell."""
    if share is None or share.value != share.value:
        return "-"
    if share.low != share.low:
        return f"{share.value:.3f}"
    return f"{share.value:.3f} ({share.low:.3f} to {share.high:.3f})"


def table(head: str, sizes: list[str], columns: dict[str, list[str]]) -> str:
    """Markdown table: a row a size."""
    lines = [f"| {head} | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    cells = zip(sizes, *columns.values(), strict=True)
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in cells])


def reports(
    models: dict[str, jem.JEM], data: DataSplits, x: Tensor, y: Tensor, norm: str, eps: list[float]
) -> dict[str, list[str]]:
    """Columns of all attacks, verdicts and refinement, a cell a size."""
    columns, first = {}, next(iter(models))
    for name, model in models.items():
        scorer = jem.fit_scorer(model, data)
        of = jem.robustness_report(
            model, x, y, eps=eps, norm=norm, detector=scorer.detector,
            plain=None if name == first else models[first],
            refine_steps=10 if model.sampler is not None and norm == "linf" else 0,
        )  # fmt: skip
        print(
            f"{name}, {norm}: found by {of.found_by}, gradients mislead: {of.gradients_mislead}, "
            f"images as they are rejected: {shown(of.clean_rejected)}",
            flush=True,
        )
        rows = of.points[1:]
        figures: dict[str, Callable[[Any], Estimate | None]] = {
            "all attacks": lambda p: p.accuracy,
            f"found on {first}": lambda p: p.transfer_accuracy,
            "refined": lambda p: p.refined_accuracy,
            "turned wrong and rejected": lambda p: p.rejected,
            "change of log-density": lambda p: p.log_density_change,
        }
        for label, figure in figures.items():
            cells = [shown(figure(point)) for point in rows]
            if set(cells) != {"-"}:
                columns[f"{name}, {label}"] = cells
    return columns


def certificates(models: dict[str, jem.JEM], x: Tensor, y: Tensor) -> None:
    """Print the certified accuracy of randomised smoothing."""
    for name, model in models.items():
        low, high = model.bounds()
        width = float(high - low)
        for noise in (0.12, 0.25):
            found = certify(
                model.logits, x[:100], noise_std=noise * width,
                generator=named_generator(0, "smoothing"),
            )  # fmt: skip
            same = found.class_index == y[:100]
            at = {r: share_estimate(same & (found.radius >= r * width)) for r in (0, 0.25, 0.5)}
            cells = ", ".join(f"radius {r}: {shown(share)}" for r, share in at.items())
            print(f"{name}, smoothed with noise {noise}: {cells}", flush=True)


def main() -> None:
    """Train, attack, and print tables."""
    args = tyro.cli(Benchmark)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    data = jem.data.load(args.data, root=args.data_root, seed=args.seed)
    order = torch.randperm(len(data.train), generator=named_generator(args.seed, "rows"))
    data = replace(data, train=DataPart(*data.train[order[: args.num_train]]))
    x, y = data.test[: args.num_test]
    models = {name: trained(name, data, args) for name in args.recipes}
    whole = data.test[: len(data.test)]
    for name, model in models.items():
        print(f"{name}: test accuracy {shown(share_estimate(right(model, *whole)))}", flush=True)
    norms = {"linf": [level / 255 for level in args.linf], "l2": list(args.l2)}
    for norm, sizes in norms.items():
        names = [f"{255 * eps:g}/255" if norm == "linf" else f"{eps:g}" for eps in sizes]
        columns: dict[str, list[str]] = {}
        for name, model in models.items():
            for eps in sizes:
                found = {"PGD": attacked(model, x, y, norm, eps)}
                if args.library:
                    found["then targeted APGD"] = aimed(model, x, y, norm, eps, found["PGD"])
                    found |= by_library(model, x, y, norm, eps)
                for label, kept in found.items():
                    cell = shown(share_estimate(kept))
                    columns.setdefault(f"{name}, {label}", []).append(cell)
                    print(f"{norm} {eps:.4f}  {name}, {label}  {cell}", flush=True)
        if args.report:
            columns |= reports(models, data, x, y, norm, sizes)
        print(f"\n{table(f'{norm}, eps', names, columns)}\n", flush=True)
    if args.report:
        certificates(models, x, y)
    print(f"{args.data}, n = {len(x)}, seed {args.seed}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
