"""What a detector refuses or doubts: calibration inputs in other units, too few or all alike."""

import warnings

from torch import Tensor

from jem.checks import check_number, refuse
from jem.evaluation.statistics import smallest_calibration
from jem.model import JEM

UNFITTED = "the detector has no threshold yet: call `fit(x_calibration)` first"
"""What a detector says where it needs a threshold."""


def check_acceptance_rate(
    acceptance_rate: float, num_calibration: int, *, shared: bool = False
) -> None:
    """Check a share, and that calibration inputs are enough for it.

    Args:
        acceptance_rate: Share of in-distribution inputs to accept.
        num_calibration: Calibration inputs.
        shared: Whether half of them are for the p-values of a sum.

    Raises:
        InputError: If it is not in (0, 1), or they are too few.
    """
    check_number("acceptance_rate", acceptance_rate, "(0, 1)")
    needed = (1 + shared) * smallest_calibration(acceptance_rate)
    if num_calibration < needed:
        refuse(
            "x_calibration",
            f"hold at least {needed} inputs for an acceptance rate of {acceptance_rate:g}",
            num_calibration,
            "with `validation=x_validation` half as many will do" if shared else "",
        )


def check_scores(scores: Tensor) -> None:
    """Refuse scores that are NaN, which no comparison would flag.

    Raises:
        InputError: If one is.
    """
    if bool(scores.isnan().any()):
        refuse("scores", "be numbers", f"NaN for input {int(scores.isnan().nonzero()[0])}")


def doubt_ties(scores: Tensor, slack: Tensor) -> None:
    """Warn where more than half of calibration scores (n,) are the same within `slack`."""
    tied = int(((scores - scores.median()).abs() <= slack).sum())
    if tied > max(1, len(scores) / 2):
        warnings.warn(
            f"{tied} of {len(scores)} calibration scores are equal, so the score cannot rank "
            "these inputs; it may reject all other inputs or none",
            stacklevel=5,
        )


def check_units(x: Tensor, model: JEM) -> None:
    """Refuse calibration inputs that mostly leave the domain by its width.

    Those of bytes for a network of [-1, 1] do in every value that is not black. An honest table
    of many columns has a few such values in most of its rows.
    """
    bounds = model.bounds(x.device)
    if bounds is None:
        return
    low, high = bounds
    far = (x < 2 * low - high) | (x > 2 * high - low)
    if far[x != 0].float().mean() > 0.5:  # the ground of a picture is 0 in many units
        refuse(
            "x_calibration",
            f"lie within [{float(low.min()):.4g}, {float(high.max()):.4g}]",
            f"[{float(x.min()):.4g}, {float(x.max()):.4g}]",
            "`model.preprocess` converts raw data to the network's units",
        )
