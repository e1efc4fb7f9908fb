"""`jem sample`: draw inputs of the classes that the user names; and the files of a drawing."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import tyro
from torch import Tensor

from jem import __version__, generation
from jem.checks import check_integer, counted
from jem.commands.runs import Read, Run, check_out, note_if_as_given, open_run
from jem.data.columns import decode
from jem.data.scaling import Scaling
from jem.errors import InputError
from jem.generation.samples import sampler_of
from jem.plotting import Figure, inputs_figure, save_figure
from jem.progress import ProgressBar
from jem.runs.folder import write_atomically


@dataclass
class SampleFlags:
    """Draw new inputs of the classes you name; writes an image, and an .npz file with the arrays.

    The .npz file holds `x` in the units of the training data, `labels`, `seed`, and `metadata`,
    which says how they were made. Rows of a table are also written as a .csv file.
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Run folder."""
    labels: tuple[str, ...] = ()
    """Names of classes. Default: all."""
    count: int = 10
    """Samples of each class."""
    out: Path = Path("samples.png")
    """The image; the arrays go beside it (.npz), and so do rows of a table (.csv)."""
    force: bool = False
    """Overwrite files that are there."""
    seed: int = 0
    """Sample i of a class depends only on the seed and on i."""
    num_steps: int | None = None
    """Langevin steps. If None: those of the recipe."""
    guidance: float = 1.0
    """Strength s of the class, in E(x) - s log p(y|x). Below 1: more varied samples; above 1: more
    typical ones."""
    initial_noise: float | None = None
    """Noise of the first step, which falls to that of the recipe. 0.5 with 100 steps gives more
    varied images. If None: that of the recipe throughout."""
    metropolis: bool = False
    """Accept or refuse each step by the rule of Metropolis, for tables: after enough steps, exact
    samples of the density at the temperature of the recipe."""
    network: str | None = None
    """`module:factory` of your own network, if the run does not name it."""
    quiet: bool = False
    """Show no progress."""


def sample(argv: list[str]) -> int:
    """Draw samples and write picture and arrays."""
    args: SampleFlags = tyro.cli(SampleFlags, args=argv, prog="jem sample")
    check_integer("--count", args.count, 1)
    trained = open_run(args.run, args.network)
    endings = (".png", ".npz", ".csv") if len(trained.shape) == 1 else (".png", ".npz")
    files = drawing_files(args.out, endings, trained.config.data, force=args.force)
    usual, classes = sampler_of(trained.model).num_steps, list(trained.model.classes or ())
    note_if_as_given(trained)
    names = list(args.labels) or classes
    if unknown := [name for name in names if name not in classes]:
        raise InputError(
            f"unknown class {', '.join(unknown)}: this model knows {', '.join(classes)}"
        )
    of_rows = [name for name in names for _ in range(args.count)]
    labels = torch.tensor([classes.index(name) for name in of_rows])
    settings = ("seed", "guidance", "initial_noise", "metropolis")
    asked = {name: getattr(args, name) for name in settings}
    asked["num_steps"] = usual if args.num_steps is None else args.num_steps
    with ProgressBar("drawing", quiet=args.quiet) as bar:
        drawn = generation.sample(trained.model, labels, progress=bar.update, **asked)
    raw, bounds = trained.raw_units(drawn), trained.model.bounds("cpu")
    columns = trained.model.columns
    figure = inputs_figure(drawn, bounds, columns=args.count, row_names=names, names=columns)
    write_drawing(files, figure, trained, "sample", asked, x=raw.numpy(), labels=of_rows)
    if len(files) == 3:
        _write_table(files[2], trained.model.scaling, raw, of_rows)
    print(f"{counted(len(drawn), 'sample')}: {', '.join(map(str, files))}")
    return 0


def drawing_files(
    out: Path, endings: Sequence[str], *read: Read, force: bool = False
) -> list[Path]:
    """Name the files of a drawing after `--out`, given with or without an ending.

    Args:
        out: What the user named.
        endings: Those of the files: the picture, the arrays, and of rows the table.
        read: Files and folders that the command reads.
        force: Whether files that are there may be overwritten.

    Raises:
        InputError: If one cannot be written: see `check_out`.
    """
    stem = out.with_suffix("") if out.suffix in (".png", ".npz", ".csv") else out
    return [check_out(Path(f"{stem}{ending}"), *read, force=force) for ending in endings]


def write_drawing(
    files: Sequence[Path],
    figure: Figure,
    run: Run,
    command: str,
    settings: dict[str, Any],
    **arrays: Any,  # noqa: ANN401
) -> None:
    """Write picture and arrays, each whole or not at all.

    Args:
        files: The .png file, and the .npz file, which says how it was made.
        figure: The picture.
        run: The run that drew.
        command: Name of the command.
        settings: What the command was asked for: plain values, the seed among them. With the step
            of the sampler and the versions they are kept as JSON under `metadata`.
        arrays: What else the .npz file holds.
    """
    metadata = {
        "command": f"jem {command}",
        "run": str(run.path),
        **settings,
        "step_size": run.model.sampler.step.step_size,
        "noise_std": run.model.sampler.step.noise_std,
        "versions": {"jem": __version__, "torch": str(torch.__version__)},
    }
    picture, arrays_file, *_ = files
    content, about = io.BytesIO(), json.dumps(metadata)
    np.savez_compressed(content, metadata=about, **arrays, seed=settings["seed"])
    write_atomically(arrays_file, content.getvalue())
    save_figure(figure, picture)


def _write_table(file: Path, scaling: Scaling | None, x: Tensor, labels: Sequence[str]) -> None:
    """Write rows (N, D) in the user's units as a .csv file that `jem train` and `jem score` read.

    Text and dates go back to what they were; the classes are the last column, `label`.
    """
    numbers = x.double().numpy()
    if scaling is not None and scaling.encoding is not None:
        table = decode(scaling.encoding, numbers)
    else:
        names = scaling and scaling.columns
        table = pd.DataFrame(numbers, columns=names or [f"x{i}" for i in range(x.shape[1])])
    text = table.assign(label=labels).to_csv(index=False)
    write_atomically(file, text.encode(errors="surrogateescape"))
