"""Completions measured: is the class that was hidden in the missing half there again?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jem.data.splits import DataPart, LazyPart
from jem.errors import InputError
from jem.evaluation.examples import check_inputs, draw_subset
from jem.evaluation.fidelity.reference_classifier import Judge, train_judge
from jem.evaluation.statistics import CONFIDENCE, difference_estimate, share_estimate
from jem.generation import inpaint
from jem.generation.chains import Progress
from jem.model import JEM
from jem.randomness import derive_seed

Part = DataPart | LazyPart

REFERENCE_LIMIT = 20_000
"""Training inputs that the mean and the nearest neighbour are taken from; more are sampled."""

ORIGINAL, MEAN_FILL, NEAREST = "original", "mean fill", "nearest neighbour"
ONE_DRAW = "one completion"


@dataclass(frozen=True, eq=False)
class CompletionReport:
    """How well completions bring the class of an input back.

    Attributes:
        judge: Name of the independent classifier.
        num_inputs: N, test inputs completed.
        num_draws: Completions an input of the mean over completions.
        share_known: Share of the components of an input that was kept.
        confidence: Level of all intervals.
        rows: A filling each: `name`; `accuracy` of the judge on the filled inputs (higher is
            better) with its Wilson interval `low`, `high`; `rmse`, root mean square error in the
            missing places, in the network's units (lower is better).
        differences: `name` of a filling, `against` which, `value` of the difference in accuracy
            (above 0: the completion is better), with the interval `low`, `high` of
            `paired_interval`.
        pictures: Name -> the first inputs, (num_shown, *shape): `original`, `kept` (missing
            places are NaN), and each filling.
    """

    judge: str
    num_inputs: int
    num_draws: int
    share_known: float
    confidence: float
    rows: list[dict[str, Any]]
    differences: list[dict[str, Any]]
    pictures: dict[str, Tensor]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pictures, as plain values."""
        return {name: value for name, value in vars(self).items() if name != "pictures"}


def upper_half(shape: Sequence[int]) -> Tensor:
    """The mask that keeps the upper half of images, shape (C, H, W).

    Raises:
        InputError: If inputs are no images.
    """
    if len(shape) != 3 or shape[1] < 2:
        raise InputError(
            f"inputs of shape {tuple(shape)} have no lower half to complete: say what is `known`"
        )
    known = torch.zeros(tuple(shape), dtype=torch.bool)
    known[:, : shape[1] // 2] = True
    return known


def completion_accuracy(
    model: JEM,
    *,
    train: Part,
    test: Part,
    seed: int,
    known: Tensor | None = None,
    judge: Judge | None = None,
    count: int = 128,
    num_draws: int = 4,
    num_steps: int | None = None,
    num_shown: int = 10,
    progress: Progress | None = None,
) -> CompletionReport:
    """Hide a part of test inputs, fill it, and ask an independent classifier what it sees.

    Fillings: the mean of the training inputs; what stands there in the training input nearest in
    the known places; one completion by the model, without the class; and the mean over several.
    The judge was trained on whole inputs, and its accuracy on the originals is what a perfect
    filling would reach. No filling sees labels; the nearest neighbour sees all training inputs.

    Args:
        model: A model that can draw.
        train: The training part.
        test: The test part.
        seed: Decides which test inputs, the judge and noise.
        known: Booleans, the shape of one input, True = kept; None keeps the upper half of images.
        judge: What `train_judge` made of the training part; trained here if None.
        count: Test inputs at most.
        num_draws: Completions an input, at least 1.
        num_steps: Langevin moves a completion; None takes the model's.
        num_shown: Inputs in the pictures.
        progress: Called after each move with moves done and moves in all.

    Returns:
        Accuracies, errors, differences and pictures.

    Raises:
        InputError: If the model draws nothing, or an argument does not fit.
    """
    if num_draws < 1:
        raise InputError(f"`num_draws` must be at least 1, but got {num_draws}")
    x_train, y_train = draw_subset(train, REFERENCE_LIMIT, seed=seed, name="completion reference")
    x, y = draw_subset(test, count, seed=seed, name="completion")
    x = check_inputs(x, tuple(x_train.shape[1:]), "test")
    known = upper_half(x.shape[1:]) if known is None else known.cpu()
    if known.dtype != torch.bool or known.shape != x.shape[1:] or bool(known.all()):
        raise InputError(
            f"`known` must be booleans of shape {tuple(x.shape[1:])} that leave something to "
            f"complete, but got {known.dtype} of shape {tuple(known.shape)}"
        )
    if judge is None:
        num_classes = int(torch.cat([y_train, y]).max()) + 1
        judge = train_judge(x_train, y_train, num_classes, seed=seed)
    draws = _draws(model, x, known, num_draws, num_steps, seed, progress)
    fillings = {
        ORIGINAL: x,
        MEAN_FILL: torch.where(known, x, x_train.mean(dim=0)),
        NEAREST: torch.where(known, x, x_train[_nearest(x[:, known], x_train[:, known])]),
        ONE_DRAW: draws[0],
    }
    if num_draws > 1:
        mean = torch.where(known, x, draws.mean(dim=0))  # a mean rounds what all share
        fillings[f"mean of {num_draws} completions"] = mean
    right = {name: judge.predict(z) == y for name, z in fillings.items()}
    kept = x.masked_fill(~known, torch.nan)
    shown = {name: z[:num_shown] for name, z in ({"kept": kept} | fillings).items()}
    return CompletionReport(
        judge=judge.name,
        num_inputs=len(x),
        num_draws=num_draws,
        share_known=float(known.double().mean()),
        confidence=CONFIDENCE,
        rows=[_row(name, right[name], z, x, known) for name, z in fillings.items()],
        differences=_differences(right),
        pictures={ORIGINAL: shown.pop(ORIGINAL), **shown},
    )


def _draws(
    model: JEM,
    x: Tensor,
    known: Tensor,
    num_draws: int,
    num_steps: int | None,
    seed: int,
    progress: Progress | None,
) -> Tensor:
    """Completions, shape (num_draws, N, *shape), on the CPU."""

    def shown(before: int) -> Progress | None:
        if progress is None:
            return None
        return lambda done, total: progress(before * total + done, num_draws * total)

    drawn = [
        inpaint(
            model,
            x,
            known[None],
            seed=derive_seed(seed, "completion", number),
            num_steps=num_steps,
            progress=shown(number),
        )
        for number in range(num_draws)
    ]
    return torch.stack(drawn)


def _nearest(queries: Tensor, examples: Tensor) -> Tensor:
    """Index of the nearest example of each query, both (., D)."""
    return torch.cat([torch.cdist(part, examples).argmin(dim=1) for part in queries.split(256)])


def _row(name: str, right: Tensor, filled: Tensor, x: Tensor, known: Tensor) -> dict[str, Any]:
    accuracy, _, low, high = share_estimate(right)
    error = float((filled - x)[:, ~known].double().square().mean().sqrt())
    return {"name": name, "accuracy": accuracy, "low": low, "high": high, "rmse": error}


def _differences(right: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Accuracy of both kinds of completion less that of each simple filling, inputs paired."""
    found = []
    for name in (name for name in right if name not in (ORIGINAL, MEAN_FILL, NEAREST)):
        for other in (MEAN_FILL, NEAREST):
            value, _, low, high = difference_estimate(right[name], right[other])
            found.append(
                {"name": name, "against": other, "value": value, "low": low, "high": high}
            )
    return found
