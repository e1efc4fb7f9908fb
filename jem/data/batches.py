"""What a user trains on, checked once; batches in a repeatable order; random changes to them."""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from jem.checks import as_tensor, check_finite, check_integer, check_labels, refuse
from jem.data.splits import DataPart, LazyPart
from jem.errors import InputError
from jem.randomness import named_generator

Examples = Dataset[Any]
ITEM_KEYS = ("pixel_values", "input_values", "image", "x"), ("label", "labels", "y")
"""Names of input and class in a mapping, the usual ones of Hugging Face first."""


class BatchStream:
    """Shuffled batches, epoch after epoch, that can be taken up again in the middle of one.

    The order is a function of (seed, name, epoch) alone, so a run that resumes needs to remember
    two integers: the epoch and the number of batches it has seen of it. Examples are not checked
    here: `as_part` and `from_arrays` have.

    Args:
        dataset: Examples (x, y). A `DataPart` or `TensorDataset` is moved to `device` once and
            indexed there; any other goes through a `DataLoader`, with the workers of `Pairs`.
        batch_size: Examples a batch.
        seed: Base seed.
        name: Separates the orders of different streams with one seed.
        device: Where batches are wanted.
        drop_last: Whether to leave out a last, smaller batch. A set smaller than one batch gives
            a single smaller batch all the same.

    Raises:
        InputError: If the data set is empty, or the batch size below 1.

    Example:
        >>> part = DataPart(torch.zeros(10, 2), torch.zeros(10, dtype=torch.int64))
        >>> stream = BatchStream(part, 4, seed=0, name="batches")
        >>> len(stream), len(list(stream.epoch(0))), len(list(stream.epoch(0, start=1)))
        (2, 2, 1)
    """

    def __init__(
        self,
        dataset: Examples,
        batch_size: int,
        *,
        seed: int,
        name: str,
        device: torch.device | str = "cpu",
        drop_last: bool = True,
    ) -> None:
        check_integer("batch_size", batch_size, 1)
        self.dataset = dataset
        self.size = len(dataset)  # type: ignore[arg-type]
        if self.size < 1:
            refuse("dataset", "hold examples", "an empty one")
        self.batch_size = min(batch_size, self.size)
        self.seed = seed
        self.name = name
        self.device = torch.device(device)
        self.drop_last = drop_last
        pair = _tensors(dataset)
        self._in_memory = pair and tuple(tensor.to(self.device) for tensor in pair)

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        full, rest = divmod(self.size, self.batch_size)
        return full if self.drop_last or rest == 0 else full + 1

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Give the batches of one epoch.

        Args:
            epoch: Number of the epoch, from 0.
            start: How many of its first batches to leave out, at most `len(self)`.

        Returns:
            Iterator over x (B, *shape) and y (B,) on `device`.
        """
        generator = named_generator(self.seed, self.name, epoch)
        order = torch.randperm(self.size, generator=generator)
        if self._in_memory is not None:
            order = order.to(self.device)  # once: a copy for each batch makes the host wait
        batches = torch.split(order, self.batch_size)[start : len(self)]
        if self._in_memory is not None:
            x, y = self._in_memory
            return ((x[indices], y[indices]) for indices in batches)
        loader = DataLoader(
            self.dataset,
            batch_sampler=[batch.tolist() for batch in batches],
            num_workers=getattr(self.dataset, "num_workers", 0),
            pin_memory=self.device.type == "cuda",
            # Without one of its own a loader draws from the global generator.
            generator=named_generator(self.seed, self.name, epoch, "workers"),
        )
        return self._read(loader)

    def _read(self, loader: DataLoader[Any]) -> Iterator[tuple[Tensor, Tensor]]:
        try:
            for x, y in loader:
                y = torch.as_tensor(y).to(self.device, torch.int64, non_blocking=True)
                yield x.to(self.device, non_blocking=True), y
        except InputError as error:  # a worker puts its traceback before the message
            last = str(error).rstrip().splitlines()[-1]
            raise InputError(last.removeprefix("jem.errors.InputError: ")) from error


def _tensors(data: object) -> tuple[Tensor, Tensor] | None:
    """The inputs and labels of a data set that is in memory, or None."""
    if isinstance(data, DataPart):
        return data.x, data.y
    if isinstance(data, TensorDataset) and len(data.tensors) == 2:
        return data.tensors
    return None


class Pairs(Dataset[tuple[Tensor, int]]):
    """A user's data set, whose items are checked as they are read: of one shape and float type.

    Args:
        data: Gives items by index: pairs (x, y), or mappings as those of Hugging Face. Of a
            `DataLoader` the data set, `collate_fn` and `num_workers` are used.
    """

    def __init__(self, data: Any) -> None:  # noqa: ANN401
        self.dataset, self.num_workers, self.collate = data, 0, None
        if isinstance(data, DataLoader):
            self.dataset, self.num_workers = data.dataset, data.num_workers
            if data.collate_fn is not default_collate:
                self.collate = data.collate_fn
        indexed = hasattr(self.dataset, "__len__") and hasattr(self.dataset, "__getitem__")
        if not indexed or isinstance(self.dataset, IterableDataset):
            expected = "be a pair (x, y) of tensors, or a Dataset with a length and an index"
            refuse("data", expected, type(self.dataset).__name__)
        if not len(self):
            refuse("data", "hold examples", "an empty data set")
        sampler = getattr(data, "sampler", None)
        if not isinstance(sampler, RandomSampler | SequentialSampler | None):
            warnings.warn(
                f"the sampler of the DataLoader, {type(sampler).__name__}, is ignored: every "
                "epoch uses each example once; set `class_weight` to weight classes",
                stacklevel=4,
            )
        self.shape: tuple[int, ...] | None = None
        self.shape = tuple(self[0][0].shape)

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return an input in torch's default float type, and its class index.

        Raises:
            InputError: If the item is no such pair, or of another shape than the first.
        """
        item = self.dataset[index] if self.collate is None else self.collate([self.dataset[index]])
        if isinstance(item, Mapping):
            item = [next((item[k] for k in keys if k in item), None) for keys in ITEM_KEYS]
        if not isinstance(item, tuple | list) or len(item) != 2 or any(v is None for v in item):
            keys = f"mappings with {ITEM_KEYS[0][0]!r} and {ITEM_KEYS[1][0]!r}"
            refuse("data", f"give pairs (x, y), or {keys}", f"{_kind(item)} in item {index}")
        x, y = item if self.collate is None else (value[0] for value in item)
        if isinstance(x, list | np.ndarray):
            x = as_tensor("x", x)
        if not isinstance(x, Tensor):
            remedy = "give the data set a transform that makes tensors in [-1, 1]"
            refuse("x", "be a float tensor", f"{type(x).__name__} in item {index}", remedy)
        if not isinstance(y, int | Tensor | np.integer | np.ndarray):
            refuse("y", "be a class index", f"{type(y).__name__} in item {index}")
        if not x.isfinite().all():
            refuse("x", "be finite", f"NaN or infinity in item {index}", "leave it out")
        part = _checked_part(x[None], torch.as_tensor(y).reshape(1))
        if self.shape not in (None, part.x.shape[1:]):
            got = f"{tuple(part.x.shape[1:])} in item {index}"
            refuse("x", f"have the shape {self.shape} of item 0", got, "bring all to one size")
        return part.x[0], int(part.y)


