"""What share of absurd rows is flagged: one column in other units, all columns, a flipped sign.

    python scripts/benchmark_far.py --seeds 3

Every table is divided into training and test rows by a seed. `JEMClassifier`, with a fifth held
out for its threshold, and two detectors in the space of the standardised columns learn from the
training rows: minus the Mahalanobis distance to the nearest class mean (one Ledoit-Wolf
covariance), and minus the distance to the k-th nearest row (k the root of N, at most 50). Theirs
accept 95 % of a fifth of the training rows, too. Each change is made to every test row, and to
every column of its kind in turn; rows that it leaves as they are do not count (0 times 100 is 0).
Prints a Markdown table: share flagged over seeds, columns and rows, and the least over columns.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import tyro
from sklearn.covariance import LedoitWolf
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.neighbors import NearestNeighbors

from jem import JEMClassifier

Array = npt.NDArray[Any]
Detector = Callable[[Array], Array]
"""Rows -> whether each is flagged."""
TOTAL = 2
"""The column of `churn` that is about a product of two others."""


def churn(seed: int, count: int = 2000, *, heavy: bool = False) -> tuple[Array, Array]:
    """Customers: tenure, charges, counts, a one-hot contract of three, a column that is constant.

    Args:
        seed: Decides the customers.
        count: How many.
        heavy: Whether charges have a heavy tail (log-normal).
    """
    rng = np.random.default_rng(seed)
    contract = rng.choice(3, count, p=[0.55, 0.21, 0.24])
    tenure = np.clip(rng.gamma(1 + contract, 14, count).round(), 1, 72)
    monthly = rng.lognormal(4, 0.8, count) if heavy else rng.uniform(18, 119, count)
    total = tenure * monthly * rng.normal(1, 0.05, count)
    calls = rng.poisson(1.5, count)
    senior = rng.random(count) < 0.16
    risk = 0.8 - 0.05 * tenure + 0.01 * np.minimum(monthly, 150) + 0.4 * calls - 0.8 * contract
    left = rng.random(count) < 1 / (1 + np.exp(-risk))
    columns = (
        tenure,
        monthly.round(2),
        total.round(2),
        calls,
        senior,
        *(contract == np.arange(3)[:, None]),
    )
    return np.column_stack([*columns, np.full(count, 2024.0)]).astype(float), left.astype(int)


TABLES: dict[str, Callable[[int], tuple[Array, Array]]] = {
    "wine": lambda seed: load_wine(return_X_y=True),
    "iris": lambda seed: load_iris(return_X_y=True),
    "breast cancer": lambda seed: load_breast_cancer(return_X_y=True),
    "digits, flat": lambda seed: load_digits(return_X_y=True),
    "churn": lambda seed: churn(seed),
    "churn, heavy tails": lambda seed: churn(seed, heavy=True),
}


def with_column(x: Array, column: int, changed: Array) -> Array:
    """Rows with one column replaced."""
    x = x.copy()
    x[:, column] = changed
    return x


def changes(name: str, x_train: Array, x: Array) -> Iterator[tuple[str, Array]]:
    """Name of a change, and the changed rows: once for every column that it is about."""
    if name.startswith("churn"):  # the total charges are about tenure x monthly charges
        yield "half the total", with_column(x, TOTAL, x[:, TOTAL] / 2)
        yield "the total of another row", with_column(x, TOTAL, np.roll(x[:, TOTAL], 1))
    constant = x_train.min(0) == x_train.max(0)
    for j in np.flatnonzero(~constant):
        for factor in (30, 100, 1000):
            yield f"one column x {factor}", with_column(x, j, x[:, j] * factor)
        yield "one column at 1e6", with_column(x, j, np.full(len(x), 1e6))
        yield "one flipped sign", with_column(x, j, -x[:, j])
    for j in np.flatnonzero(constant):
        yield "a constant column + 1", with_column(x, j, x[:, j] + 1)
    yield "all columns x 1000", x * 1000
    rng = np.random.default_rng(0)
    yield "each column shuffled", np.column_stack([rng.permutation(column) for column in x.T])


def mahalanobis(x: Array, y: Array) -> Callable[[Array], Array]:
    """Score: minus the squared distance to the nearest class mean."""
    means = np.stack([x[y == k].mean(0) for k in np.unique(y)])
    fitted = LedoitWolf(assume_centered=True).fit(x - means[y])
    return lambda rows: -np.min([fitted.mahalanobis(rows - mean) for mean in means], axis=0)


def neighbours(x: Array, y: Array) -> Callable[[Array], Array]:
    """Score: minus the distance to the k-th nearest training row."""
    fitted = NearestNeighbors(n_neighbors=min(50, int(len(x) ** 0.5))).fit(x)
    return lambda rows: -fitted.kneighbors(rows)[0][:, -1]


def detectors(x: Array, y: Array, seed: int) -> tuple[dict[str, Detector], JEMClassifier]:
    """The classifier's verdict, and those of the two others at the same rate."""
    classifier = JEMClassifier(random_state=seed, calibration_fraction=0.2, device="cpu").fit(x, y)
    learn, hold = train_test_split(np.arange(len(x)), test_size=0.2, random_state=seed, stratify=y)
    shift, scale = x[learn].mean(0), x[learn].std(0)
    scale[scale == 0] = 1
    found: dict[str, Detector] = {"jem": classifier.is_ood}
    for name, fit in (("Mahalanobis", mahalanobis), ("kNN", neighbours)):
        score = fit((x[learn] - shift) / scale, y[learn])
        held = np.sort(score((x[hold] - shift) / scale))
        threshold = held[int(0.05 * (len(held) + 1)) - 1]

        def flagged(rows: Array, score: Any = score, threshold: float = threshold) -> Array:  # noqa: ANN401
            return score((rows - shift) / scale) < threshold

        found[name] = flagged
    return found, classifier


@dataclass
class Benchmark:
    """What to measure."""

    tables: tuple[str, ...] = tuple(TABLES)
    """Names of tables."""
    seeds: int = 3
    """Divisions of each table."""


def main() -> None:
    """Measure, and print a table for each data set."""
    args = tyro.cli(Benchmark)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # on units, which is what the rows are about
    for name in args.tables:
        shares: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        figures = []
        for seed in range(args.seeds):
            x, y = TABLES[name](seed)
            x, x_test, y, y_test = train_test_split(
                x, y, test_size=0.3, random_state=seed, stratify=y
            )
            found, classifier = detectors(x, y, seed)
            p = classifier.predict_proba(x_test)
            figures.append(((p.argmax(1) == y_test).mean(), log_loss(y_test, p)))
            for detector, flagged in found.items():
                shares["test rows as they are"][detector].append(flagged(x_test).mean())
            for change, rows in changes(name, x, x_test):
                moved = (rows != x_test).any(axis=1)
                if moved.any():
                    for detector, flagged in found.items():
                        shares[change][detector].append(flagged(rows[moved]).mean())
        accuracy, nll = np.mean(figures, axis=0)
        print(f"\n### {name}: accuracy {accuracy:.4f}, NLL {nll:.4f}, {args.seeds} seeds\n")
        print("| rows | " + " | ".join(f"{d}, mean (least)" for d in found) + " |")
        print("|---" * (1 + len(found)) + "|")
        for change, by_detector in shares.items():
            cells = [f"{np.mean(v):.3f} ({np.min(v):.3f})" for v in by_detector.values()]
            print(f"| {change} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
