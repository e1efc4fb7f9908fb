"""What a person has -> what the network takes: one affine map, kept with the model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jem.errors import InputError

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

    Example:
        >>> scaling = Scaling.of_bytes((1, 2, 2), "channels_last")
        >>> scaling(np.zeros((2, 2), np.uint8)).shape
        torch.Size([1, 1, 2, 2])
    """

    input_shape: tuple[int, ...]
    shift: Tensor
    scale: Tensor
    layout: Layout

    @classmethod
    def of_range(
        cls, input_shape: tuple[int, ...], layout: Layout, low: float, high: float
    ) -> "Scaling":
        """Map raw values from [`low`, `high`] to [-1, 1]."""
        shift, scale = torch.tensor((low + high) / 2), torch.tensor((high - low) / 2)
        return cls(tuple(input_shape), shift.float(), scale.float(), layout)

    @classmethod
    def of_bytes(cls, input_shape: tuple[int, ...], layout: Layout) -> "Scaling":
        """Map 8-bit images, 0 to 255, to [-1, 1]."""
        return cls.of_range(input_shape, layout, 0.0, 255.0)

    @classmethod
    def of_table(cls, x: npt.NDArray[Any]) -> "Scaling":
        """Standardise columns by mean and standard deviation; a constant column is only centred.

        Args:
            x: Rows of the training part alone, shape (N, D).
        """
        x = x.astype(np.float64)
        std = np.where(x.max(0) > x.min(0), x.std(0), 1.0)
        shift, scale = torch.tensor(x.mean(0)), torch.tensor(std)
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        return cls((x.shape[1],), shift, scale, "table")

    def __call__(self, raw: npt.ArrayLike | Tensor) -> Tensor:
        """Turn raw inputs into network inputs.

        Args:
            raw: A batch or a single input; array, list or tensor; numbers of any type. Grey images
                may come with or without their channel axis.

        Returns:
            Shape (N, *input_shape), float32, on the device of `raw`. A single input gives N = 1.

        Raises:
            InputError: If the shape does not fit, or a value is missing, infinite or no number.
        """
        x = self._arrange(_numbers(raw))
        # Columns such as time stamps lose their differences in float32: centre in float64.
        x = x.double() if self.layout == "table" else x.float()
        x = ((x - self.shift.to(x.device)) / self.scale.to(x.device)).float()
        finite = torch.isfinite(x)
        if not bool(finite.all()):
            row, *where = (~finite).nonzero()[0].tolist()
            raise InputError(
                f"Expected finite numbers, got nan, infinity or a number too large for 32 bits "
                f"in input {row}, position {tuple(where)}: remove or fill in such inputs."
            )
        return x

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
        return {
            "input_shape": list(self.input_shape),
            "shift": self.shift,
            "scale": self.scale,
            "layout": self.layout,
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "Scaling":
        """Rebuild a scaling from its `state_dict`."""
        shape = tuple(int(size) for size in state["input_shape"])
        return cls(shape, state["shift"].cpu(), state["scale"].cpu(), state["layout"])

    def _arrange(self, x: Tensor) -> Tensor:
        """Bring a batch or a single input to (N, *input_shape), judging by its shape."""
        for shape, channels_last in self._readings():
            if tuple(x.shape) == shape:
                x = x.unsqueeze(0)
            if len(x.shape) > 1 and tuple(x.shape[1:]) == shape and len(x) > 0:
                return x.movedim(-1, 1) if channels_last else x.reshape(-1, *self.input_shape)
        accepted = dict.fromkeys(shape for shape, _ in self._readings())
        expected = " or ".join(str(("N", *shape)).replace("'", "") for shape in accepted)
        raise InputError(
            f"Expected inputs of shape {expected}, N > 0 (or one input, without N), "
            f"got {tuple(x.shape)}."
        )

    def _readings(self) -> list[tuple[tuple[int, ...], bool]]:
        """List shapes of one raw input, preferred first, and whether channels are last."""
        if self.layout == "table":
            return [(self.input_shape, False)]
        channels, *plane = self.input_shape
        readings = [(self.input_shape, False), ((*plane, channels), True)]
        if self.layout == "channels_last":
            readings.reverse()
        return [*readings, (tuple(plane), False)] if channels == 1 else readings


def _numbers(raw: npt.ArrayLike | Tensor) -> Tensor:
    """Convert to a tensor of real numbers, or say what is wrong."""
    if not isinstance(raw, Tensor):
        try:
            array = np.asarray(raw)
        except (ValueError, TypeError) as error:
            raise InputError(
                f"Expected inputs that form one array of numbers, got {type(raw).__name__} "
                f"that does not ({error})."
            ) from error
        raw = torch.from_numpy(np.require(as_numeric(array), requirements=["C", "W"]))
    if raw.is_complex():
        raise InputError("Expected real numbers, got complex ones.")
    return raw.detach()


def as_numeric(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return numbers that torch can take, refusing text and objects.

    Args:
        array: Any shape and type; objects that hold numbers are converted.

    Raises:
        InputError: If an element is no real number.
    """
    if array.dtype == object or array.dtype.kind in "US":
        try:
            array = array.astype(np.float64)
        except (ValueError, TypeError) as error:
            raise InputError(f"Expected numbers as inputs, got others ({error}).") from error
    if array.dtype.kind not in "biuf":
        raise InputError(f"Expected real numbers as inputs, got values of type {array.dtype}.")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:  # torch does little with these
        return array.astype(np.int64)
    native = array.dtype.newbyteorder("=")
    return array.astype(np.float64 if native == np.longdouble else native, copy=False)
