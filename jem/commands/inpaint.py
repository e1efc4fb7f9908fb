"""`jem inpaint`: complete inputs of which a part is missing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from jem.checks import check_integer
from jem.commands.runs import Run, note_if_as_given, open_run, run_config
from jem.commands.sample import Drawing
from jem.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

HALVES = ("lower", "upper", "left", "right")
_BOX = re.compile(r"(\d+),(\d+),(\d+),(\d+)")

LARGEST_COUNT = 10_000
"""Inputs completed in one go: all are held in memory."""

SHOWN = 20
"""Inputs in the picture."""


@dataclass
class InpaintFlags:
    """Complete inputs of which a part is missing: the rest of each is kept exactly.

    The .npz file holds `x` in the units of the training data, (N, count, ...), `known`, `inputs`
    (names), `seed`, and `metadata`, which says how they were made. The picture shows the first
    inputs: as they came, what was kept, and their completions.
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Run folder."""
    inputs: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="INPUTS")]
    """An .npy, .npz (images or x) or .csv file in the units of the training data; an image, or a
    folder of images."""
    mask: str = "lower"
    """What to draw anew. Of images: lower, upper, left or right (a half), or a box x0,y0,x1,y1 in
    pixels, x1 and y1 not included. Or a file: an image that is white there, or an .npy or .npz
    file (key `mask`) that is not zero there, for all inputs or for each."""
    labels: tuple[str, ...] = ()
    """Class of the inputs: one name for all, or one an input; left open if left out."""
    count: int = 1
    """Completions an input."""
    out: Path = Path("completed.png")
    """Picture; the arrays go beside it with the ending .npz."""
    seed: int = 0
    """Completion j of input i depends on the seed, i, j and the input alone."""
    num_steps: int | None = None
    """Langevin steps; those of the recipe if left out."""
    guidance: float = 1.0
    """Strength s of the class in E(x) - s log p(y|x), where classes are named."""
    initial_noise: float | None = None
    """Noise of the first step, falling to that of the recipe; 0.5 if left out, or that of the
    recipe where chains begin at class Gaussians."""
    network: str | None = None
    """`module:factory` of your own network, if the run does not name it."""
    skip_damaged: bool = False
    """Leave out images of a folder that cannot be read, and say how many."""
    quiet: bool = False
    """Show no progress."""


def inpaint(argv: list[str]) -> int:
    """Complete inputs and write picture and arrays."""
    args: InpaintFlags = tyro.cli(InpaintFlags, args=argv, prog="jem inpaint")
    from jem.generation.restoration import usual_noise
    from jem.generation.samples import sampler_of

    check_integer("--count", args.count, 1)
    config = run_config(args.run)
    drawing = Drawing.at(args.out, args.inputs, args.mask, config.data)
    trained = open_run(args.run, config, args.network)
    sampler = sampler_of(trained.model)
    note_if_as_given(trained)
    names, raw, x = _read(args, trained)
    known = ~read_mask(args.mask, len(x), trained.shape)
    labels = None
    if args.labels:
        labels = trained.class_indices(args.labels)
        if len(labels) not in (1, len(x)):
            raise InputError(
                f"--labels must name one class, or one for each of {len(x)} inputs, got "
                f"{len(labels)}"
            )
        labels = labels.expand(len(x))
    completed = _complete(args, trained, x, known, labels)
    restored = trained.raw_units(completed.flatten(0, 1)).view_as(completed)
    # Scaling there and back rounds, but known values must come back exactly.
    restored = restored.where(~known[:, None], raw[:, None])
    asked = {name: getattr(args, name) for name in ("mask", "count", "seed", "guidance")}
    noise, steps = args.initial_noise, args.num_steps
    drawing.write(
        _picture(trained, x, known, completed, names),
        "inpaint",
        trained,
        {
            "inputs": str(args.inputs),
            "labels": list(args.labels),
            **asked,
            "num_steps": sampler.num_steps if steps is None else steps,
            "initial_noise": usual_noise(sampler) if noise is None else noise,
        },
        x=restored.numpy(),
        known=known.numpy(),
        inputs=names,
        seed=args.seed,
    )
    where = f"{drawing.picture} and {drawing.arrays}"
    if len(x) > SHOWN:
        where = f"the first {SHOWN} in {drawing.picture}, all in {drawing.arrays}"
    print(f"{len(x)} inputs completed: {where}")
    return 0


def _read(args: InpaintFlags, run: Run) -> tuple[list[str], Tensor, Tensor]:
    """Names of the inputs, the raw inputs and those of the network, both (N, *shape)."""
    import torch

    stream, scaling = run.inputs(
        args.inputs, batch_size=LARGEST_COUNT, skip_damaged=args.skip_damaged
    )
    many = stream.total is not None and stream.total > LARGEST_COUNT
    if not many:
        names, raw = next(stream.batches)
        many = next(stream.batches, None) is not None
    if many:
        raise InputError(
            f"{args.inputs} holds more than the {LARGEST_COUNT:,} inputs that are completed in "
            "one go: divide it"
        )
    x = scaling(raw)
    if stream.from_images:  # bytes: `x` is written in the units of the training data
        return list(names), run.raw_units(x), x
    if scaling.layout == "table":  # columns such as time stamps do not fit 32 bits
        return list(names), torch.from_numpy(raw.astype("float64")).view_as(x), x
    unscaled = replace(scaling, shift=torch.tensor(0.0), scale=torch.tensor(1.0))
    return list(names), unscaled(raw), x


def _complete(
    args: InpaintFlags, run: Run, x: Tensor, known: Tensor, labels: Tensor | None
) -> Tensor:
    """Completions in the network's units, (N, count, *shape), on the CPU."""
    import torch

    from jem import generation
    from jem.progress import ProgressBar
    from jem.randomness import derive_seed

    drawn = []
    with ProgressBar("completing", quiet=args.quiet) as bar:
        for j in range(args.count):

            def progress(done: int, total: int, j: int = j) -> None:
                bar.update(j * total + done, args.count * total)

            made = generation.inpaint(
                run.model,
                x,
                known,
                labels=labels,
                seed=args.seed if j == 0 else derive_seed(args.seed, "completion", j),
                num_steps=args.num_steps,
                guidance=args.guidance,
                initial_noise=args.initial_noise,
                progress=progress,
            )
            drawn.append(made)
    return torch.stack(drawn, dim=1)


