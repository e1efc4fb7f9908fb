"""How many of n calibration scores a threshold may leave below it: split-conformal arithmetic."""

from __future__ import annotations

import math

from jem.errors import InputError


def flagged_rank(num_calibration: int, acceptance_rate: float) -> int:
    """Rank r: inputs that score below the r-th lowest calibration score are flagged.

    r = floor((1 - accept) (n + 1)).

    Args:
        num_calibration: n.
        acceptance_rate: Share to accept, in (0, 1).

    Returns:
        r, where 0 says that n is too small for that share.
    """
    # 1 - 0.9 is a little less than a tenth in binary: the slack keeps 10 * (1 - 0.9) at 1.
    return math.floor((1 - acceptance_rate) * (num_calibration + 1) + 1e-9)


def check_acceptance_rate(num_calibration: int, acceptance_rate: float) -> None:
    """Refuse a share that n calibration inputs cannot promise.

    Args:
        num_calibration: n.
        acceptance_rate: Share to accept.

    Raises:
        InputError: If the share is not in (0, 1), or n is too small: 0.95 needs 19, 0.99 needs 99.
    """
    if not 0 < acceptance_rate < 1:
        raise InputError(f"`acceptance_rate` must lie in (0, 1), but got {acceptance_rate}")
    if not flagged_rank(num_calibration, acceptance_rate):
        raise InputError(
            f"acceptance_rate={acceptance_rate:g} needs at least {smallest_calibration(acceptance_rate)} calibration "
            f"inputs, but got {num_calibration}"
        )


def largest_acceptance_rate(num_calibration: int, wanted: float = 0.95) -> float:
    """The wanted share, or n / (n + 1) where n calibration inputs can promise no more.

    Args:
        num_calibration: n >= 1.
        wanted: Share in (0, 1).

    Returns:
        A share that `check_acceptance_rate` takes.

    Raises:
        InputError: If there is no calibration input.

    Example:
        >>> largest_acceptance_rate(100), largest_acceptance_rate(9)
        (0.95, 0.9)
    """
    if num_calibration < 1:
        raise InputError("a threshold needs calibration inputs, but there is none")
    return wanted if flagged_rank(num_calibration, wanted) else 1 - 1 / (num_calibration + 1)


def smallest_calibration(acceptance_rate: float) -> int:
    """How many calibration inputs make r = 1.

    Args:
        acceptance_rate: Share to accept, in (0, 1).
    """
    num = max(math.ceil(1 / (1 - acceptance_rate)) - 2, 1)
    while not flagged_rank(num, acceptance_rate):
        num += 1
    return num
