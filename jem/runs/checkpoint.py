"""Checkpoints: written whole or not at all, verified before use, never able to run code."""

import io
import math
import re
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from jem.errors import RunFolderError
from jem.runs.folder import write_atomically

FORMAT = 1
_NAME = re.compile(r"(\d+)\.pt")


def serialise(state: dict[str, Any]) -> bytes:
    """Turn tensors and plain values into the bytes of a checkpoint."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def deserialise(content: bytes | Path, kind: str = "checkpoint") -> dict[str, Any]:
    """Turn the bytes of a checkpoint back into tensors (on the CPU) and plain values.

    Args:
        content: What `serialise` returned, or the file that holds it.
        kind: What it should be, for an error.

    Raises:
        RunFolderError: If it is missing, truncated or damaged (every part carries a checksum),
            holds anything but tensors and plain values, or is of a format that this version does
            not read.
    """
    source = content if isinstance(content, Path) else "checkpoint"
    try:
        stream = io.BytesIO(content.read_bytes() if isinstance(content, Path) else content)
        with zipfile.ZipFile(stream) as archive:
            damaged = archive.testzip()
            # Outside the checksums: a part marked as a folder is one that torch does not read, and
            # its tensor would hold whatever was in memory.
            folders = [part.filename for part in archive.infolist() if part.external_attr & 0x10]
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged} does not match")
        if folders:
            raise ValueError(f"{folders[0]} is marked as a folder")
        stream.seek(0)
        state = torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive can fail in any way at all
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = reason.splitlines()[0][:200]
        raise RunFolderError(f"cannot read {source}: {reason}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise RunFolderError(f"{source} is not a {kind} of format {FORMAT}")
    return state


class Checkpoints:
    """The checkpoints of a run, in its folder, or in memory for a run without one.

    The newest at fixed iterations are kept, so that a damaged one can be replaced by the one
    before, and any newer one that was made in between because the run was stopped.

    Args:
        folder: Where they are; None keeps them in memory.
        every: Checkpoints at multiples of this count as made at fixed iterations.
        keep: How many of those are kept.
        writes: Whether this process writes to the folder: of several, the first alone does.
    """

    def __init__(
        self,
        folder: Path | None,
        every: int = 1,
        keep: int = 3,
        writes: bool = True,
    ) -> None:
        self.folder, self.every, self.keep = folder, every, keep
        self._writes = folder is None or writes
        self._memory: dict[int, bytes] = {}

    def iterations(self) -> list[int]:
        """Iterations that have a checkpoint, oldest first."""
        if self.folder is None:
            return sorted(self._memory)
        if not self.folder.is_dir():
            return []
        found = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def fixed_iterations(self, last: float = math.inf) -> list[int]:
        """Multiples of `every` up to an iteration that have a checkpoint, oldest first."""
        return [n for n in self.iterations() if n % self.every == 0 and n <= last]

    def path(self, iteration: int) -> Path | None:
        """File of the checkpoint of an iteration; None in memory."""
        return None if self.folder is None else self.folder / f"{iteration:08d}.pt"

    def save(self, iteration: int, state: dict[str, Any]) -> None:
        """Write the checkpoint of an iteration, then drop older ones that are no longer needed.

        Raises:
            RunFolderError: If it cannot be written; the ones before stay.
        """
        if not self._writes:
            return
        content = serialise({"format": FORMAT, **state})
        path = self.path(iteration)
        if path is None:
            self._memory[iteration] = content
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
        fixed = self.fixed_iterations(iteration)  # newer ones are damaged
        for other in self.iterations():
            if other not in fixed[-self.keep :] and other < iteration:
                self.drop(other)

    def drop(self, iteration: int) -> None:
        """Remove the checkpoint of an iteration."""
        path = self.path(iteration)
        if path is None:
            del self._memory[iteration]
        else:
            path.unlink(missing_ok=True)

    def roll_back(self, fixed: Sequence[int], last: int) -> int:
        """Choose where a diverged run goes back to, and drop what was saved after it.

        Args:
            fixed: `fixed_iterations` up to where it diverged, the same in every process. Newer
                ones are damaged, and the run was resumed before them.
            last: Iteration that it went back to the time before; -1 if it never did.

        Returns:
            The newest fixed iteration; the one before if going back to that one did not help.
        """
        *older, target = fixed
        if target == last and older:
            target = older[-1]
        for newer in self.iterations() if self._writes else ():
            if newer > target:
                self.drop(newer)
        return target

    def load(self, iteration: int) -> dict[str, Any]:
        """Read the checkpoint of an iteration.

        Raises:
            RunFolderError: If it is damaged.
        """
        return deserialise(self.path(iteration) or self._memory[iteration])

    def load_latest(self) -> tuple[int, dict[str, Any]]:
        """Read the newest checkpoint that is whole; damaged newer ones are named in a warning.

        Returns:
            Its iteration and its content.

        Raises:
            RunFolderError: If there is none.
        """
        problems = []
        for iteration in reversed(self.iterations()):
            try:
                state = self.load(iteration)
            except RunFolderError as error:
                problems.append(str(error))
                continue
            if problems:
                warnings.warn(
                    f"{'; '.join(problems)}; continuing from update {iteration} instead",
                    stacklevel=2,
                )
            return iteration, state
        where = "memory" if self.folder is None else str(self.folder)
        detail = "; ".join(problems) or "there is none"
        raise RunFolderError(f"no usable checkpoint in {where}: {detail}")
