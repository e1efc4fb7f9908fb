"""The few figures that say what a model is worth, on test data that nothing else has seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jem.data.batches import BatchStream
from jem.data.ood_sets import letters, photo_patches, uniform_noise
from jem.data.splits import DataSplits
from jem.evaluation.calibration.report import calibration_report
from jem.evaluation.ood.metrics import ood_metrics
from jem.model import JEM, batched_logits
from jem.randomness import named_generator
from jem.sampling.base_distributions import GaussianBase, UniformBase
from jem.sampling.outliers import shuffle_columns

FOREIGN_SIZE = 1000
"""Foreign inputs a set in the summary."""

NOISE = "uniform noise"
SHUFFLED, BEYOND = "shuffled columns", "beyond the range"

TABLE_DISTANCES = {SHUFFLED: "near", BEYOND: "far"}
"""How far the foreign sets that are made of a table's own rows lie from it."""

LIKE_STARTS = (NOISE,)
LIKE_OUTLIERS = (*LIKE_STARTS, "gaussian noise", "constant images", "letters", SHUFFLED)
"""Foreign sets of the kinds that chains begin from and that made-up outliers are of: letters are
strokes of one tone on an even ground, as some outliers are."""

Foreign = dict[str, Tensor]


def make_ood_sets(splits: DataSplits, seed: int = 0) -> Foreign:
    """Made-up foreign sets that need no download, in the network's units.

    Args:
        splits: The data that they are foreign to.
        seed: Same seed, same sets.

    Returns:
        Name -> inputs (N, *shape): uniform noise; for grey and colour images photo patches and
        letters; for tables rows whose every column is another row's (where columns do not depend
        on each other, such rows are not foreign), and rows moved beyond the range of every column.
    """
    shape = splits.input_shape
    if splits.kind == "table":
        return _foreign_rows(splits, seed)
    makers: dict[str, Callable[..., Tensor]] = {
        NOISE: uniform_noise,
        "photo patches": photo_patches,
        "letters": letters,
    }
    if shape[0] not in (1, 3):  # there are no photographs and letters of other channels
        makers = {NOISE: uniform_noise}
    return {name: make(FOREIGN_SIZE, shape, seed=seed) for name, make in makers.items()}


def _foreign_rows(splits: DataSplits, seed: int) -> Foreign:
    """Foreign sets for a table, the last two made of rows of its test part."""
    low, high = splits.domain
    start = UniformBase(low, high, splits.input_shape)
    generator = named_generator(seed, "foreign noise")
    sets = {NOISE: start.sample(FOREIGN_SIZE, generator=generator)}
    x, _ = splits.test[:]
    rows = x[torch.randint(len(x), (FOREIGN_SIZE,), generator=generator)]
    if x.shape[1] > 1:  # a single column has no other to fit to
        sets[SHUFFLED] = shuffle_columns(x, FOREIGN_SIZE, generator)
    up = torch.rand(rows.shape, generator=generator) < 0.5
    sets[BEYOND] = torch.where(up, rows + (high - low), rows - (high - low))
    return sets


def seen_in_training(name: str, model: JEM, *, trained: bool = True) -> bool:
    """Whether training held inputs of the kind of a made-up foreign set against the data.

    Args:
        name: Of the set; `NOISE`, or a key of `jem.data.OOD_SETS`.
        model: The trained model, which remembers where its chains began and whether there were
            outliers.
        trained: Whether there was any update; without one nothing was seen.
    """
    if model.sampler is None or not trained:
        return False
    name = name.replace("_", " ")  # as reports show it
    if model.sampler.trained_on_outliers:
        return name in LIKE_OUTLIERS
    noise = model.sampler.trained_on_noise
    if noise is None:
        noise = not isinstance(model.sampler.init, GaussianBase)
    return noise and name in LIKE_STARTS


def summarise(
    model: JEM, splits: DataSplits, ood_sets: Foreign, *, trained: bool = True
) -> dict[str, Any]:
    """Measure a model on the test part and against foreign sets.

    Args:
        model: A trained model.
        splits: Its data; only the test part is looked at.
        ood_sets: Name -> inputs, see `make_ood_sets`.
        trained: Whether there was any update: a network as given has seen no foreign set.

    Returns:
        Plain values: `num_test`; for K > 1 `accuracy`, `nll` in nats, `ece` (15 bins of equal
        width); `auroc`, set name -> `{"value", "low", "high", "num_foreign", "seen"}` of the
        log-density (higher = in-distribution, 95 % intervals).
    """
    parts = list(BatchStream(splits.test, 512, seed=0, name="test", drop_last=False).epoch(0))
    logits = torch.cat([batched_logits(model, x, 512).cpu() for x, _ in parts])
    labels = torch.cat([y for _, y in parts])
    summary: dict[str, Any] = {"num_test": len(labels)}
    if logits.shape[1] > 1:
        report = calibration_report(logits.double().softmax(dim=1), labels, num_bootstrap=0)
        summary |= {"accuracy": report.accuracy, "nll": report.nll, "ece": report.ece}
    scores = torch.logsumexp(logits, dim=1)
    summary["auroc"] = {}
    for name, x in ood_sets.items():
        metrics = ood_metrics(scores, torch.logsumexp(batched_logits(model, x, 512).cpu(), dim=1))
        low, high = metrics.intervals["auroc"]
        summary["auroc"][name] = {
            "value": metrics.auroc, "low": low, "high": high, "num_foreign": len(x),
            "seen": seen_in_training(name, model, trained=trained),
        }  # fmt: skip
    return summary
