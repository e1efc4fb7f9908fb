"""The `jem` command: runs a subcommand; a mistake of the user is one line and exit status 2."""

import os

# Threads that spin while they wait make two runs on one machine many times slower. Torch reads
# this when it is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import importlib
import io
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from jem.errors import JemError, TrainingDivergedError, TrainingInterrupted

COMMANDS = {
    "train": "train on a named data set or on your own data",
    "score": "classify inputs and reject those unlike the training data; writes a .csv file",
    "report": "measure a run: accuracy, calibration, OOD detection, samples, on one page",
    "compare": "compare runs on one page",
    "app": "try a model in the browser",
    "export": "write a model as an ONNX file, for programs without this package",
    "sample": "draw new inputs of the classes you name",
    "inpaint": "fill in the missing part of inputs",
    "recipes": "show the named recipes side by side",
    "data": "list the named data sets, or describe one",
}
"""Name -> what it does."""
MODULES = {"compare": "report", "recipes": "listings", "data": "listings"}
"""Modules of `jem.commands` that hold the function of a command, where it has another name."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; those of the process if None.

    Returns:
        Exit status: 0; 1 if training diverged; 2 if what was asked cannot be done; 130 if stopped.
    """
    argv = sys.argv[1:] if argv is None else argv
    _show_any_name()
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0 if argv else 2
    name, *rest = argv
    if name == "--version":
        from jem import __version__

        print(__version__)
        return 0
    if name not in COMMANDS:
        return _complain(f"unknown command {name!r}: expected one of {', '.join(COMMANDS)}")
    try:
        with _warnings_in_one_line():
            module = importlib.import_module(f"jem.commands.{MODULES.get(name, name)}")
            status: int = getattr(module, name)(rest)
        return status
    except TrainingInterrupted as stop:
        print(f"jem: {stop}", file=sys.stderr)
        return 130
    except TrainingDivergedError as error:
        print(f"jem: {error}", file=sys.stderr)
        return 1
    except JemError as error:
        return _complain(str(error))
    except OSError as error:
        return _complain(f"{error.filename or 'file system'}: {error.strerror or error}")
    except KeyboardInterrupt:
        return 130


def _show_any_name() -> None:
    """Escape letters of file and class names that the terminal cannot show."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Show a warning without the line of code that it comes from."""
    usual = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"jem: warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = usual


def _complain(message: str) -> int:
    print(f"jem: error: {message}", file=sys.stderr)
    return 2


def _overview() -> str:
    commands = "\n".join(f"  {name:9} {does}" for name, does in COMMANDS.items())
    return (
        "usage: jem COMMAND ...\n\n"
        "Train classifiers that also reject inputs unlike their data, and draw new inputs.\n\n"
        f"{commands}\n\n"
        "jem COMMAND --help shows what each takes."
    )


if __name__ == "__main__":
    sys.exit(main())
