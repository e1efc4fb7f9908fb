"""What the commands that draw share: output files that say how they were made, and a bar."""

from __future__ import annotations

import csv
import io
import json
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jem.commands.runs import check_out
from jem.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from jem.model import JEM


@dataclass(frozen=True)
class Outputs:
    """Files of one drawing: a picture, and the arrays beside it.

    Attributes:
        picture: The .png file.
        arrays: The .npz file.
    """

    picture: Path
    arrays: Path

    @property
    def table(self) -> Path:
        """The .csv file, which only rows of a table get."""
        return self.arrays.with_suffix(".csv")

    @classmethod
    def at(cls, out: Path, *read: str | Path | None, table: bool = False) -> Outputs:
        """Where a person's `--out`, named with or without its ending, puts them.

        Args:
            out: What the person named.
            read: Files and folders that the command reads, or what may be none.
            table: Whether the .csv file is written too.

        Raises:
            InputError: If they could not be written there, or what is there would be lost.
        """
        out = out.expanduser()
        if out.name in ("", "..") or not out.parent.is_dir():
            raise InputError(f"--out: there is no folder {out.parent}")
        known = out.suffix in (".png", ".npz", ".csv")
        stem = out.with_suffix("") if known else out
        made = cls(*(stem.with_name(stem.name + ending) for ending in (".png", ".npz")))
        ours = _is_drawing(made.arrays)
        for path in (made.picture, made.arrays, *([made.table] if table else [])):
            check_out(path, *read)
            asked = path == made.picture and not any(_holds(folder, path) for folder in read)
            if path.exists() and not ours and not asked:
                raise InputError(
                    f"--out: {path} would be lost, and no drawing was written there before: "
                    "choose another name"
                )
        return made

    def write(self, figure: Any, metadata: dict[str, Any], **arrays: Any) -> None:  # noqa: ANN401
        """Write both files, each whole or not at all.

        Args:
            figure: The picture, a matplotlib figure.
            metadata: How the arrays were made: plain values, kept as JSON under `metadata`.
            arrays: What else the .npz file holds.
        """
        import numpy as np

        from jem.plotting import save_figure
        from jem.runs.files import write_atomically

        content = io.BytesIO()
        np.savez_compressed(content, metadata=json.dumps(metadata), **arrays)
        write_atomically(self.arrays, content.getvalue())
        save_figure(figure, self.picture)

    def write_table(self, columns: Sequence[str], x: Tensor, labels: Sequence[str]) -> None:
        """Write rows as a .csv file that `jem train` and `jem score` take, whole or not at all.

        Args:
            columns: Names of the D columns.
            x: Rows, shape (N, D), in the units of the training data.
            labels: Class of each row, in a last column `label`.
        """
        from jem.runs.files import write_atomically

        content = io.StringIO()
        writer = csv.writer(content, lineterminator="\n")
        writer.writerow([*columns, "label"])
        writer.writerows([*row, name] for row, name in zip(x.tolist(), labels, strict=True))
        write_atomically(self.table, content.getvalue().encode())


def _is_drawing(arrays: Path) -> bool:
    """Whether an .npz file was written by `Outputs.write`."""
    try:
        with zipfile.ZipFile(arrays) as archive:
            return "metadata.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def _holds(folder: str | Path | None, path: Path) -> bool:
    return folder is not None and Path(folder).expanduser().resolve() in path.resolve().parents


def class_indices(model: JEM, names: Sequence[str]) -> Tensor:
    """Indices of classes by name.

    Raises:
        InputError: If the run does not know one of them.
    """
    import torch

    classes = model.classes or ()
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise InputError(
            f"unknown class {', '.join(unknown)}: this run knows {', '.join(classes)}"
        )
    return torch.tensor([classes.index(name) for name in names])


def raw_units(model: JEM, x: Tensor) -> Tensor:
    """Inputs in the units of the training data, on the CPU."""
    x = x.cpu()
    return x if model.scaling is None else model.scaling.invert(x)


def made_by(command: str, run: Path, model: JEM, **settings: Any) -> dict[str, Any]:  # noqa: ANN401
    """Metadata of a drawing: command, run, settings, the model's own moves, versions.

    Args:
        command: Name of the command.
        run: The run folder.
        model: Its model.
        settings: What the command was asked for.
    """
    import torch

    from jem import __version__

    return {
        "command": f"jem {command}",
        "run": str(run),
        **settings,
        "step_size": model.sampler.step.step_size,
        "noise_std": model.sampler.step.noise_std,
        "versions": {"jem": __version__, "torch": str(torch.__version__)},
    }


@contextmanager
def moves_shown(what: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal's stderr; yields what is metadata of moves done and moves in all."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    off = quiet or not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), disable=off) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
