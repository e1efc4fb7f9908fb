"""Checks of what a user passes in, made once, where it enters: one form of message for all.

Every message reads "`name` must ..., got ...". Formulas do not check: their callers have.
"""

import math
import operator
import re
import sys
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.utils.data import Dataset

from jem.errors import InputError

_LIMITS: dict[str, Callable[[float, float], bool]] = {
    "[": operator.ge,
    "(": operator.gt,
    "]": operator.le,
    ")": operator.lt,
}


def refuse(name: str, expected: str, got: object, remedy: str = "") -> NoReturn:
    """Raise the one form of message: what was expected, what came, and what to do.

    Raises:
        InputError: Always.
    """
    raise InputError(f"`{name}` must {expected}, got {got}" + (f": {remedy}" if remedy else ""))


def check_number(
    name: str,
    value: Any,  # noqa: ANN401
    interval: str,
    *,
    optional: bool = False,
) -> None:
    """Check that a number lies in an interval such as `"(0, 1]"` or `"[1, inf)"`.

    Args:
        name: What the user calls it.
        value: A number; NaN, booleans and text never pass.
        interval: Limits in the usual brackets.
        optional: Whether None passes too.

    Raises:
        InputError: If it does not.
    """
    if value is None and optional:
        return
    opening, low, high, closing = re.fullmatch(r"([\[(])(.+), (.+)([\])])", interval).groups()  # type: ignore[union-attr]
    number = isinstance(value, int | float | np.integer | np.floating)
    if not (
        number
        and not isinstance(value, bool)
        and _LIMITS[opening](value, float(low))
        and _LIMITS[closing](value, float(high))
    ):
        expected = {"[0, inf)": "be at least 0", "(0, inf)": "be above 0"}.get(interval)
        refuse(name, expected or f"lie in {interval}", repr(value))


def check_integer(
    name: str,
    value: Any,  # noqa: ANN401
    at_least: int,
    at_most: float = math.inf,
    *,
    optional: bool = False,
) -> None:
    """Check that a value is a whole number, not a boolean, within limits.

    Args:
        name: What the user calls it.
        value: The value.
        at_least: Smallest number that passes.
        at_most: Largest number that passes.
        optional: Whether None passes too.

    Raises:
        InputError: If it does not.
    """
    if value is None and optional:
        return
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not (whole and at_least <= value <= at_most):
        limits = f"of at least {at_least}" if at_most == math.inf else f"in {at_least}..{at_most}"
        refuse(name, f"be a whole number {limits}", repr(value))


def counted(count: int, thing: str) -> str:
    """A number of things in words, such as "1 image" and "1,200 images"."""
    return f"{count:,} {thing}{'s' * (count != 1)}"


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Check that a value is one of several names.

    Raises:
        InputError: If it is not; the message lists them.
    """
    if value not in choices:
        refuse(name, f"be one of {', '.join(map(repr, choices))}", repr(value))


def check_inputs(
    name: str, x: Tensor, shape: tuple[int, ...] | None = None, *, least: int = 1
) -> None:
    """Check that a value is a batch of a network's inputs; its numbers are not looked at.

    Args:
        name: What the user calls them.
        x: Inputs, a tensor of floats (B, *shape).
        shape: Shape of one input; None takes any.
        least: Smallest B that passes.

    Raises:
        InputError: If it is anything else.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        remedy = "`model.preprocess` makes one from raw data"
        refuse(name, "be a tensor of floats in the network's units", got, remedy)
    few = (
        least > 0 and len(x) < least
    )  # a length that is free while a graph is traced is not asked
    if x.ndim < 2 or few or (shape is not None and tuple(x.shape[1:]) != shape):
        sizes = "..." if shape is None else ", ".join(map(str, shape))
        refuse(name, f"have shape (B, {sizes}), B >= {least}", tuple(x.shape))


def check_finite(name: str, x: Tensor) -> None:
    """Check that no number of a tensor of rows (B, ...) is NaN or infinite.

    Raises:
        InputError: If one is; the message names the first such row.
    """
    if not bool(torch.isfinite(x).all()):
        bad = ~torch.isfinite(x.reshape(len(x), -1)).all(dim=1)
        row = int(bad.nonzero()[0])
        refuse(name, "be finite", f"NaN or infinity in row {row}", "correct that row or remove it")


