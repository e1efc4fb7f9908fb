"""The four parts of a data set, how they are divided, and a few examples of one at random."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from jem.checks import refuse
from jem.data.scaling import Scaling
from jem.randomness import derive_seed, named_generator

PART_NAMES = ("train", "validation", "calibration", "test")
SHOWN = 40  # columns of a table that are described
SHARES = {"validation": 0.1, "calibration": 0.1, "test": 0.2}
LARGEST_COUNTS = {"validation": 5_000, "calibration": 5_000, "test": 10_000}  # more tells no more
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class DataPart(Dataset[tuple[Tensor, Tensor]]):
    """One part of a data set, held in memory.

    Args:
        x: Inputs in network units, shape (N, *input_shape), float32.
        y: Class indices, shape (N,), int64.
        sources: Where each example was: its file, or the number of its row from 0; empty if that
            is not known.
    """

    x: Tensor
    y: Tensor
    sources: Sequence[Any] = ()

    def __repr__(self) -> str:
        return f"DataPart({len(self):,} inputs of {_by(self.x.shape[1:])})"

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.x)

    def __getitem__(self, index: int | slice | Tensor) -> tuple[Tensor, Tensor]:
        """Return one example, or several for a slice or a tensor of indices."""
        return self.x[index], self.y[index]


@dataclass(frozen=True, eq=False)
class LazyPart(Dataset[tuple[Tensor, Tensor]]):
    """One part of a data set too large for memory: inputs are read when asked for.

    Args:
        sources: What `read` takes, one an example, such as file names.
        y: Class indices, shape (N,), int64.
        read: Maps a source to a network input of shape (*input_shape), float32.
    """

    sources: Sequence[Any]
    y: Tensor
    read: Callable[[Any], Tensor]

    def __repr__(self) -> str:
        return f"LazyPart({len(self):,} inputs, read when asked for)"

    @property
    def x(self) -> Tensor:
        """Refused: all inputs at once are too large for memory."""
        remedy = "read some, `part[:1000][0]`, or give the whole part to `jem.fit_scorer`"
        refuse("x", "be in memory", repr(self), remedy)

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.sources)

    def __getitem__(self, index: int | slice | Tensor) -> tuple[Tensor, Tensor]:
        """Return one example, or several for a slice or a tensor of indices."""
        if isinstance(index, Tensor) and index.ndim == 0:
            index = int(index)
        if isinstance(index, int):
            return self.read(self.sources[index]), self.y[index]
        chosen = torch.arange(len(self))[index]
        x = torch.stack([self.read(self.sources[int(i)]) for i in chosen])
        return x, self.y[chosen]


@dataclass(frozen=True, eq=False)
class DataSplits:
    """A data set in four parts that share no example.

    Args:
        name: What the set is called.
        train: What the network learns from; scaling and domain come from this part alone.
        validation: Chooses the epoch and the temperature.
        calibration: Sets thresholds and p-values; nothing else may have seen it.
        test: Measured once, at the end.
        classes: Names of the classes, in the order of their indices.
        scaling: Maps what the user has to network units.
        domain: Lowest and highest value of each input in network units, broadcastable to
            `input_shape`.
        kind: Whether inputs are images (C, H, W) or rows (D,) of a table.
        input_shape: Shape of one network input.
        notes: What was read of the user's files, and what was left out, in words.
    """

    name: str
    train: DataPart | LazyPart
    validation: DataPart | LazyPart
    calibration: DataPart | LazyPart
    test: DataPart | LazyPart
    classes: tuple[str, ...]
    scaling: Scaling
    domain: tuple[Tensor, Tensor]
    kind: Literal["image", "table"]
    input_shape: tuple[int, ...]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return self.describe()

    @property
    def parts(self) -> dict[str, DataPart | LazyPart]:
        """The four parts by name."""
        return {name: getattr(self, name) for name in PART_NAMES}

    @property
    def columns(self) -> tuple[str, ...] | None:
        """Names of the columns of a table that has any."""
        return self.scaling.columns

    def in_order(self, classes: Sequence[str]) -> "DataSplits":
        """The same data with their classes in another order, such as that of a network.

        Args:
            classes: Their names.

        Raises:
            InputError: If these are not the classes of the data.
        """
        if sorted(classes) != sorted(self.classes):
            names = ", ".join(sorted(self.classes))
            refuse("classes", f"be those of the data ({names})", ", ".join(classes))
        index = torch.tensor([list(classes).index(name) for name in self.classes])
        moved = {name: replace(part, y=index[part.y]) for name, part in self.parts.items()}
        return replace(self, classes=tuple(classes), **moved)  # type: ignore[arg-type]

    def describe(self) -> str:
        """Return a few lines for people: shape, sizes, class counts and what was left out."""
        shape, num_classes = _by(self.input_shape), len(self.classes)
        what = f"images of {shape}" if self.kind == "image" else f"rows of {shape} numbers"
        sizes = ", ".join(f"{name} {len(part):,}" for name, part in self.parts.items())
        lazy = " (read from disk when needed)" if isinstance(self.train, LazyPart) else ""
        counts = torch.bincount(self.train.y, minlength=num_classes).tolist()
        if num_classes > 20:
            each = f"training examples a class: {min(counts):,} to {max(counts):,}"
        else:
            pairs = zip(self.classes, counts, strict=True)
            each = "training examples: " + ", ".join(f"{name}: {n:,}" for name, n in pairs)
        lines = [f"{self.name}: {what}, {num_classes} classes{lazy}", sizes, each]
        columns = list(map(str, self.scaling.encoding or ()))
        more = [f"and {len(columns) - SHOWN:,} more columns"] * (len(columns) > SHOWN)
        return "\n  ".join([*lines, *self.notes, *columns[:SHOWN], *more])


def _by(shape: Sequence[int]) -> str:
    return " x ".join(str(size) for size in shape)


def split_indices(
    y: npt.ArrayLike | Tensor,
    classes: Sequence[str] | None = None,
    *,
    seed: int,
    counts: Sequence[int] | None = None,
    given: Collection[str] = (),
) -> list[Indices]:
    """Divide examples into train, validation, calibration and test, classes in proportion.

    By default the last three get a tenth, a tenth and a fifth, but not more than `LARGEST_COUNTS`
    and an example of every class at least.

    Args:
        y: Class indices, shape (N,).
        classes: Names of the classes for messages.
        seed: The same seed gives the same parts on any machine.
        counts: Four sizes that sum to N, instead of the usual shares; kept exactly.
        given: Names of parts that come from elsewhere and stay empty here; what they would have
            got is left in the training part.

    Returns:
        Four arrays of indices in random order, disjoint and together all of them. Every class is
        in every part that is not empty.

    Raises:
        InputError: If a class has too few examples, or the counts do not fit.
    """
    y = np.asarray(y).astype(np.int64)
    if y.ndim != 1 or len(y) == 0:
        refuse("y", "be class indices of shape (N,) with N > 0", y.shape)
    present, y = np.unique(y, return_inverse=True)
    if counts is None:
        rest = [
            0 if name in given else max(round(min(share * len(y), most)), len(present))
            for (name, share), most in zip(SHARES.items(), LARGEST_COUNTS.values(), strict=True)
        ]
        counts = [len(y) - sum(rest), *rest]
    elif len(counts) != 4 or min(counts) < 0 or counts[0] == 0 or sum(counts) != len(y):
        expected = f"be four that sum to the {len(y)} examples, the first above 0"
        refuse("counts", expected, list(counts))
    each, needed = np.bincount(y), 1 + sum(size > 0 for size in counts[1:])
    if each.min() < needed:
        rarest = present[each.argmin()]
        expected = f"have at least {needed} examples of every class, one for each part"
        got = f"{each.min()} of class '{rarest if classes is None else classes[rarest]}'"
        refuse("y", expected, got, "add examples or leave the class out")
    for name, size in zip(PART_NAMES, counts, strict=True):
        if size < len(present) and (size > 0 or name == "train"):
            expected = f"give the {name} part at least {len(present)} examples, one for each class"
            refuse("counts", expected, size)
    rng = np.random.default_rng(derive_seed(seed, "split"))
    part = _spread(y, counts, rng)
    order = rng.permutation(len(y))
    return [order[part[order] == p] for p in range(4)]


def _spread(y: Indices, sizes: Sequence[int], rng: np.random.Generator) -> Indices:
    """Give each example a part so that classes are in proportion and none is missing.

    Examples are ordered by their (random) rank within their class, relative to its size. Any
    stretch of that order then holds each class in proportion, give or take one example; rare
    classes may miss a part, and are swapped in.
    """
    rank = np.empty(len(y))
    for c in range(int(y.max()) + 1):
        members = np.flatnonzero(y == c)
        rank[members] = (rng.permutation(len(members)) + rng.random()) / len(members)
    part = np.empty(len(y), dtype=np.int64)
    part[np.argsort(rank, kind="stable")] = np.repeat(np.arange(4), sizes)

    held = np.zeros((int(y.max()) + 1, 4), dtype=np.int64)
    np.add.at(held, (y, part), 1)
    missing = [(c, p) for c, p in np.argwhere(held == 0).tolist() if sizes[p] > 0]
    for c, p in missing:
        giver, spare = int(held[c].argmax()), int(held[:, p].argmax())
        incoming = np.flatnonzero((y == c) & (part == giver))[0]
        outgoing = np.flatnonzero((y == spare) & (part == p))[0]
        part[incoming], part[outgoing] = p, giver
        for row, column, change in ((c, p, 1), (c, giver, -1), (spare, p, -1), (spare, giver, 1)):
            held[row, column] += change
    return part


def choose_rows(num: int, limit: int, *, seed: int, name: str) -> Tensor:
    """Indices of at most `limit` of `num` rows, at random; all of them in order if they fit.

    Args:
        num: Rows there are.
        limit: Rows wanted.
        seed: Decides which.
        name: Separates draws of one seed.

    Returns:
        Distinct indices, shape (min(num, limit),).
    """
    if num <= limit:
        return torch.arange(num)
    return torch.randperm(num, generator=named_generator(seed, "rows", name))[:limit]


def draw_subset(
    part: DataPart | LazyPart,
    limit: int,
    *,
    seed: int,
    name: str,
    max_entries: int = 64_000_000,
) -> tuple[Tensor, Tensor]:
    """Draw at most `limit` examples of a part, at random. Of data on disk only those are read.

    Args:
        part: Part of a data set, in memory or on disk, not empty.
        limit: Examples wanted; a smaller part is taken whole and in order.
        seed: Decides which.
        name: Separates draws of one seed.
        max_entries: Numbers that all inputs together may hold: bounds memory.

    Returns:
        Inputs (n, *shape) and class indices (n,).
    """
    affordable = min(limit, max(1, max_entries // part[0][0].numel()))
    return part[choose_rows(len(part), affordable, seed=seed, name=name)]
