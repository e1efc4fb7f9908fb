"""`jem inpaint`: fill in the missing part of inputs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from torch import Tensor

from jem import generation
from jem.checks import check_integer, counted, refuse
from jem.commands.runs import Run, note_if_as_given, open_run
from jem.commands.sample import drawing_files, write_drawing
from jem.data.files import open_array
from jem.data.images import is_image, load_image
from jem.errors import InputError
from jem.generation.restoration import usual_noise
from jem.generation.samples import sampler_of
from jem.plotting import Figure, inputs_figure
from jem.progress import ProgressBar

HALVES = ("lower", "upper", "left", "right")

LARGEST_COUNT = 10_000
"""Inputs completed in one go: all are held in memory."""

SHOWN = 20
"""Inputs in the picture."""


@dataclass
class InpaintFlags:
    """Fill in the missing part of inputs; the rest stays exactly as it is.

    The .npz file holds `x` in the units of the training data, (N, count, ...), `known`, `inputs`
    (names), `seed`, and `metadata`, which says how they were made. The image shows, for the first
    inputs, the original, the part that was kept, and the completions. `jem.inpaint` in Python also
    takes the class of each input, and the steps and the noise of the chains.
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Run folder."""
    inputs: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="INPUTS")]
    """An .npy, .npz (images or x) or .csv file in the units of the training data; an image, or a
    folder of images."""
    mask: str = "lower"
    """The part to fill in. For images: lower, upper, left or right half. Or a file: an image that
    is white in this part, or an array (.npy, or .npz with the key `mask`) that is not zero there,
    one for all inputs or one for each."""
    count: int = 1
    """Completions of each input."""
    out: Path = Path("completed.png")
    """The image; the arrays go beside it (.npz)."""
    force: bool = False
    """Overwrite files that are there."""
    seed: int = 0
    """The first completion of an input depends only on the seed, the input and its place; the
    others also on the number of inputs."""
    network: str | None = None
    """`module:factory` of your own network, if the run does not name it."""
    skip_damaged: bool = False
    """Leave out images of a folder that cannot be read, and say how many."""
    quiet: bool = False
    """Show no progress."""


def inpaint(argv: list[str]) -> int:
    """Complete inputs and write picture and arrays."""
    args: InpaintFlags = tyro.cli(InpaintFlags, args=argv, prog="jem inpaint")
    check_integer("--count", args.count, 1)
    trained = open_run(args.run, args.network)
    read = args.inputs, args.mask, trained.config.data
    files = drawing_files(args.out, (".png", ".npz"), *read, force=args.force)
    sampler = sampler_of(trained.model)
    note_if_as_given(trained)
    names, raw, x = _read(args, trained)
    known = ~read_mask(args.mask, len(x), trained.shape)
    copies = (args.count, *[1] * (x.ndim - 1))
    with ProgressBar("completing", quiet=args.quiet) as bar:
        drawn = generation.inpaint(
            trained.model,
            x.repeat(copies),
            known.repeat(copies),
            seed=args.seed,
            progress=bar.update,
        )
    completed, restored = (
        done.unflatten(0, (args.count, len(x))).transpose(0, 1)
        for done in (drawn, trained.raw_units(drawn))
    )
    # Scaling there and back rounds, but known values must come back exactly.
    restored = restored.where(~known[:, None], raw[:, None])
    settings = {name: getattr(args, name) for name in ("mask", "count", "seed")}
    settings |= {"inputs": str(args.inputs), "num_steps": sampler.num_steps}
    settings["initial_noise"] = usual_noise(sampler)
    arrays = {"x": restored.numpy(), "known": known.numpy(), "inputs": names}
    figure = _picture(trained, x, known, completed, names)
    write_drawing(files, figure, trained, "inpaint", settings, **arrays)
    where = f"{files[0]} and {files[1]}"
    if len(x) > SHOWN:
        where = f"the first {SHOWN} in {files[0]}, all in {files[1]}"
    print(f"{counted(len(x), 'input')} completed: {where}")
    return 0


def _read(args: InpaintFlags, run: Run) -> tuple[list[str], Tensor, Tensor]:
    """Names of the inputs, the raw inputs and those of the network, both (N, *shape)."""
    columns = (run.model.scaling and run.model.scaling.encoding) or ()
    if made := ", ".join(c.name for c in columns if c.width > 1 or c.form):
        refuse(str(run.path), "be of images or numbers", f"text, dates or gaps in {made}")
    stream, scaling = run.inputs(
        args.inputs, batch_size=LARGEST_COUNT, skip_damaged=args.skip_damaged
    )
    names, raw = next(stream.batches)
    if next(stream.batches, None) is not None:
        raise InputError(
            f"{args.inputs} holds more than the {LARGEST_COUNT:,} inputs that are completed in "
            "one go: divide it"
        )
    x = scaling(raw)
    # Bytes of pictures are written in the units of the training data.
    return list(names), run.raw_units(x) if stream.from_images else scaling.arranged(raw), x


def _picture(run: Run, x: Tensor, known: Tensor, completed: Tensor, names: list[str]) -> Figure:
    """The first inputs: as they came, what was kept, and their completions."""
    bounds = run.model.bounds("cpu")
    if x.ndim != 4:
        shown = completed[:SHOWN, 0]
        return inputs_figure(shown, bounds, names=run.model.columns, title="completed inputs")
    low, high = bounds or (x.min(), x.max())
    kept = x.where(known, (low + high) / 2)
    rows = torch.cat([x[:, None], kept[:, None], completed], dim=1)[:SHOWN]
    return inputs_figure(
        rows.flatten(0, 1),
        (low, high),
        columns=rows.shape[1],
        row_names=names[:SHOWN],
        title="input, kept, completed",
    )


def read_mask(text: str, count: int, shape: tuple[int, ...]) -> Tensor:
    """Places to fill in.

    Args:
        text: A half of images (see `HALVES`), or a file.
        count: Number of inputs N.
        shape: Shape of one input.

    Returns:
        Booleans, shape (N, *shape): True = draw.

    Raises:
        InputError: If it is neither, does not fit, or marks nothing.
    """
    path = Path(text).expanduser()
    if path.is_file():
        mask = _from_file(path)
    elif len(shape) == 3 and text in HALVES:
        mask = torch.zeros(shape[1:], dtype=torch.bool)
        axis = 1 if text in ("left", "right") else 0
        first, second = mask.tensor_split([mask.shape[axis] // 2], dim=axis)
        (first if text in ("upper", "left") else second).fill_(True)
    else:
        raise InputError(
            f"--mask {text}: expected {', '.join(HALVES)} (for images, not for inputs of "
            f"shape {shape}), or a file, but there is no file of that name"
        )
    if len(shape) == 3 and mask.shape == (count, *shape[1:]):  # one for each input
        mask = mask[:, None]
    try:
        mask = mask.expand(count, *shape)
    except RuntimeError as error:
        raise InputError(
            f"--mask {text}: expected an array that fits inputs of shape {(count, *shape)}, got "
            f"{tuple(mask.shape)}"
        ) from error
    if not bool(mask.any()):
        raise InputError(f"--mask {text} marks nothing to draw")
    return mask


def _from_file(path: Path) -> Tensor:
    if is_image(path):
        values = np.asarray(load_image(path, ground="black").convert("L")) >= 128
    else:
        values = open_array(path, ("mask", "missing"), "a mask")
    return torch.from_numpy(values != 0)
