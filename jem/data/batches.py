"""Batches in an order that depends on nothing but a seed, a name and two counters."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from jem.data.scaling import as_numeric
from jem.data.splits import DataPart
from jem.errors import InputError
from jem.randomness import named_generator

Examples = Dataset[tuple[Tensor, Tensor]]


class BatchStream:
    """Shuffled batches, epoch after epoch, that can be taken up again in the middle of one.

    The order is a function of (seed, name, epoch) alone, so a run that resumes needs to remember
    two integers: the epoch and the number of batches it has seen of it.

    Args:
        dataset: Examples (x, y). A `DataPart` or `TensorDataset` is moved to `device` once and
            indexed there; any other goes through a `DataLoader`.
        batch_size: Examples a batch.
        seed: Base seed.
        name: Separates the orders of different streams with one seed.
        device: Where batches are wanted.
        drop_last: Whether to leave out a last, smaller batch. A set smaller than one batch gives
            a single smaller batch all the same.
        num_workers: Processes that read examples; ignored for data in memory. Data sets that draw
            random numbers themselves repeat them only with the same number of workers.

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
        num_workers: int = 0,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"Expected a batch size of at least 1, got {batch_size}.")
        self.dataset = dataset
        self.size = len(dataset)  # type: ignore[arg-type]
        if self.size < 1:
            raise InputError("Expected a data set with examples, got an empty one.")
        self.batch_size = min(batch_size, self.size)
        self.seed = seed
        self.name = name
        self.device = torch.device(device)
        self.drop_last = drop_last
        self.num_workers = num_workers
        self._in_memory = _tensors(dataset, self.device)

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        full, rest = divmod(self.size, self.batch_size)
        return full if self.drop_last or rest == 0 else full + 1

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Give the batches of one epoch.

        Args:
            epoch: Number of the epoch, from 0.
            start: How many of its first batches to leave out.

        Returns:
            Iterator over x (B, *shape) and y (B,) on `device`.
        """
        if not 0 <= start <= len(self):
            raise InputError(f"Expected a first batch from 0 to {len(self)}, got {start}.")
        generator = named_generator(self.seed, self.name, epoch)
        order = torch.randperm(self.size, generator=generator)
        batches = torch.split(order, self.batch_size)[start : len(self)]
        if self._in_memory is not None:
            return self._from_memory(batches)
        return self._from_loader(batches, epoch)

    def _from_memory(self, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        assert self._in_memory is not None
        x, y = self._in_memory
        for batch in batches:
            indices = batch.to(self.device)
            yield x[indices], y[indices]

    def _from_loader(
        self, batches: Sequence[Tensor], epoch: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        loader = DataLoader(
            self.dataset,
            batch_sampler=[batch.tolist() for batch in batches],
            num_workers=self.num_workers,
            pin_memory=self.device.type == "cuda",
            # Without one of its own a loader draws from the global generator.
            generator=named_generator(self.seed, self.name, epoch, "workers"),
        )
        for x, y in loader:
            yield (
                x.to(self.device, non_blocking=True),
                torch.as_tensor(y).to(self.device, torch.int64, non_blocking=True),
            )


def _tensors(dataset: Examples, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """Return the tensors of a set in memory, on the device, or None."""
    if isinstance(dataset, DataPart):
        return dataset.x.to(device), dataset.y.to(device)
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        x, y = dataset.tensors
        return x.to(device), y.to(device)
    return None


def as_part(data: Any) -> Examples:  # noqa: ANN401
    """Check what a person trains on, and bring it to a data set.

    Args:
        data: A pair (x, y) of tensors or arrays, a `DataPart`, or any map-style torch `Dataset` of
            (x, y). x is float in the units of the network, y class indices.

    Returns:
        A `DataPart` with x in torch's default float type for pairs and `TensorDataset`s; any other
        data set as it came, after a look at its first example.

    Raises:
        InputError: If something about it cannot be trained on.
    """
    if isinstance(data, DataPart):
        return _checked_part(data.x, data.y)
    if isinstance(data, TensorDataset) and len(data.tensors) == 2:
        return _checked_part(*data.tensors)
    if isinstance(data, Dataset):
        return _checked_dataset(data)
    if isinstance(data, tuple | list) and len(data) == 2:
        return _checked_part(*(_tensor(value) for value in data))
    raise InputError(
        f"Expected a pair (x, y) of tensors or a torch Dataset of (x, y), "
        f"got {type(data).__name__}."
    )


def _tensor(value: Any) -> Tensor:  # noqa: ANN401
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(as_numeric(value)))
    raise InputError(f"Expected x and y to be tensors or arrays, got {type(value).__name__}.")


def _checked_part(x: Tensor, y: Tensor) -> DataPart:
    if x.ndim < 2 or len(x) == 0:
        raise InputError(f"Expected x of shape (N, ...) with N > 0, got {tuple(x.shape)}.")
    _check_inputs(x)
    if y.ndim != 1 or len(y) != len(x):
        raise InputError(
            f"Expected y with one class index for each of the {len(x)} inputs, shape ({len(x)},), "
            f"got {tuple(y.shape)}."
        )
    _check_indices(y)
    return DataPart(x.detach().to(torch.get_default_dtype()), y.long())


def _check_inputs(x: Tensor) -> None:
    if not x.is_floating_point():
        raise InputError(
            f"Expected x as float, got {x.dtype}: scale it to [-1, 1], for example with "
            f"jem.data.from_arrays."
        )
    if not bool(torch.isfinite(x).all()):
        first = int((~torch.isfinite(x)).flatten(1).any(1).nonzero()[0])
        raise InputError(f"Expected finite x, got nan or infinity in example {first}.")


def _check_indices(y: Tensor) -> None:
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise InputError(
            f"Expected y as class indices of type int64, got {y.dtype}: use y.long()."
        )
    lowest = int(y.long().min())  # torch finds none among uint16
    if lowest < 0:
        raise InputError(f"Expected class indices from 0 up in y, got {lowest}.")


def _checked_dataset(dataset: Examples) -> Examples:
    """Check the size and the first example of a data set that is not in memory."""
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise InputError(
            f"Expected a data set with a length and an index, got {type(dataset).__name__}: "
            f"its order could not be repeated."
        )
    if len(dataset) == 0:
        raise InputError("Expected a data set with examples, got an empty one.")
    example = dataset[0]
    if not isinstance(example, tuple | list) or len(example) != 2:
        raise InputError(
            f"Expected a data set of pairs (x, y), got {type(example).__name__} as first example."
        )
    x, y = example
    if not isinstance(x, Tensor):
        raise InputError(
            f"Expected x as a float tensor, got {type(x).__name__}: give the data set a transform "
            f"that makes tensors in [-1, 1]."
        )
    if not isinstance(y, int | Tensor | np.integer | np.ndarray | float):
        raise InputError(f"Expected y to be a class index, got {type(y).__name__}.")
    label = torch.as_tensor(y)
    if label.ndim != 0:
        raise InputError(f"Expected y to be one class index, got shape {tuple(label.shape)}.")
    _check_inputs(x.unsqueeze(0))
    _check_indices(label)
    return dataset