def _kind(item: Any) -> str:  # noqa: ANN401
    return f"{type(item).__name__} of {len(item)}" if hasattr(item, "__len__") else repr(item)


def as_part(data: Any) -> Examples:  # noqa: ANN401
    """Check what a user trains on, and bring it to a data set: the one check of its values.

    Inputs in memory are scanned for numbers that are not finite, and labels for what is no class
    index. Any other data set is left where it is, and each of its items checked as it is read.
    Whether the labels fit the network, training tells.

    Args:
        data: A pair (x, y) of tensors or arrays, a `DataPart`, or any map-style torch `Dataset` or
            `DataLoader` of (x, y) or of mappings such as {"pixel_values": x, "label": y}. x is
            float in the units of the network, y class indices.

    Returns:
        A `DataPart` with x in torch's default float type for pairs and `TensorDataset`s; a
        `LazyPart` as it came; otherwise `Pairs`.

    Raises:
        InputError: If something about it cannot be trained on.
    """
    pair = _tensors(data)
    if pair is not None:
        return _checked_part(*pair)
    if isinstance(data, tuple | list) and len(data) == 2:
        return _checked_part(as_tensor("x", data[0]), as_tensor("y", data[1]))
    return data if isinstance(data, LazyPart | Pairs) else Pairs(data)


def _checked_part(x: Tensor, y: Tensor) -> DataPart:
    if x.layout != torch.strided or y.layout != torch.strided:
        refuse("x", "be dense", f"a sparse tensor ({x.layout})", "x.to_dense() makes one")
    if x.ndim < 2 or len(x) == 0:
        refuse("x", "have shape (N, ...) with N > 0", tuple(x.shape))
    if not x.is_floating_point():
        remedy = "scale it to [-1, 1], for example with jem.data.from_arrays"
        refuse("x", "be float", x.dtype, remedy)
    check_finite("x", x)
    check_labels("y", y, len(x))
    return DataPart(x.detach().to(torch.get_default_dtype()), y.long())


def augment(
    x: Tensor, *, shift: int, flip: bool, noise_std: float, generator: torch.Generator
) -> Tensor:
    """Shift, mirror and blur with noise, each example on its own.

    Args:
        x: Inputs, shape (B, C, H, W) where `shift` or `flip` are used, else any.
        shift: Largest shift in pixels, up or down and left or right; edge pixels are repeated.
        flip: Whether to mirror each image left to right with probability 1/2.
        noise_std: Standard deviation of Gaussian noise, in the units of `x`. The result is not
            clipped.
        generator: Source of the draws. On a device other than that of `x` it gives the same
            changes, more slowly.

    Returns:
        New inputs, shape and dtype of `x`; `x` itself when there is nothing to do.

    Raises:
        InputError: If inputs to shift or flip are no images.
    """
    if shift > 0 or flip:
        if x.ndim != 4:
            remedy = "set shift to 0 and flip to false for other inputs"
            refuse("x", "have shape (B, C, H, W) to shift or flip", tuple(x.shape), remedy)
        x = _shift_and_flip(x, shift, flip, generator)
    if noise_std > 0:
        noise = torch.randn(x.shape, generator=generator, device=generator.device, dtype=x.dtype)
        x = x + noise_std * noise.to(x.device)
    return x


def _shift_and_flip(x: Tensor, shift: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Pick for every pixel of the result the row and column that it comes from."""
    batch, channels, height, width = x.shape

    def draw(low: int, high: int) -> Tensor:
        values = torch.randint(
            low, high + 1, (batch, 1), generator=generator, device=generator.device
        )
        return values.to(x.device)

    rows = (torch.arange(height, device=x.device) + draw(-shift, shift)).clamp(0, height - 1)
    columns = (torch.arange(width, device=x.device) + draw(-shift, shift)).clamp(0, width - 1)
    if flip:
        columns = torch.where(draw(0, 1) == 1, columns.flip(1), columns)
    x = x.gather(2, rows[:, None, :, None].expand(batch, channels, height, width))
    return x.gather(3, columns[:, None, None, :].expand(batch, channels, height, width))
