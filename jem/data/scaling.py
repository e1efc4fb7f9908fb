"""What a user has -> what the network takes: one affine map, kept with the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jem.checks import as_tensor, refuse
from jem.data.columns import Column, encode

Layout = Literal["channels_first", "channels_last", "table"]


@dataclass(frozen=True, eq=False)
class Scaling:
    r"""Shape, order of axes and range of raw inputs.

    .. math:: x = (\mathrm{raw} - \mathrm{shift}) / \mathrm{scale}

    Args:
        input_shape: What the network takes for one input: (C, H, W) or (D,).
        shift: Broadcastable to `input_shape`, in raw units; float64 for tables, whose columns may
            be time stamps, else float32.
        scale: As `shift`, positive.
        layout: How raw images store their channels, or `"table"`. It decides only where a shape
            could be read both ways: images in the other order are recognised by their shape.
        columns: The column that each number of a row comes from, where columns have names.
        encoding: What was done to each column of a table of the user's.
        units: Raw values that stand for black and white: 0 and 255 for bytes, otherwise guessed
            from the values. With them, pictures in files can be brought to the same units.

    Example:
        >>> scaling = Scaling.of_bytes((1, 2, 2), "channels_last")
        >>> scaling(np.zeros((2, 2), np.uint8)).shape
        torch.Size([1, 1, 2, 2])
    """

    input_shape: tuple[int, ...]
    shift: Tensor
    scale: Tensor
    layout: Layout
    columns: tuple[str, ...] | None = None
    encoding: tuple[Column, ...] | None = None
    units: tuple[float, float] = (0.0, 255.0)

    @classmethod
    def of_range(
        cls,
        input_shape: tuple[int, ...],
        layout: Layout,
        low: float,
        high: float,
        units: tuple[float, float] | None = None,
    ) -> "Scaling":
        """Map raw values from [`low`, `high`], which are black and white if None, to [-1, 1]."""
        shift, scale = torch.tensor((low + high) / 2), torch.tensor((high - low) / 2)
        shape, units = tuple(input_shape), units or (low, high)
        return cls(shape, shift.float(), scale.float(), layout, units=units)

    @classmethod
    def of_bytes(cls, input_shape: tuple[int, ...], layout: Layout) -> "Scaling":
        """Map 8-bit images, 0 to 255, to [-1, 1]."""
        return cls.of_range(input_shape, layout, 0.0, 255.0)

    @classmethod
    def of_table(
        cls, x: npt.NDArray[Any], columns: Sequence[str] | Sequence[Column] | None = None
    ) -> "Scaling":
        """Standardise columns by mean and standard deviation.

        A constant column becomes 0; its scale is its own size, or 1 where it is smaller.

        Args:
            x: Rows of the training part alone, shape (N, D).
            columns: Names of the D columns, or what made D numbers of those of a table.
        """
        x = np.asarray(x, np.float64)
        std = x.std(0)
        varies = (x.max(0) > x.min(0)) & (std > 0)
        shift = torch.tensor(np.where(varies, x.mean(0), x[0]))
        scale = torch.tensor(np.where(varies, std, np.abs(x[0]).clip(1.0)))
        if columns is None:
            return cls((x.shape[1],), shift, scale, "table")
        made = tuple(c if isinstance(c, Column) else Column(str(c)) for c in columns)
        names = tuple(column.name for column in made for _ in range(column.width))
        encoding = made if all(isinstance(column, Column) for column in columns) else None
        return cls((x.shape[1],), shift, scale, "table", names, encoding)

    def for_bytes(self) -> "Scaling":
        """Return the scaling that does the same to pictures of bytes (H, W, C)."""
        black, white = self.units
        step = (white - black) / 255
        shift, scale = (self.shift - black) / step, self.scale / step
        return Scaling(self.input_shape, shift, scale, "channels_last")

    def __call__(self, raw: npt.ArrayLike | Tensor) -> Tensor:
        """Turn raw inputs into network inputs.

        Values are not checked: readers of files, `from_arrays` and the scores do. A number that is
        not finite stays so, and one too large for 32 bits becomes infinite.

        Args:
            raw: A batch or a single input; array, list or tensor; numbers of any type. Grey images
                may come with or without their channel axis. A data frame, where training had one.

        Returns:
            Shape (N, *input_shape), float32, on the device of `raw`. A single input gives N = 1.

        Raises:
            InputError: If the shape does not fit, or a value is no real number.
        """
        x = self.arranged(raw)
        return ((x - self.shift.to(x.device)) / self.scale.to(x.device)).float()

    def arranged(self, raw: npt.ArrayLike | Tensor) -> Tensor:
        """Raw inputs in the order of axes of the network, in their own units; see `__call__`.

        Returns:
            Shape (N, *input_shape), float32; of tables float64, for columns such as time stamps
            lose their differences in float32.
        """
        if self.encoding is not None and hasattr(raw, "columns"):
            raw = encode(self.encoding, raw)
        x = as_tensor("inputs", raw)
        channels_last = self.layout == "channels_last"
        shapes = raw_shapes(self.input_shape, channels_last=channels_last)
        x = x.reshape(batch_shape("inputs", x.shape, shapes))
        if shapes.index(tuple(x.shape[1:])) == 1 - channels_last:
            x = x.movedim(-1, 1)
        x = x.reshape(-1, *self.input_shape)
        return x.double() if self.layout == "table" else x.float()

    def invert(self, x: Tensor) -> Tensor:
        """Turn network units back into raw units.

        Args:
            x: Shape (N, *input_shape).

        Returns:
            Raw units, shape (N, *input_shape): channels stay first. Of tables they are float64,
            else of the kind of `x`.
        """
        return x * self.scale.to(x.device) + self.shift.to(x.device)

    def state_dict(self) -> dict[str, Any]:
        """Return plain values and tensors, which load under `weights_only=True`."""
        encoding = self.encoding and [column.plain() for column in self.encoding]
        return {**vars(self), "input_shape": list(self.input_shape), "encoding": encoding}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "Scaling":
        """Rebuild a scaling from its `state_dict`."""
        shape = tuple(int(size) for size in state["input_shape"])
        shift, scale = state["shift"].cpu(), state["scale"].cpu()
        encoding = state["encoding"] and tuple(Column.of(each) for each in state["encoding"])
        units = tuple(state["units"])
        return cls(shape, shift, scale, state["layout"], state["columns"], encoding, units)


CONSTANT = 1e-6
"""Half the width of the domain of a component that is constant, as a share of its size."""


def range_of(x: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of inputs: the range of each component, and a tenth of it to each side.

    A constant component must stay what it was, to a millionth of its size, or of 1.

    Args:
        x: Training inputs, shape (N, *shape).

    Returns:
        (low, high), each of one input's shape.
    """
    low, high = x.aminmax(dim=0)
    margin = torch.where(high > low, 0.1 * (high - low), CONSTANT * high.abs().clamp_min(1.0))
    return low - margin, high + margin


