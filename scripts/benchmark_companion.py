"""Give a trained classifier a companion: what it gains, what it keeps, and what it costs.

    python scripts/benchmark_companion.py --seeds 0 1 2

A residual network with batch normalisation (or the network of `--classifier`) is trained as a
plain classifier. Beside it the recipe `companion` trains a density, and `fast` trains a network of
ours from scratch, to compare with.
Prints a Markdown table of means (and the range over seeds), on the test part.
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
from figures import figures_of
from torch import Tensor, nn

import jem
from jem import networks
from jem.data import DataPart, DataSplits
from jem.evaluation.fidelity.reference_classifier import train_reference_classifier
from jem.randomness import derive_seed, named_generator

SAMPLES_A_CLASS = 20


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
    num_train: int | None = None
    """Training examples, drawn without replacement; all if left out."""
    num_test: int | None = None
    """Test examples; all if left out."""
    classifier_epochs: int | None = None
    """Epochs of the classifier; about 1,500 updates if left out."""
    epochs: int | None = None
    """Epochs of `companion` and of `fast`; about 1,500 updates if left out."""
    width: int = 16
    """Channels of the residual network at full size."""
    classifier: str = ""
    """Another classifier: the name and sizes of a network of ours, such as
    pooled_cnn:width=64,norm=batch."""
    classifier_file: Path | None = None
    """Keep the trained classifier in this file, or take it from there if it exists. All seeds then
    divide the data as the first one, and differ in the companion alone."""
    sgd: bool = False
    """Train the classifier by SGD (learning rate 0.1, weight decay 5e-4, batches of 128) instead
    of Adam: more accurate on photographs."""
    fast: bool = True
    """Train `fast` from scratch, too."""
    out: Path | None = None
    """JSON file for all figures of all runs."""
    threads: int | None = None
    """Threads of torch; all cores if left out."""


class Block(nn.Module):
    """Residual block of two convolutions with batch normalisation."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H/stride, W/stride)."""
        return (self.branch(x) + self.shortcut(x)).relu()  # type: ignore[no-any-return]


