"""One verdict for near and far: is the combined score as good as the best single one?

    python scripts/benchmark_verdict.py --cases digits fashion_mnist banking77

Near sets are test inputs of classes that training has not seen, far sets are of another kind. Each
case leaves out other classes, with another split, initialisation and noise. The maps of the
combined score are fitted on the validation part and its threshold on the calibration part. Prints
a Markdown table: the AUROC of every score of the logits for each set, the mean over its cases, and
the share of test inputs that the default detector accepts.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import statistics
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor, nn

import jem
from jem import networks
from jem.data import hold_out, make_ood_set
from jem.data.named import DATA_ROOT_VARIABLE
from jem.data.splits import PART_NAMES, DataPart, DataSplits
from jem.estimator.data import divide
from jem.evaluation.ood import SCORES
from jem.model import batched_logits
from jem.training.recipes import RECIPES
from jem.training.trainer import Trainer

SINGLE = ("log_density", "max_logit", "max_probability", "entropy", "gen")
LEFT_OUT = {"digits": 1, "banking77": 19}
"""Classes that training does not see; 2 of other data sets."""
MOST = {"train": 5000, "validation": 1000, "calibration": 1000, "test": 2000}
"""Inputs of a part that are used, of images other than digits."""
FAR = ("letters", "photo_patches")
"""Far sets of images."""


@dataclass
class Benchmark:
    """What to leave out, and how often."""

    cases: tuple[str, ...] = ("digits", "fashion_mnist", "banking77")
    """`banking77`, and data sets of images: named ones, files or folders."""
    draws: tuple[int, ...] = (10, 2, 3)
    """Models of each data set."""
    seed: int = 0
    """Of the first model; with 0, digit k is left out of model k."""
    data_root: Path | None = None
    """Folder of downloaded data sets; JEM_DATA if left out."""
    keep: Path | None = None
    """Folder that keeps the logits of each model: what is there is not trained again."""
    threads: int | None = None
    """Threads of torch; all cores if left out."""


def images(name: str, seed: int, root: Path | None) -> tuple[DataSplits, dict[str, Tensor]]:
    """Images without a few classes, and OOD sets in the network's units."""
    data = jem.data.load(name, root=root, seed=seed)
    if name == "digits":
        left_out = [data.classes[seed % len(data.classes)]]
    else:
        left_out = list(np.random.default_rng(seed).choice(data.classes, 2, False))
    data, near = hold_out(data, left_out)
    if name != "digits":
        parts = {n: DataPart(*getattr(data, n)[: MOST[n]]) for n in PART_NAMES}
        data = replace(data, **parts)  # type: ignore[arg-type]
    far = {n.replace("_", " "): make_ood_set(n, data, 1000, seed=seed) for n in FAR}
    return data, {"unseen classes": near} | far


def banking77(seed: int, root: Path | None) -> tuple[DataSplits, dict[str, Tensor]]:
    """Sentence embeddings without a few intents, divided as the estimator does, and OOD sets."""
    folder = root or Path(os.environ[DATA_ROOT_VARIABLE])
    with np.load(folder / "banking77-minilm.npz") as file:
        held = {n: file[n] for n in ("x", "labels", "part", "hotels")}
    x, labels, test = held["x"].astype(np.float32), held["labels"], held["part"] == "test"
    order = np.random.default_rng(seed).permutation(int(labels.max()) + 1)
    seen = np.isin(labels, order[LEFT_OUT["banking77"] :])
    classes, indices = np.unique(labels[seen], return_inverse=True)
    training = ~test[seen]
    data = divide(
        x[seen & ~test],
        indices[training],
        classes.tolist(),
        validation=0.1,
        calibration=0.1,
        acceptance_rate=0.95,
        channels=None,
        seed=seed,
    )
    scaled = {
        "test": x[seen & test],
        "unseen classes": x[~seen & test],
        "hotels": held["hotels"].astype(np.float32),
    }
    sets = {name: data.scaling(rows).float() for name, rows in scaled.items()}
    test_part = DataPart(sets.pop("test"), torch.as_tensor(indices[~training]))
    return replace(data, test=test_part), sets


