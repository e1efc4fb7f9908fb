"""What can go wrong through no fault of the code: one root class, one clear line each.

The command line turns every `JemError` into a message and exit status 2 (1 where training
diverged, 130 where it was stopped); anything else is a bug and keeps its traceback.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class JemError(Exception):
    """Root of the errors that a user can cause and correct."""


class InputError(JemError, ValueError):
    """An argument, a file or a data set is not what was expected."""


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Put before the message of an `InputError` what it is about, such as a file.

    Args:
        where: What it is about.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


class RunFolderError(JemError):
    """A run folder or model file is missing, taken, locked, damaged or cannot be written."""


class TrainingDivergedError(JemError, RuntimeError):
    """Training diverged more often than the recipe allows; the message names the knobs to try."""


class TrainingInterrupted(JemError):  # noqa: N818
    """The user or the system asked the run to stop; its state was saved first."""
