"""`jem sample`: draw inputs of the classes that the user names; and the files of a drawing."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from jem.checks import check_integer
from jem.commands.runs import Read, Run, check_out, note_if_as_given, open_run, run_config

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from jem.data.scaling import Scaling


@dataclass
class SampleFlags:
    """Draw inputs of the classes you name, as a picture and as an .npz file beside it.

    The .npz file holds `x` in the units of the training data, `labels`, `seed`, and `metadata`,
    which says how they were made. Rows of a table are also written as a .csv file.
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Run folder."""
    labels: tuple[str, ...] = ()
    """Class names; all classes if left out."""
    count: int = 10
    """Samples a class."""
    out: Path = Path("samples.png")
    """Picture; the arrays go beside it with the ending .npz, rows of a table with .csv too."""
    force: bool = False
    """Overwrite files that are there."""
    seed: int = 0
    """Sample i of a class depends on the seed and on i alone."""
    num_steps: int | None = None
    """Langevin steps; those of the recipe if left out."""
    guidance: float = 1.0
    """Strength s of the class in E(x) - s log p(y|x): below 1 more varied, above more typical."""
    initial_noise: float | None = None
    """Noise of the first step, falling to that of the recipe; 0.5 with 100 steps gives more varied
    images. That of the recipe throughout if left out."""
    network: str | None = None
    """`module:factory` of your own network, if the run does not name it."""
    quiet: bool = False
    """Show no progress."""


def sample(argv: list[str]) -> int:
    """Draw samples and write picture and arrays."""
    args: SampleFlags = tyro.cli(SampleFlags, args=argv, prog="jem sample")
    from jem import generation
    from jem.generation.samples import sampler_of
    from jem.plotting import inputs_figure
    from jem.progress import ProgressBar

    check_integer("--count", args.count, 1)
    config = run_config(args.run)
    is_table = len(config.values.get("input_shape") or ()) == 1
    drawing = Drawing.at(args.out, config.data, table=is_table, force=args.force)
    trained = open_run(args.run, config, args.network)
    usual = sampler_of(trained.model).num_steps
    note_if_as_given(trained)
    names = list(args.labels) or list(trained.model.classes or ())
    labels = trained.class_indices(names).repeat_interleave(args.count)
    asked: dict[str, Any] = {
        "seed": args.seed,
        "num_steps": usual if args.num_steps is None else args.num_steps,
        "guidance": args.guidance,
        "initial_noise": args.initial_noise,
    }
    with ProgressBar("drawing", quiet=args.quiet) as bar:
        drawn = generation.sample(trained.model, labels, progress=bar.update, **asked)
    raw, of_rows = trained.raw_units(drawn), [n for n in names for _ in range(args.count)]
    bounds = trained.model.bounds("cpu")
    drawing.write(
        inputs_figure(drawn, bounds, columns=args.count, row_names=names),
        "sample",
        trained,
        asked,
        x=raw.numpy(),
        labels=of_rows,
        seed=args.seed,
    )
    written = [drawing.picture, drawing.arrays]
    if raw.ndim == 2:
        assert trained.model.scaling is not None, "rows of a table have one"
        drawing.write_table(trained.model.scaling, raw, of_rows)
        written.append(drawing.table)
    print(f"{len(drawn)} samples: {', '.join(map(str, written))}")
    return 0


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
    def at(cls, out: Path, *read: Read, table: bool = False, force: bool = False) -> Drawing:
        """Name the files after `--out`, given with or without an ending.

        Args:
            out: What the user named.
            read: Files and folders that the command reads.
            table: Whether the .csv file is written too.
            force: Whether files that are there may be overwritten.

        Raises:
            InputError: If one cannot be written: see `check_out`.
        """
        out = out.expanduser()
        stem = out.with_suffix("") if out.suffix in (".png", ".npz", ".csv") else out
        made = cls(*(stem.parent / f"{stem.name}{end}" for end in (".png", ".npz", ".csv")))
        for path in (made.picture, made.arrays, *([made.table] if table else [])):
            check_out(path, *read, force=force)
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
        from jem.runs.folder import write_atomically

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

    def write_table(self, scaling: Scaling, x: Tensor, labels: Sequence[str]) -> None:
        """Write rows as a .csv file that `jem train` and `jem score` read.

        Args:
            scaling: Of the training data: their columns, which text and dates go back to.
            x: Rows, shape (N, D), in the units of the training data.
            labels: Class of each row, in a last column `label`.
        """
        import pandas as pd

        from jem.data.columns import decode
        from jem.runs.folder import write_atomically

        if scaling.encoding is not None:
            table = decode(scaling.encoding, x.double().numpy())
        else:
            names = scaling.columns or [f"x{i}" for i in range(x.shape[1])]
            table = pd.DataFrame(x.double().numpy(), columns=list(names))
        text = table.assign(label=labels).to_csv(index=False)
        write_atomically(self.table, text.encode(errors="surrogateescape"))
