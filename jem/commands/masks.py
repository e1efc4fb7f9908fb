"""Masks as the user names them on the command line: a half, a box, or a file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jem.data.files import open_array
from jem.data.images import is_image, load_image
from jem.errors import InputError

HALVES = ("lower", "upper", "left", "right")

_BOX = re.compile(r"(\d+),(\d+),(\d+),(\d+)")


def read_mask(text: str, count: int, shape: Sequence[int]) -> Tensor:
    """Places to draw anew.

    Args:
        text: A half of images (see `HALVES`), a box `x0,y0,x1,y1`, or a file.
        count: Number of inputs N.
        shape: Shape of one input.

    Returns:
        Booleans, shape (N, *shape): True = draw.

    Raises:
        InputError: If it is none of these, does not fit, or marks nothing.
    """
    mask = _box(text, shape)
    if mask is None:
        mask = _from_file(Path(text).expanduser(), count, tuple(shape))
    if not bool(mask.any()):
        raise InputError(f"--mask {text} marks nothing to draw")
    return mask.expand(count, *shape)


def _box(text: str, shape: Sequence[int]) -> Tensor | None:
    """The mask (*shape) of a half or a box; None where the text is neither."""
    box = _BOX.fullmatch(text.replace(" ", ""))
    if box is None and text not in HALVES:
        return None
    if len(shape) != 3:
        raise InputError(
            f"--mask {text} is for images, but the inputs are rows of {shape[0]} numbers: "
            "give a mask file"
        )
    _, height, width = shape
    halves = {
        "lower": (0, height // 2, width, height),
        "upper": (0, 0, width, height // 2),
        "left": (0, 0, width // 2, height),
        "right": (width // 2, 0, width, height),
    }
    x0, y0, x1, y1 = halves[text] if box is None else map(int, box.groups())
    if not (x0 < x1 <= width and y0 < y1 <= height):
        raise InputError(
            f"--mask {text} must be x0,y0,x1,y1 with x0 < x1 <= {width} and y0 < y1 <= {height}"
        )
    mask = torch.zeros(tuple(shape), dtype=torch.bool)
    mask[:, y0:y1, x0:x1] = True
    return mask


def _from_file(path: Path, count: int, shape: tuple[int, ...]) -> Tensor:
    if not path.is_file():
        raise InputError(
            f"--mask: expected {', '.join(HALVES)}, a box x0,y0,x1,y1 or a file, "
            f"but there is no file {path}"
        )
    if is_image(path):
        values = np.asarray(load_image(path, ground="black").convert("L")) >= 128
    else:
        values = open_array(path, ("mask", "missing"), "a mask")
    views = _views(count, shape)
    if values.shape not in views:
        expected = " or ".join(str(view) for view in views)
        raise InputError(f"--mask {path}: expected shape {expected}, got {values.shape}")
    return torch.from_numpy(values != 0).reshape(views[values.shape])


def _views(count: int, shape: tuple[int, ...]) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Shapes that a mask file may have, and how each is laid over inputs (N, *shape)."""
    views = {shape: (1, *shape), (count, *shape): (count, *shape)}
    if len(shape) == 3:  # one plane for all channels
        plane = shape[1:]
        if count == shape[0] > 1:  # (count, H, W) could mean a plane a channel or one an input
            del views[shape]
            views[plane] = (1, 1, *plane)
            return views
        views.setdefault(plane, (1, 1, *plane))
        views.setdefault((count, *plane), (count, 1, *plane))
    return views