def _picture(run: Run, x: Tensor, known: Tensor, completed: Tensor, names: list[str]) -> Figure:
    """The first inputs: as they came, what was kept, and their completions."""
    import torch

    from jem.plotting import inputs_figure

    bounds = run.model.bounds("cpu")
    if x.ndim != 4:
        return inputs_figure(completed[:SHOWN, 0], bounds, title="completed inputs")
    if bounds is None:
        bounds = x.min(), x.max()
    grey = ((bounds[0] + bounds[1]) / 2).expand_as(x)
    rows = torch.cat([x[:, None], x.where(known, grey)[:, None], completed], dim=1)[:SHOWN]
    return inputs_figure(
        rows.flatten(0, 1),
        bounds,
        columns=rows.shape[1],
        row_names=names[:SHOWN],
        title="input, kept, completed",
    )


def read_mask(text: str, count: int, shape: Sequence[int]) -> Tensor:
    """Places to draw anew.

    Args:
        text: A half of images (see `HALVES`), a box `x0,y0,x1,y1`, or a file.
        count: Number of inputs N.
        shape: Shape of one input.

    Returns:
        Booleans, shape (N, *shape): True = draw.

    Raises:
        InputError: If it is none of these, does not fit, or marks nothing.
    """
    mask = _box(text, shape)
    if mask is None:
        mask = _from_file(Path(text).expanduser(), count, tuple(shape))
    if not bool(mask.any()):
        raise InputError(f"--mask {text} marks nothing to draw")
    return mask.expand(count, *shape)


def _box(text: str, shape: Sequence[int]) -> Tensor | None:
    """The mask (*shape) of a half or a box; None where the text is neither."""
    import torch

    box = _BOX.fullmatch(text.replace(" ", ""))
    if box is None and text not in HALVES:
        return None
    if len(shape) != 3:
        raise InputError(
            f"--mask {text} is for images, but the inputs are rows of {shape[0]} numbers: "
            "give a mask file"
        )
    _, height, width = shape
    halves = {
        "lower": (0, height // 2, width, height),
        "upper": (0, 0, width, height // 2),
        "left": (0, 0, width // 2, height),
        "right": (width // 2, 0, width, height),
    }
    x0, y0, x1, y1 = halves[text] if box is None else map(int, box.groups())
    if not (x0 < x1 <= width and y0 < y1 <= height):
        raise InputError(
            f"--mask {text} must be x0,y0,x1,y1 with x0 < x1 <= {width} and y0 < y1 <= {height}"
        )
    mask = torch.zeros(tuple(shape), dtype=torch.bool)
    mask[:, y0:y1, x0:x1] = True
    return mask


def _from_file(path: Path, count: int, shape: tuple[int, ...]) -> Tensor:
    import numpy as np
    import torch

    from jem.data.files import open_array
    from jem.data.images import is_image, load_image

    if not path.is_file():
        raise InputError(
            f"--mask: expected {', '.join(HALVES)}, a box x0,y0,x1,y1 or a file, "
            f"but there is no file {path}"
        )
    if is_image(path):
        values = np.asarray(load_image(path, ground="black").convert("L")) >= 128
    else:
        values = open_array(path, ("mask", "missing"), "a mask")
    views = _views(count, shape)
    if values.shape not in views:
        expected = " or ".join(str(view) for view in views)
        raise InputError(f"--mask {path}: expected shape {expected}, got {values.shape}")
    return torch.from_numpy(values != 0).reshape(views[values.shape])


def _views(count: int, shape: tuple[int, ...]) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Shapes that a mask file may have, and how each is laid over inputs (N, *shape)."""
    views = {shape: (1, *shape), (count, *shape): (count, *shape)}
    if len(shape) == 3:  # one plane for all channels
        plane = shape[1:]
        if count == shape[0] > 1:  # (count, H, W) could mean a plane a channel or one an input
            del views[shape]
            views[plane] = (1, 1, *plane)
            return views
        views.setdefault(plane, (1, 1, *plane))
        views.setdefault((count, *plane), (count, 1, *plane))
    return views
