"""Rows of a table with text in which one value was changed: what is flagged, what could be?

    python scripts/benchmark_text.py --seeds 3

The customers are made up, so the probability of a row is known, and with it the best test that
there is (Neyman and Pearson): it flags the rows that the change makes most likely. No score can
flag more at the same share of false alarms; where a value is as likely as the one that it takes
the place of, that is 5 %. `JEMClassifier` after a `TableEncoder`, Mahalanobis and neighbours in
the columns of the encoder learn from 70 % of the rows, of which a fifth is held out for the
threshold at 95 %. Prints a Markdown table: share of changed test rows flagged, mean over seeds.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import statistics
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import tyro
from benchmark_far import mahalanobis, neighbours
from scipy import stats
from sklearn.model_selection import train_test_split

import jem

Array = npt.NDArray[Any]
CONTRACTS = {"monthly": 0.55, "one year": 0.21, "two years": 0.24}
PAYMENTS = {"card": (0.2, 0.4, 0.5), "check": (0.6, 0.2, 0.1), "transfer": (0.2, 0.4, 0.4)}
"""How customers pay: probabilities by contract."""
CITIES = 1 / np.arange(1, 61)
"""How frequent each of 60 cities is, not normalised; the rarest has 7 customers of 2,000."""


def customers(seed: int, count: int = 2000) -> tuple[pd.DataFrame, Array]:
    """Tenure and payment go with the contract, the total with tenure and charges, the city not."""
    rng = np.random.default_rng(seed)
    contract = rng.choice(3, count, p=list(CONTRACTS.values()))
    tenure = np.clip(rng.gamma(1 + contract, 14, count).round(), 1, 72)
    monthly = rng.integers(18, 120, count)
    payment = (rng.random(count)[:, None] > np.cumsum(_payments(), axis=1)[contract]).sum(axis=1)
    frame = pd.DataFrame(
        {
            "tenure": tenure,
            "monthly": monthly.astype(float),
            "total": (tenure * monthly * rng.normal(1, 0.05, count)).round(2),
            "contract": np.array(list(CONTRACTS))[contract],
            "payment": np.array(list(PAYMENTS))[payment],
            "city": [f"city {k}" for k in rng.choice(60, count, p=CITIES / CITIES.sum())],
        }
    )
    risk = 0.8 - 0.05 * tenure + 0.01 * monthly - 0.8 * contract
    return frame, (rng.random(count) < 1 / (1 + np.exp(-risk))).astype(int)


def log_p(frame: pd.DataFrame) -> Array:
    """Logarithm of the probability of rows, up to a constant; minus infinity where it is 0."""
    contract = np.array([list(CONTRACTS).index(name) for name in frame["contract"]])
    payment = np.array([list(PAYMENTS).index(name) for name in frame["payment"]])
    tenure, monthly = frame["tenure"].to_numpy(), frame["monthly"].to_numpy()
    low = np.where(tenure <= 1, 0, tenure - 0.5)
    high = np.where(tenure >= 72, np.inf, tenure + 0.5)
    gamma = stats.gamma(1 + contract, scale=14)
    of_tenure = np.where((tenure < 1) | (tenure > 72), 0, gamma.cdf(high) - gamma.cdf(low))
    of_city = [CITIES[int(c[5:])] if c.startswith("city ") else 0 for c in frame["city"]]
    with np.errstate(divide="ignore"):
        return np.asarray(
            np.log(np.array(list(CONTRACTS.values()))[contract])
            + np.log(of_tenure)
            + np.log((monthly >= 18) & (monthly < 120))
            + np.log(_payments()[contract, payment])
            + np.log(of_city)
            + stats.norm.logpdf(frame["total"], tenure * monthly, 0.05 * tenure * monthly)
        )


def _payments() -> Array:
    return np.array(list(PAYMENTS.values())).T


def changes(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Name of a change, and the rows after it."""
    for name in ("contract", "payment", "city", "tenure", "total"):
        yield f"the {name} of another row", frame.assign(**{name: np.roll(frame[name], 1)})
    yield "the rarest city", frame.assign(city="city 59")
    yield "a city that is not in the data", frame.assign(city="Atlantis")
    yield (
        "tenure and monthly charges swapped",
        frame.assign(tenure=frame["monthly"], monthly=frame["tenure"]),
    )