def resnet(channels: int, num_classes: int, width: int) -> nn.Module:
    """A small residual network with batch normalisation, as users bring it."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        Block(width, width, 1),
        Block(width, 2 * width, 2),
        Block(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, num_classes),
    )


def fit(
    model: jem.JEM, recipe: jem.Recipe, data: DataSplits, seed: int, file: Path | None = None
) -> dict[str, Any]:
    """Train, and say what it took; take the trained model from the file if it is there."""
    if file is not None and file.exists():
        state, figures = torch.load(file)
        model.load_state_dict(state)
        model.eval()  # or the answers that are compared below would change its statistics
        return figures  # type: ignore[no-any-return]
    start = time.process_time()
    result = jem.Trainer(model, recipe, seed=seed, device="cpu").fit(data.train, data.validation)
    seconds = time.process_time() - start
    figures = {"iterations": result.iterations, "recoveries": result.recoveries}
    figures |= {"cpu_seconds": seconds, "ms": 1000 * seconds / result.iterations}
    if file is not None:
        torch.save((model.state_dict(), figures), file)
    return figures


def run(seed: int, args: Benchmark) -> dict[str, dict[str, Any]]:
    """Train and measure the classifier, its companion, and `fast` from scratch."""
    division = seed if args.classifier_file is None else args.seeds[0]
    data = jem.data.load(args.data, root=args.data_root, seed=division)
    data = replace(data, train=some(data.train, args.num_train, seed))
    data = replace(data, test=some(data.test, args.num_test, seed))
    ood_sets = {
        Path(other).stem: jem.data.load(other, root=args.data_root).test[:2000][0]
        for other in args.ood_sets
    }
    num_classes = len(data.classes)
    reference = train_reference_classifier(data.train.x, data.train.y, num_classes, seed=seed)
    labels = torch.arange(num_classes).repeat_interleave(SAMPLES_A_CLASS)

    def model_of(network: nn.Module) -> jem.JEM:
        return jem.JEM(network, classes=data.classes, domain=data.domain, scaling=data.scaling)

    def measured(model: jem.JEM, recipe: jem.Recipe, file: Path | None = None) -> dict[str, Any]:
        row = fit(model, recipe, data, seed, file) | figures_of(model, data, ood_sets, seed)
        print({name: value for name, value in row.items() if name != "auroc"}, flush=True)
        if recipe.trains_density:
            x = jem.sample(model, labels, seed=seed)
            row["own"] = share(model.predict_proba(x).argmax(dim=1) == labels)
            row["agreement"] = share(reference.predict(x) == labels)
        return row

    torch.manual_seed(derive_seed(seed, "network") % 2**32)
    classifier: nn.Module = resnet(data.input_shape[0], num_classes, args.width)
    if args.classifier:
        classifier = networks.network_from_text(
            args.classifier, data.input_shape, num_classes, head="joint"
        )
    plain = replace(jem.RECIPES["plain"], epochs=args.classifier_epochs)
    if args.sgd:
        plain = replace(
            plain,
            optimizer="sgd",
            learning_rate=0.1,
            weight_decay=5e-4,
            batch_size=128,
            warmup=0.2,
        )
    rows = {"classifier": measured(model_of(classifier), plain, args.classifier_file)}
    with torch.no_grad():
        said = torch.cat([classifier(x).softmax(dim=1) for x in data.test.x.split(256)])
    both = jem.companion(classifier, input_shape=data.input_shape, num_classes=num_classes)
    model = model_of(both)
    recipe = replace(jem.RECIPES["companion"], epochs=args.epochs)
    rows["companion"] = measured(model, recipe)
    rows["companion"]["same_bits"] = float(model.predict_proba(data.test.x).equal(said))
    if not args.fast:
        return rows
    network = networks.network_for(data.input_shape, num_classes)
    rows["fast"] = measured(model_of(network), replace(jem.RECIPES["fast"], epochs=args.epochs))
    return rows


def share(right: Tensor) -> float:
    """Share of true values."""
    return float(right.float().mean())


def some(part: Any, count: int | None, seed: int) -> DataPart:  # noqa: ANN401
    """So many rows of a part, drawn without replacement; all if None."""
    order = torch.randperm(len(part), generator=named_generator(seed, "rows"))
    return DataPart(*part[order[:count]])


def spread(values: list[float], digits: int) -> str:
    """Mean and range, as text; the value where there is one."""
    low, high = min(values), max(values)
    if low == high:
        return f"{low:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown table: a column for the classifier, its companion and `fast`."""
    titles = {"classifier": "classifier", "companion": "companion", "fast": "`fast` from scratch"}
    lines = [
        f"| figure | {' | '.join(titles[name] for name in rows)} |",
        "|---" * (1 + len(rows)) + "|",
    ]

    def add(label: str, values: dict[str, list[float | None]], digits: int) -> None:
        cells = (
            "-"
            if None in values[name]
            else spread([v for v in values[name] if v is not None], digits)
            for name in rows
        )
        lines.append(f"| {label} | {' | '.join(cells)} |")

    figures = (
        ("accuracy", "accuracy", 4), ("nll", "NLL", 4), ("ece", "ECE", 4),
        ("same_bits", "probabilities equal to the bit, share of seeds", 0),
    )  # fmt: skip
    for key, label, digits in figures:
        add(label, {name: [row.get(key) for row in rows[name]] for name in rows}, digits)
    for ood_set in rows["classifier"][0]["auroc"]:
        values = {name: [row["auroc"][ood_set]["value"] for row in rows[name]] for name in rows}
        add(f"AUROC of log-density, {ood_set}", values, 4)
    figures = (
        ("own", "samples of the class asked for, by the model", 3),
        ("agreement", "the same, by the reference classifier", 3),
        ("iterations", "updates", 0), ("ms", "processor milliseconds an update", 1),
        ("cpu_seconds", "processor seconds", 0),
    )  # fmt: skip
    for key, label, digits in figures:
        add(label, {name: [row.get(key) for row in rows[name]] for name in rows}, digits)
    costs: dict[str, list[float | None]] = {
        name: [
            row["cpu_seconds"] / first["cpu_seconds"]
            for row, first in zip(rows[name], rows["classifier"], strict=True)
        ]
        for name in rows
    }
    add("the same, as a share of the classifier's", costs, 2)
    return "\n".join(lines)


def main(args: Benchmark) -> dict[str, list[dict[str, Any]]]:
    """Run every seed, print the table and keep all figures if asked to."""
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    rows: dict[str, list[dict[str, Any]]] = {}
    for seed in args.seeds:
        for name, row in run(seed, args).items():
            rows.setdefault(name, []).append(row)
        print(f"\nseeds {' '.join(map(str, args.seeds[: len(rows['companion'])]))}", flush=True)
        print(table(rows), flush=True)
    first = rows["classifier"][0]
    print(
        f"\n{args.data}, n = {first['num_test']}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads"
    )
    if args.out is not None:
        args.out.write_text(json.dumps(rows, indent=2) + "\n")
    return rows


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
