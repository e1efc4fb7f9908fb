"""What a classifier said about labelled inputs, checked and brought to float64 numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from jem.errors import InputError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Values = npt.ArrayLike | Tensor

SUM_TOLERANCE = 1e-3  # how far the probabilities of one input may sum from one
RANGE_TOLERANCE = 1e-6  # rounding of float32 beyond [0, 1], clipped


def check_probabilities(values: Values, name: str = "probabilities") -> FloatArray:
    """Class probabilities in float64, refused if they cannot be that.

    A row may sum to anything within 1e-3 of one and is not rescaled; entries up to 1e-6 outside
    [0, 1] are clipped.

    Args:
        values: p(y|x), shape (N, K) with N >= 1 and K >= 2.
        name: What an error message calls them.

    Returns:
        Shape (N, K), in [0, 1].

    Raises:
        InputError: If the shape, the range or a row's sum is not that of class probabilities.

    Example:
        >>> check_probabilities([[0.25, 0.75]])
        array([[0.25, 0.75]])
    """
    probabilities = _finite_matrix(values, name)
    low, high = probabilities.min(), probabilities.max()
    if low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
        raise InputError(f"{name}: expected values in [0, 1], got {low:.6g} to {high:.6g}")
    sums = probabilities.sum(axis=1)
    worst = int(np.abs(sums - 1).argmax())
    if abs(sums[worst] - 1) > SUM_TOLERANCE:
        raise InputError(
            f"{name}: expected rows that sum to 1 within {SUM_TOLERANCE:g}, "
            f"got {sums[worst]:.6g} in row {worst}"
        )
    return np.clip(probabilities, 0.0, 1.0)


def check_logits(values: Values, name: str = "logits") -> FloatArray:
    """Logits in float64, refused if they are no finite (N, K) matrix with N >= 1 and K >= 2.

    Args:
        values: f(x), shape (N, K).
        name: What an error message calls them.

    Returns:
        Shape (N, K).

    Raises:
        InputError: If they are not that.

    Example:
        >>> check_logits([[1, -2]])
        array([[ 1., -2.]])
    """
    return _finite_matrix(values, name)


def check_labels(
    values: Values, num_samples: int, num_classes: int, name: str = "labels"
) -> IntArray:
    """Class indices in int64, refused if they do not fit the predictions.

    Args:
        values: Integers in [0, K), shape (N,).
        num_samples: N.
        num_classes: K.
        name: What an error message calls them.

    Returns:
        Shape (N,).

    Raises:
        InputError: If shape, kind or range is wrong.

    Example:
        >>> check_labels([1, 0], num_samples=2, num_classes=2)
        array([1, 0])
    """
    labels = _numpy(values)
    if labels.ndim != 1:
        raise InputError(f"{name}: expected shape (N,), got {labels.shape}")
    if len(labels) != num_samples:
        raise InputError(f"{name}: expected {num_samples}, one an input, got {len(labels)}")
    if labels.dtype.kind not in "biu":
        raise InputError(f"{name}: expected integer class indices, got {labels.dtype}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise InputError(
            f"{name}: expected class indices in [0, {num_classes}), got {low} to {high}"
        )
    return labels.astype(np.int64)


def _finite_matrix(values: Values, name: str) -> FloatArray:
    raw = _numpy(values)
    if raw.dtype.kind not in "biuf":
        raise InputError(f"{name}: expected numbers, got {raw.dtype}")
    if raw.ndim != 2:
        raise InputError(f"{name}: expected shape (N, K), got {raw.shape}")
    if raw.shape[0] == 0:
        raise InputError(f"{name}: expected at least one row, got shape {raw.shape}")
    if raw.shape[1] < 2:
        raise InputError(f"{name}: expected at least two classes, got shape {raw.shape}")
    matrix = raw.astype(np.float64)
    if not np.isfinite(matrix).all():
        bad = int((~np.isfinite(matrix)).sum())
        raise InputError(f"{name}: expected finite values, got {bad} NaN or infinite")
    return matrix


def _numpy(values: Values) -> npt.NDArray[Any]:
    if isinstance(values, Tensor):
        tensor = values.detach().cpu()
        return (tensor.double() if tensor.is_floating_point() else tensor).numpy()
    try:
        return np.asarray(values)
    except ValueError as error:  # rows of different length
        raise InputError(f"expected a rectangular array: {error}") from error
