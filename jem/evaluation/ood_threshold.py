"""How many of n calibration scores a threshold may leave below it: split-conformal arithmetic."""

from __future__ import annotations

import math

from jem.errors import InputError


def flagged_rank(num_calibration: int, accept: float) -> int:
    """Rank r: inputs that score below the r-th lowest calibration score are flagged.

    r = floor((1 - accept) (n + 1)).

    Args:
        num_calibration: n.
        accept: Share to accept, in (0, 1).

    Returns:
        r, where 0 says that n is too small for that share.
    """
    # 1 - 0.9 is a little less than a tenth in binary: the slack keeps 10 * (1 - 0.9) at 1.
    return math.floor((1 - accept) * (num_calibration + 1) + 1e-9)


def check_accept(num_calibration: int, accept: float) -> None:
    """Refuse a share that n calibration inputs cannot promise.

    Args:
        num_calibration: n.
        accept: Share to accept.

    Raises:
        InputError: If the share is not in (0, 1), or n is too small: 0.95 needs 19, 0.99 needs 99.
    """
    if not 0 < accept < 1:
        raise InputError(f"`accept` must lie in (0, 1), but got {accept}")
    if not flagged_rank(num_calibration, accept):
        raise InputError(
            f"accept={accept:g} needs at least {smallest_calibration(accept)} calibration "
            f"inputs, but got {num_calibration}"
        )


def largest_accept(num_calibration: int, wanted: float = 0.95) -> float:
    """The wanted share, or n / (n + 1) where n calibration inputs can promise no more.

    Args:
        num_calibration: n >= 1.
        wanted: Share in (0, 1).

    Returns:
        A share that `check_accept` takes.

    Raises:
        InputError: If there is no calibration input.

    Example:
        >>> largest_accept(100), largest_accept(9)
        (0.95, 0.9)
    """
    if num_calibration < 1:
        raise InputError("a threshold needs calibration inputs, but there is none")
    return wanted if flagged_rank(num_calibration, wanted) else 1 - 1 / (num_calibration + 1)


def smallest_calibration(accept: float) -> int:
    """How many calibration inputs make r = 1.

    Args:
        accept: Share to accept, in (0, 1).
    """
    num = max(math.ceil(1 / (1 - accept)) - 2, 1)
    while not flagged_rank(num, accept):
        num += 1
    return num
