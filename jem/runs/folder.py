"""A run folder: its files, who may write to it, and the trained model in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

from jem.errors import RunFolderError
from jem.runs.files import remove_unfinished, write_atomically

WRITTEN = (
    "metrics.jsonl", "samples.png", "model.pt", "report.html", "report.json",
)  # fmt: skip
"""Files that a run writes into its folder, beside its configuration and checkpoints."""


class RunFolder:
    """Paths and files of one run.

    Args:
        path: The folder; it need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.samples = self.path / "samples.png"
        self.model = self.path / "model.pt"
        self.checkpoints = self.path / "checkpoints"

    def holds_run(self) -> bool:
        """Whether a run was ever started here."""
        return self.config.exists() or self.checkpoints.exists()

    def create(self) -> None:
        """Make the folder.

        Raises:
            RunFolderError: If it cannot be made or written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise RunFolderError(
                f"cannot write to the run folder {self.path}: {error.strerror or error}"
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder against a second process; the system frees it if this one is killed.

        Raises:
            RunFolderError: If another process trains in it.
        """
        lock = filelock.FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise RunFolderError(
                f"another process is training in {self.path}; wait for it or choose another folder"
            ) from error
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def claimed(self, resume: bool) -> Iterator[None]:
        """Make the folder and hold it against other processes; a killed one frees it.

        Args:
            resume: Whether a run in it is to be gone on with, or must not be there.

        Raises:
            RunFolderError: If it holds a run although it must not, holds none although it should,
                holds files of others that a run would write over, cannot be written, or another
                process trains in it.
        """
        if self.holds_run() and not resume:
            raise RunFolderError(
                f"{self.path} already holds a run; choose another folder, or go on with it: "
                "--resume, or fit(..., resume=True)"
            )
        if resume and not self.holds_run():
            raise RunFolderError(f"{self.path} holds no run to resume")
        others = [name for name in WRITTEN if (self.path / name).exists()]
        if others and not resume:
            raise RunFolderError(
                f"{self.path} holds {', '.join(others)}, which no run there wrote and this one "
                "would write over: choose another folder"
            )
        self.create()
        with self.locked():
            remove_unfinished(self.path)
            remove_unfinished(self.checkpoints)
            yield

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