def logits_of(name: str, seed: int, args: Benchmark) -> dict[str, Tensor]:
    """Train with the recipe `fast`, and give the logits of held-out parts and OOD sets."""
    kept = None if args.keep is None else args.keep / f"{Path(name).stem}_{seed}.pt"
    if kept is not None and kept.exists():
        return dict(torch.load(kept, weights_only=True))
    read = banking77 if name == "banking77" else partial(images, name)
    data, sets = read(seed, args.data_root)
    recipe = RECIPES["fast"]
    network = networks.make_network(None, data.input_shape, len(data.classes), recipe.head, seed)
    model = jem.JEM(network, classes=data.classes, domain=data.domain, scaling=data.scaling)
    Trainer(model, recipe, seed=seed, device="cpu").fit(data.train, data.validation)
    parts = {n: getattr(data, n)[:][0] for n in ("validation", "calibration", "test")}
    logits = {each: batched_logits(model, x).cpu() for each, x in (parts | sets).items()}
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        torch.save(logits, kept)
    return logits


def measured(logits: dict[str, Tensor]) -> tuple[dict[str, dict[str, float]], float]:
    """AUROC of each score for each OOD set, and the share of test inputs accepted.

    The logits stand for the inputs, and the model changes nothing.
    """
    detector = jem.OODDetector(jem.JEM(nn.Identity()), validation=logits.pop("validation"))
    detector.fit(logits.pop("calibration"), acceptance_rate=0.95)
    test, found = logits.pop("test"), {}
    for name, other in logits.items():
        scores = {n: (SCORES[n].function(test), SCORES[n].function(other)) for n in SINGLE}
        scores["combined"] = detector.score(test), detector.score(other)
        found[name] = {n: jem.ood_metrics(*pair).auroc for n, pair in scores.items()}
    return found, 1 - float(detector.is_ood(test).float().mean())


def main() -> None:
    """Leave classes out, and print the table."""
    args = tyro.cli(Benchmark)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    names = (*SINGLE, "combined")
    rows: dict[str, list[dict[str, float]]] = defaultdict(list)
    accepted: dict[str, list[float]] = defaultdict(list)
    for name, draws in zip(args.cases, args.draws, strict=True):
        for seed in range(args.seed, args.seed + draws):
            found, share = measured(logits_of(name, seed, args))
            accepted[name].append(share)
            for other, figures in found.items():
                rows[f"{name}, {other}"].append(figures)
            print(f"{name} {seed}: accepted {share:.4f}, {found}", flush=True)
    print(f"\ntorch {torch.__version__}; AUROC, mean over models; last column: the combined score")
    print("less the best single one, of the means and (lowest to highest) of single models\n")
    print("| data, OOD set | models | " + " | ".join(names).replace("_", " ") + " | gap |")
    print("|---" * (len(names) + 3) + "|")
    means: dict[str, list[float]] = defaultdict(list)
    for pair, figures in rows.items():
        cells = {n: statistics.mean(row[n] for row in figures) for n in names}
        for n, value in cells.items():
            means[n].append(value)
        single = [_gap(row) for row in figures]
        shown = " | ".join(f"{value:.4f}" for value in cells.values())
        gaps = f"{_gap(cells):+.4f} ({min(single):+.4f} to {max(single):+.4f})"
        print(f"| {pair} | {len(figures)} | {shown} | {gaps} |")
    print("| mean | | " + " | ".join(f"{statistics.mean(means[n]):.4f}" for n in names) + " | |\n")
    for name, shares in accepted.items():
        print(f"{name}: share of test inputs accepted {statistics.mean(shares):.4f}")


def _gap(figures: dict[str, float]) -> float:
    return figures["combined"] - max(figures[name] for name in SINGLE)


if __name__ == "__main__":
    main()