def raw_shapes(
    input_shape: tuple[int, ...], *, channels_last: bool = False
) -> list[tuple[int, ...]]:
    """Shapes that one raw input may have, the likeliest first.

    Args:
        input_shape: What the network takes for one input: (C, H, W) or (D,).
        channels_last: Whether (H, W, C) is likelier than (C, H, W).

    Returns:
        (D,), or images with their channels first, last, or left out where there is one.
    """
    if len(input_shape) != 3:
        return [input_shape]
    channels, *plane = input_shape
    shapes = [input_shape, (*plane, channels)]
    if channels_last:
        shapes.reverse()
    return [*shapes, tuple(plane)] if channels == 1 else shapes


def batch_shape(
    name: str, shape: Sequence[int], shapes: Sequence[tuple[int, ...]]
) -> tuple[int, ...]:
    """Shape of a batch of raw inputs, or of the batch of one that a single input makes.

    Args:
        name: What the user calls the inputs.
        shape: Their shape.
        shapes: Shapes that one may have, see `raw_shapes`.

    Raises:
        InputError: If it is neither, or the batch is empty.
    """
    batch = (1, *shape) if tuple(shape) in shapes else tuple(shape)
    if batch[1:] not in shapes or batch[0] == 0:
        wanted = " or ".join(str(("N", *s)).replace("'", "") for s in dict.fromkeys(shapes))
        refuse(name, f"have shape {wanted} with N > 0", tuple(shape))
    return batch


FACTOR = 4
"""Images whose largest absolute value differs from that of training by more are doubted."""
FEWEST = 10
"""Inputs that tell of their units together: each of fewer may be dark, or out of distribution."""


def unit_warning(x: Tensor, scaling: Scaling, domain: tuple[Tensor, Tensor] | None) -> str | None:
    """Say why a batch looks as if it were in other units, such as 0 to 1 for 0 to 255.

    Images are doubted where the largest absolute value of the batch is above 4 times that of the
    training range, or below a quarter of it. Any of them may be dark: below, it takes 10 images
    that are not all 0, or fractions of at most 1 where training went to 4 or more. Rows of a table
    are doubted where there are 10, and in each more than half of the columns lie outside the
    range of the training data.

    Args:
        x: Inputs in network units, shape (N, *input_shape).
        scaling: What made them.
        domain: Bounds of the training data in network units, for tables.

    Returns:
        One sentence, or None where nothing is suspicious.
    """
    if scaling.layout == "table":
        low, high = (bound.to(x.device) for bound in domain or (x, x))
        outside = ((x < low) | (x > high)).float().mean(dim=1)
        if len(x) < FEWEST or float(outside.min()) <= 0.5:
            return None
        return (
            f"all {len(x):,} rows lie outside the range of the training data in more than half of "
            f"the columns: check the units and the order of the columns"
        )
    raw = x * scaling.scale.to(x.device) + scaling.shift.to(x.device)
    largest = float(raw.abs().max())
    usual = float((scaling.shift.abs() + scaling.scale).max())
    broken = float((raw - raw.round()).abs().max()) > 1e-6 * usual
    fractions = broken and largest <= 1 <= usual / FACTOR
    dark = 0 < FACTOR * largest < usual and (len(x) >= FEWEST or fractions)
    if not dark and largest <= FACTOR * usual:
        return None
    return (
        f"the largest absolute value of the images is {largest:.4g}, and that of the training "
        f"data {usual:.4g}: check that both are in the same units"
    )
