"""What commands write: checked before the work, so that nothing is lost, and written whole."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jem.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from jem.commands.runs import Run

Read = str | Path | None
"""A file or folder that a command reads, or None."""


def check_out(out: Path, *read: Read) -> Path:
    """Check that a file can be written, before the work.

    Args:
        out: The file that the user named.
        read: What the command reads, and must not overwrite.

    Returns:
        The file, with `~` expanded.

    Raises:
        InputError: If its folder is missing, or it is a folder, a device or one of `read`.
    """
    out = out.expanduser()
    if not out.parent.is_dir():
        raise InputError(f"--out: there is no folder {out.parent}")
    if out.exists() and not out.is_file():  # replacing a device would leave a file in its place
        kind = "a folder" if out.is_dir() else "no ordinary file"
        raise InputError(f"--out must name a file to write, got {out}, which is {kind}")
    for source in (Path(name).expanduser() for name in read if name is not None):
        if out.exists() and source.exists() and out.samefile(source):
            raise InputError(f"--out: {out} is read, and would be lost: choose another name")
    return out


@dataclass(frozen=True)
class Drawing:
    """Files of one drawing.

    Attributes:
        picture: The .png file.
        arrays: The .npz file beside it, which says how it was made.
        table: The .csv file beside it, written for rows of a table only.
    """

    picture: Path
    arrays: Path
    table: Path

    @classmethod
    def at(cls, out: Path, *read: Read, table: bool = False) -> Drawing:
        """Name the files after `--out`, given with or without an ending.

        Only the picture may replace a file that no drawing left: it alone is named by the user.

        Args:
            out: What the user named.
            read: Files and folders that the command reads.
            table: Whether the .csv file is written too.

        Raises:
            InputError: If one cannot be written, or would replace what is no drawing.
        """
        out = out.expanduser()
        stem = out.with_suffix("") if out.suffix in (".png", ".npz", ".csv") else out
        made = cls(*(stem.parent / f"{stem.name}{end}" for end in (".png", ".npz", ".csv")))
        ours = _is_drawing(made.arrays)
        inside = {Path(name).expanduser().resolve() for name in read if name is not None}
        asked = inside.isdisjoint(made.picture.resolve().parents)
        for path in (made.picture, made.arrays, *([made.table] if table else [])):
            check_out(path, *read)
            if path.exists() and not ours and not (asked and path == made.picture):
                raise InputError(
                    f"--out: {path} would be lost, and is no earlier drawing: choose another name"
                )
        return made

    def write(
        self,
        figure: Figure,
        command: str,
        run: Run,
        settings: dict[str, Any],
        **arrays: Any,  # noqa: ANN401
    ) -> None:
        """Write picture and arrays, each whole or not at all.

        Args:
            figure: The picture.
            command: Name of the command.
            run: The run that drew.
            settings: What the command was asked for: plain values. With the step of the sampler
                and the versions they are kept as JSON under `metadata`.
            arrays: What else the .npz file holds.
        """
        import numpy as np
        import torch

        from jem import __version__
        from jem.plotting import save_figure
        from jem.runs.files import write_atomically

        metadata = {
            "command": f"jem {command}",
            "run": str(run.path),
            **settings,
            "step_size": run.model.sampler.step.step_size,
            "noise_std": run.model.sampler.step.noise_std,
            "versions": {"jem": __version__, "torch": str(torch.__version__)},
        }
        content = io.BytesIO()
        np.savez_compressed(content, metadata=json.dumps(metadata), **arrays)
        write_atomically(self.arrays, content.getvalue())
        save_figure(figure, self.picture)

    def write_table(self, columns: Sequence[str], x: Tensor, labels: Sequence[str]) -> None:
        """Write rows as a .csv file that `jem train` and `jem score` read.

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
    try:
        with zipfile.ZipFile(arrays) as archive:
            return "metadata.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False
