"""Foreign sets made for a data set, and how far from it they lie."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from jem.data.corruptions import OOD_SETS, rotations
from jem.data.splits import DataPart, DataSplits, LazyPart
from jem.errors import InputError
from jem.randomness import named_generator

ROTATIONS, HELD_OUT = "rotations", "held_out_classes"

DISTANCES: dict[str, Literal["near", "far"]] = {
    "uniform_noise": "far",
    "gaussian_noise": "far",
    "constant_images": "far",
    "photo_patches": "far",
    "letters": "near",
    ROTATIONS: "near",
    HELD_OUT: "near",
}
"""How far foreign sets lie from data of images: near ones share their strokes, textures or scale.
Letters are near to digits, and to other drawings of one sign; for photographs they are far."""


def make_ood_set(name: str, splits: DataSplits, count: int, *, seed: int) -> Tensor:
    """Make foreign images for a data set by name: one of `OOD_SETS`, or its own images turned.

    Args:
        name: A key of `OOD_SETS`, or "rotations": images of the test part, each turned by a
            quarter, a half or three quarters. Some still show what they showed (the digits 0 and
            8, a ball): no detector should flag those.
        splits: The data that the set is foreign to.
        count: How many; of rotations at most as many as there are test images.
        seed: Decides which.

    Returns:
        Images in [-1, 1], shape (count, *input_shape).

    Raises:
        InputError: If the name is unknown, or the data are not such images.
    """
    if name in OOD_SETS:
        return OOD_SETS[name](count, splits.input_shape, seed=seed)
    if name != ROTATIONS:
        wanted = ", ".join([*OOD_SETS, ROTATIONS])
        raise InputError(f"Expected a foreign set among {wanted}, got '{name}'.")
    shape = splits.input_shape
    if count < 1 or len(shape) != 3 or shape[1] != shape[2]:
        raise InputError(
            f"Expected square images to turn and a count of at least 1, got {shape} and {count}."
        )
    generator = named_generator(seed, ROTATIONS)
    order = torch.randperm(len(splits.test), generator=generator)[:count]
    x, _ = splits.test[order]
    turns = torch.randint(1, 4, (len(x),), generator=generator)
    turned = x.clone()
    for quarter_turns in range(1, 4):
        turned[turns == quarter_turns] = rotations(x[turns == quarter_turns], quarter_turns)
    return turned


def hold_out(splits: DataSplits, names: Sequence[str]) -> tuple[DataSplits, Tensor]:
    """Take classes out of a data set, for a model that shall not know them: a near foreign set.

    Args:
        splits: The data.
        names: Names of the classes to take out; at least two others stay.

    Returns:
        The data without them, scaled as before, and the test inputs of the classes taken out.

    Raises:
        InputError: If a name is unknown, or fewer than two classes stay.

    Example:
        >>> from jem.data import load
        >>> known, foreign = hold_out(load("digits"), ["8", "9"])
        >>> len(known.classes), foreign.shape[1:]
        (8, torch.Size([1, 8, 8]))
    """
    unknown = [name for name in names if name not in splits.classes]
    if unknown or not names:
        what = f"'{unknown[0]}'" if unknown else "none"
        raise InputError(f"Expected classes among {', '.join(splits.classes)}, got {what}.")
    kept = [k for k, name in enumerate(splits.classes) if name not in names]
    if len(kept) < 2:
        raise InputError(f"Expected at least two classes to stay, got {len(kept)}.")
    index = torch.full((len(splits.classes),), -1)
    index[kept] = torch.arange(len(kept))
    known = replace(
        splits,
        train=_known(splits.train, index),
        validation=_known(splits.validation, index),
        calibration=_known(splits.calibration, index),
        test=_known(splits.test, index),
        classes=tuple(splits.classes[k] for k in kept),
    )
    ood_sets = (index[splits.test.y] < 0).nonzero()[:, 0]
    return known, splits.test[ood_sets][0]


def _known(part: DataPart | LazyPart, index: Tensor) -> DataPart | LazyPart:
    """Examples of the classes that stay, under their new indices."""
    rows = (index[part.y] >= 0).nonzero()[:, 0]
    y = index[part.y[rows]]
    if isinstance(part, LazyPart):
        return LazyPart([part.sources[int(row)] for row in rows], y, part.read)
    return DataPart(part.x[rows], y)
