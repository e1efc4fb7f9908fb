"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from jem.errors import RunFolderError


@contextmanager
def replacing(path: Path, kind: str = "b", **how: Any) -> Iterator[IO[Any]]:  # noqa: ANN401
    """Open a file that takes the name of its target when it is complete, and else is removed.

    It lies beside the target, under a name of its own: two processes with one target do not write
    into each other's file, and the last to end has it.

    Args:
        path: The target; its folder must exist.
        kind: `b` for bytes, `t` for text.
        how: Further arguments of `Path.open`.

    Raises:
        OSError: If the disk is full or the folder cannot be written; the target is as it was.
    """
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open(f"x{kind}", **how) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes left of `replacing`; no other may be writing there."""
    for left in folder.glob(f"*.{8 * '[0-9a-f]'}.partial"):
        left.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file beside its target, flush it to disk and rename it over the target.

    Args:
        path: The target; its folder must exist.
        content: The whole content.

    Raises:
        RunFolderError: If the disk is full or the folder cannot be written; the target is as it
            was.
    """
    try:
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise RunFolderError(
            f"cannot write {path}: {error.strerror or error}; what was there before is untouched"
        ) from error
