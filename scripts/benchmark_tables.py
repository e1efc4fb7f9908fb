"""Race `JEMClassifier` against scikit-learn's classifiers on tables, by repeated cross-validation.

    python scripts/benchmark_tables.py --repeats 2

Every model has its default settings, but `jem` holds nothing out for `is_ood` where its name does
not say so, and logistic regression may take 5,000 iterations; all see the same folds. Prints a
Markdown table for each data set: mean and standard deviation over folds of accuracy and NLL, and
the mean difference to the first model named, fold by fold, with a 95 % interval.

With `--validation` each fold's training part is divided once more and its test part stays unseen:
for choices such as the input noise.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sklearn
import torch
import tyro
from benchmark_far import churn
from scipy import stats
from sklearn.base import ClassifierMixin
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import RepeatedStratifiedKFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from jem import JEMClassifier
from jem.training.recipes import RECIPES

Array = npt.NDArray[Any]
Fold = dict[str, float]
"""What one model did on one fold: accuracy, nll, seconds, and sizes of both parts."""

VALIDATION_SHARE = 0.25

DATA: dict[str, Callable[[], tuple[Array, Array]]] = {
    "breast_cancer": lambda: load_breast_cancer(return_X_y=True),
    "wine": lambda: load_wine(return_X_y=True),
    "iris": lambda: load_iris(return_X_y=True),
    "digits": lambda: load_digits(return_X_y=True),
    "churn": lambda: churn(0),
    "churn, 700 rows": lambda: churn(1, 700, heavy=True),
}


def jem(
    recipe: str,
    *,
    epochs: int | None = None,
    validation_fraction: float = 0.1,
    **changes: Any,  # noqa: ANN401
) -> Callable[[int], Any]:
    """Estimator with a changed recipe that holds nothing out for a threshold."""

    def make(seed: int) -> JEMClassifier:
        return JEMClassifier(
            replace(RECIPES[recipe], **changes),
            epochs=epochs,
            validation_fraction=validation_fraction,
            calibration_fraction=0,
            random_state=seed,
            device="cpu",
        )

    return make


MODELS: dict[str, Callable[[int], Any]] = {
    "jem fast": jem("fast"),
    "jem plain": jem("plain"),
    "jem fast, 10 % held out for is_ood": lambda seed: JEMClassifier(
        random_state=seed, device="cpu"
    ),
    "logistic regression": lambda seed: make_pipeline(
        StandardScaler(), LogisticRegression(max_iter=5000)
    ),
    "random forest": lambda seed: RandomForestClassifier(random_state=seed),
    "gradient boosting": lambda seed: HistGradientBoostingClassifier(random_state=seed),
    "jem fast, input noise 0.1": jem("fast", augment_noise=0.1),
    "jem fast, 300 epochs": jem("fast", epochs=300),
    "jem fast, no validation part": jem("fast", validation_fraction=0),
    "jem plain, input noise 0.1": jem("plain", augment_noise=0.1),
    "jem plain, 300 epochs": jem("plain", epochs=300),
}
"""Makes a model of a seed. The first six are raced unless others are named."""


@dataclass
class Benchmark:
    """What to race."""

    models: tuple[str, ...] = tuple(MODELS)[:6]
    """Names of models; differences are to the first."""
    data: tuple[str, ...] = tuple(DATA)
    """Data sets of scikit-learn, digits as rows of 64 numbers; made-up customers."""
    splits: int = 5
    """Folds of one cross-validation."""
    repeats: int = 2
    """Cross-validations, each with other folds and seeds."""
    validation: bool = False
    """Measure on a quarter of each training part, and leave test parts unseen."""
    seed: int = 0
    """Decides the folds."""
    out: Path | None = None
    """JSON file for all figures of all folds."""
    threads: int = 1
    """Threads of torch."""


def folds(y: Array, args: Benchmark) -> Iterator[tuple[Array, Array]]:
    """Rows to learn from and rows to measure on."""
    cross = RepeatedStratifiedKFold(
        n_splits=args.splits, n_repeats=args.repeats, random_state=args.seed
    )
    for number, (train, test) in enumerate(cross.split(y[:, None], y)):
        if args.validation:
            train, test = train_test_split(
                train,
                test_size=VALIDATION_SHARE,
                random_state=args.seed + number,
                stratify=y[train],
            )
        yield train, test


def measure(model: ClassifierMixin, x: Array, y: Array, train: Array, test: Array) -> Fold:
    """Fit on one part and measure on the other."""
    start = time.process_time()
    model.fit(x[train], y[train])
    seconds = time.process_time() - start
    probabilities = model.predict_proba(x[test])
    return {
        "accuracy": accuracy_score(y[test], probabilities.argmax(axis=1)),
        "nll": log_loss(y[test], probabilities, labels=np.unique(y)),
        "seconds": seconds,
        "num_train": len(train),
        "num_test": len(test),
    }


def difference(ours: list[Fold], others: list[Fold], key: str) -> str:
    """Mean of others - ours with a 95 % interval, which allows for training parts that overlap.

    The variance of a mean over J folds is taken as (1/J + n_test / n_train) times that of one fold
    (Nadeau and Bengio, 2003, Machine Learning 52).
    """
    values = np.array([b[key] - a[key] for a, b in zip(ours, others, strict=True)])
    ratio = ours[0]["num_test"] / ours[0]["num_train"]
    half = stats.t.ppf(0.975, len(values) - 1) * math.sqrt(
        values.var(ddof=1) * (1 / len(values) + ratio)
    )
    return f"{values.mean():+.4f} ({values.mean() - half:+.4f} to {values.mean() + half:+.4f})"


def table(rows: dict[str, list[Fold]]) -> str:
    """Markdown table of one data set, a row a model."""
    first = next(iter(rows))
    lines = [
        f"| model | accuracy | NLL | accuracy less that of {first} | NLL less that of {first} "
        "| CPU seconds of fit |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in rows.items():
        cells = []
        for key in ("accuracy", "nll"):
            values = [fold[key] for fold in found]
            cells.append(f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}")
        same = name == first
        cells += [
            "-" if same else difference(rows[first], found, key) for key in ("accuracy", "nll")
        ]
        cells.append(f"{np.mean([fold['seconds'] for fold in found]):.1f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Race, print the tables and keep all figures if asked to."""
    args = tyro.cli(Benchmark)
    torch.set_num_threads(args.threads)
    figures: dict[str, dict[str, list[Fold]]] = {}
    print(
        f"scikit-learn {sklearn.__version__}, torch {torch.__version__}, {args.threads} thread(s)"
        f"; {args.repeats} times {args.splits} folds"
        f"{', measured on validation parts' if args.validation else ''}"
        f"; density weight of fast: {RECIPES['fast'].resolved((1,), 1).density_weight:g}"
    )
    for data in args.data:
        x, y = DATA[data]()
        found: dict[str, list[Fold]] = {name: [] for name in args.models}
        for number, (train, test) in enumerate(folds(y, args)):
            for name in args.models:
                found[name].append(measure(MODELS[name](number), x, y, train, test))
        figures[data] = found
        print(f"\n### {data}: {len(x)} rows, {x.shape[1]} columns, {len(np.unique(y))} classes\n")
        print(table(found), flush=True)
    if args.out is not None:
        args.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