def check_labels(name: str, labels: Tensor, num_rows: int, num_classes: int | None = None) -> None:
    """Check that labels are class indices, one a row.

    Args:
        name: What the user calls them.
        labels: Labels, of shape (num_rows,).
        num_rows: Rows that they belong to.
        num_classes: K; an index lies in 0..K-1. None where K is not known yet.

    Raises:
        InputError: If they are no whole numbers, not one a row, or out of range.
    """
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype == torch.bool:
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        refuse(name, "be a tensor of class indices", kind)
    if labels.shape != (num_rows,):
        refuse(name, f"have one label for each input, shape ({num_rows},)", tuple(labels.shape))
    if num_rows:
        limits = labels.long().aminmax()  # torch finds no minimum among uint16
        low, high = int(limits.min), int(limits.max)
        if low < 0 or high >= (num_classes or math.inf):
            expected = f"lie in 0..{num_classes - 1}" if num_classes else "be at least 0"
            refuse(name, expected, f"{low}..{high}")


def check_probabilities(name: str, probabilities: Tensor) -> None:
    """Check that rows of shape (N, K) with N, K >= 1 are probabilities.

    Raises:
        InputError: If the shape is another, or a row holds a negative number or does not sum to
            one within 1e-3.
    """
    if probabilities.ndim != 2 or not probabilities.numel():
        refuse(name, "have shape (N, K) with N, K >= 1", tuple(probabilities.shape))
    check_finite(name, probabilities)
    low, off = float(probabilities.min()), float((probabilities.sum(dim=1) - 1).abs().max())
    if low < 0 or off > 1e-3:
        got = f"a row that is {off:.3g} away from 1" if low >= 0 else f"the number {low:.3g}"
        refuse(name, "have rows of probabilities that sum to 1", got, "apply a softmax to logits")


def as_tensor(name: str, values: Tensor | ArrayLike) -> Tensor:
    """Read numbers as a tensor without a graph, on the same memory where torch can share it.

    Args:
        name: What the user calls them.
        values: Tensor, array or list; an array may lie in a file larger than memory. Objects and
            texts that hold numbers become float64.

    Raises:
        InputError: If they are anything else, or no real numbers.
    """
    if isinstance(values, Tensor):
        return values.detach()
    try:
        if values is None or isinstance(values, Dataset):  # which numpy would read pair by pair
            raise TypeError
        array = np.asarray(values)
        kind, size = array.dtype.kind, array.dtype.itemsize
        if kind in "OUS" or array.dtype == np.longdouble:
            array = array.astype(np.float64)
        elif kind == "u" and size > 1:  # torch does little with these
            array = array.astype(np.int64)
        elif kind not in "biuf":
            raise TypeError
        if not array.dtype.isnative or min(array.strides, default=0) < 0:  # torch cannot share it
            array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
        with warnings.catch_warnings():  # nothing here writes to it
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(array)
    except (TypeError, ValueError, RuntimeError):
        got = type(values).__name__
        remedy = "pass only numbers, such as data.calibration.x"
        refuse(name, "be a tensor, or an array or list of numbers", got, remedy)


def as_labels(
    name: str, labels: Tensor | ArrayLike, num_rows: int, num_classes: int | None = None
) -> Tensor:
    """Read class indices, one a row, as a tensor on the CPU: see `as_tensor`, `check_labels`."""
    read = as_tensor(name, labels).cpu()
    check_labels(name, read, num_rows, num_classes)
    return read.long()


def as_batch(x: Tensor | ArrayLike, input_shape: tuple[int, ...] | None) -> Tensor:
    """Read a batch or a single input as a tensor of shape (B, *shape); it stays where it is.

    Args:
        x: Tensor, array or list of floating point numbers, in the network's units.
        input_shape: Shape of one input; None takes a vector as one input, all else as a batch.

    Returns:
        A tensor; one input gives B = 1.

    Raises:
        InputError: If these are no floating point numbers, or the shape does not fit.
    """
    x = as_tensor("x", x)
    if x.ndim == 1 if input_shape is None else tuple(x.shape) == input_shape:
        x = x[None]
    check_inputs("x", x, input_shape, least=0)
    return x


def callers_level() -> int:
    """Stack level, for a warning, of the code outside of this package that called into it."""
    here, level, frame = str(Path(__file__).parent), 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(here):
        level, frame = level + 1, frame.f_back
    return level
