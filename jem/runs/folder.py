"""A run folder: its files, written whole or not at all, and who may write to it."""

import errno
import json
import os
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import filelock

from jem.errors import RunFolderError

NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What a file system answers that has no locks, such as NFS without their daemon."""

WRITTEN = (
    "metrics.jsonl", "samples.png", "model.pt", "best.pt", "report.html", "report.json",
)  # fmt: skip
"""Files that a run writes into its folder, beside its configuration and checkpoints."""


class RunFolder:
    """Paths and files of one run.

    Args:
        path: The folder; it need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.samples = self.path / "samples.png"
        self.model = self.path / "model.pt"
        self.best = self.path / "best.pt"
        self.checkpoints = self.path / "checkpoints"

    def holds_run(self) -> bool:
        """Whether a run was ever started here."""
        return self.config.exists() or self.checkpoints.exists()

    @contextmanager
    def claimed(self, resume: bool) -> Iterator[None]:
        """Make the folder and hold it against other processes; a killed one frees it.

        Where the file system has no locks, a warning says that nothing holds it.

        Args:
            resume: Whether a run in it is to be continued, or must not be there.

        Raises:
            RunFolderError: If it holds a run although it must not, holds none although it should,
                holds files of others that a run would write over, cannot be written, or another
                process trains in it.
        """
        if self.holds_run() and not resume:
            raise RunFolderError(
                f"{self.path} already holds a run; choose another folder, or continue it: "
                "--resume, or fit(..., resume=True)"
            )
        if resume and not self.holds_run():
            raise RunFolderError(f"{self.path} holds no run to resume")
        others = [name for name in WRITTEN if (self.path / name).exists()]
        if others and not resume:
            raise RunFolderError(
                f"{self.path} holds files that are not from a run and would be overwritten "
                f"({', '.join(others)}): choose another folder"
            )
        lock = filelock.FileLock(self.path / ".lock")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)  # the system frees it if this process is killed
        except filelock.Timeout as error:
            raise RunFolderError(
                f"another process is training in {self.path}; wait for it or choose another folder"
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise RunFolderError(
                    f"cannot write to the run folder {self.path}: {error.strerror or error}"
                ) from error
            warnings.warn(
                f"the file system of {self.path} has no locks: let only one process train there",
                stacklevel=3,
            )
        try:
            remove_unfinished(self.path)
            remove_unfinished(self.checkpoints)
            yield
        finally:
            lock.release()

    def write_config(self, config: dict[str, Any]) -> None:
        """Write `config.json`, whole or not at all."""
        write_atomically(self.config, (json.dumps(config, indent=2) + "\n").encode())

    def read_config(self) -> dict[str, Any]:
        """Read `config.json`.

        Raises:
            RunFolderError: If the folder holds no run, or the file is damaged.
        """
        try:
            config = json.loads(self.config.read_text())
        except FileNotFoundError as error:
            raise RunFolderError(
                f"{self.path} holds no run: there is no {self.config.name} in it"
            ) from error
        except (OSError, ValueError) as error:
            raise RunFolderError(f"cannot read {self.config}: {error}") from error
        if not isinstance(config, dict):
            raise RunFolderError(f"{self.config} must hold a JSON object")
        return config


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
        with replacing(path.expanduser()) as file:
            file.write(content)
    except OSError as error:
        raise RunFolderError(
            f"cannot write {path}: {error.strerror or error}; what was there before is untouched"
        ) from error