def log_p_changed(name: str, frame: pd.DataFrame) -> Array:
    """Logarithm of the probability of rows after a change that has been made to all of them."""
    if name == "tenure and monthly charges swapped":
        return log_p(frame.assign(tenure=frame["monthly"], monthly=frame["tenure"]))
    if name in ("the rarest city", "a city that is not in the data"):
        return np.where(frame["city"].isin(["city 59", "Atlantis"]), 0.0, -np.inf)
    column = name.split()[1]
    return np.asarray(_independent(frame, column))


def _independent(frame: pd.DataFrame, column: str) -> Array:
    """The value of one column by itself, beside the rest without it, by sums over its values."""
    values = customers(10**6, 20_000)[0][column]
    seen = values.value_counts(normalize=True)
    if column == "total":  # continuous: by a kernel on the logarithm
        kernel = stats.gaussian_kde(np.log(values))
        alone = kernel.logpdf(np.log(frame[column])) - np.log(frame[column])
        full = frame.assign(total=frame["tenure"] * frame["monthly"])
        steps = np.log(0.05 * full["total"] * np.sqrt(2 * np.pi))
        return np.asarray(log_p(full) + steps + alone)
    rest = [log_p(frame.assign(**{column: value})) for value in seen.index]
    alone = np.log(frame[column].map(seen).fillna(1e-9).to_numpy(float))
    return np.asarray(alone + np.logaddexp.reduce(rest, axis=0))


@dataclass
class Benchmark:
    """What to measure."""

    seeds: int = 3
    """Tables, each with its division."""


def flagged(held: Array, scores: Array) -> float:
    """Share below the threshold that accepts 95 % of held-out rows."""
    threshold = np.sort(held)[int(0.05 * (len(held) + 1)) - 1]
    return float((scores < threshold).mean())


def main() -> None:
    """Measure, and print the table."""
    args = tyro.cli(Benchmark)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for seed in range(args.seeds):
        frame, y = customers(seed)
        train, test, y, _ = train_test_split(frame, y, test_size=0.3, random_state=seed)
        classifier = jem.JEMClassifier(random_state=seed, calibration_fraction=0.2, device="cpu")
        model = jem.make_pipeline(jem.TableEncoder(), classifier).fit(train, y)
        learn, hold = train_test_split(np.arange(len(train)), test_size=0.2, random_state=seed)
        encoder = jem.TableEncoder().fit(train)
        x = encoder.transform(train)
        shift, scale = x[learn].mean(0), x[learn].std(0)
        scale[scale == 0] = 1
        scores = {
            name: fit((x[learn] - shift) / scale, y[learn])
            for name, fit in (("Mahalanobis", mahalanobis), ("kNN", neighbours))
        }
        rng = np.random.default_rng(seed)
        fresh = customers(seed + 1000, 20_000)[0]
        found["test rows as they are"]["jem"].append(float(model.is_ood(test).mean()))
        for name, rows in changes(test):
            rows = rows[(rows != test).any(axis=1)]
            row = found[name]
            row["jem"].append(float(model.is_ood(rows).mean()))
            for detector, score in scores.items():
                held = score((x[hold] - shift) / scale)
                row[detector].append(
                    flagged(held, score((encoder.transform(rows) - shift) / scale))
                )
            ratios = [np.nan_to_num(log_p(r) - log_p_changed(name, r)) for r in (fresh, rows)]
            # A tie is decided by chance, as the best test does.
            ratios = [values + 1e-6 * rng.random(len(values)) for values in ratios]
            row["best possible"].append(flagged(*ratios))
        print(f"seed {seed} done", flush=True)
    names = ("jem", "Mahalanobis", "kNN", "best possible")
    print("\n| rows | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 1) + "|")
    for change, by in found.items():
        cells = [f"{statistics.mean(by[n]):.3f}" if n in by else "" for n in names]
        print(f"| {change} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
