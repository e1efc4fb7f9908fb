"""`jem inpaint`: complete inputs of which a part is missing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from jem.commands.drawings import (
    Outputs,
    class_indices,
    made_by,
    moves_shown,
    raw_units,
)
from jem.commands.runs import doubt_density, inputs_of, load_model, read_config
from jem.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from jem.data.scaling import Scaling
    from jem.data.streams import InputStream
    from jem.generation.chains import Progress
    from jem.model import JEM

LARGEST_COUNT = 10_000
"""Inputs completed in one go: all are held in memory."""

SHOWN = 20
"""Inputs in the picture."""


@dataclass
class Inpaint:
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
    """Langevin moves; those of the recipe if left out."""
    guidance: float = 1.0
    """Strength s of the class in E(x) - s log p(y|x), where classes are named."""
    initial_noise: float | None = None
    """Noise of the first move, falling to that of the recipe; 0.5 if left out, or that of the
    recipe where chains begin at class Gaussians."""
    network: str | None = None
    """The network of a run on one of your own, `module:factory`, called with (shape, classes)."""
    skip_damaged: bool = False
    """Leave out images of a folder that cannot be read, and say how many."""
    quiet: bool = False
    """Show no progress."""


def run(argv: list[str]) -> int:
    """Complete inputs and write picture and arrays."""
    args: Inpaint = tyro.cli(Inpaint, args=argv, prog="jem inpaint")
    from jem.commands.masks import read_mask
    from jem.data.files import refuse_unfit
    from jem.generation.chains import chain_of

    if args.count < 1:
        raise InputError(f"--count must be at least 1, but got {args.count}")
    config = read_config(args.run)
    outputs = Outputs.at(args.out, args.inputs, args.mask, config.get("data"))
    model = load_model(args.run, args.network)
    chain_of(model)
    doubt_density(args.run)
    shape = model.input_shape or ()
    if args.inputs.exists():
        refuse_unfit(args.inputs, None, None, args.skip_damaged)
    stream = inputs_of(
        args.inputs, model, config, batch_size=LARGEST_COUNT, skip_damaged=args.skip_damaged
    )
    names, raw, x = _read(args, model, stream)
    known = ~read_mask(args.mask, len(x), shape)
    labels = _labels(args, model, len(x))
    completed = _complete(args, model, x, known, labels)
    restored = raw_units(model, completed.flatten(0, 1)).view_as(completed)
    # Scaling there and back rounds; what was kept is to be what came.
    restored = restored.where(~known[:, None], raw[:, None])
    outputs.write(
        _picture(model, x, known, completed, names),
        made_by("inpaint", args.run, model, **_settings(args, model)),
        x=restored.numpy(),
        known=known.numpy(),
        inputs=names,
        seed=args.seed,
    )
    where = f"{outputs.picture} and {outputs.arrays}"
    if len(x) > SHOWN:
        where = f"the first {SHOWN} in {outputs.picture}, all in {outputs.arrays}"
    print(f"{len(x)} inputs completed: {where}")
    return 0


def _settings(args: Inpaint, model: JEM) -> dict[str, object]:
    from jem.generation.restoration import usual_noise

    usual = usual_noise(model.sampler)
    return {
        "inputs": str(args.inputs),
        "mask": args.mask,
        "labels": list(args.labels),
        "count": args.count,
        "seed": args.seed,
        "num_steps": model.sampler.num_steps if args.num_steps is None else args.num_steps,
        "guidance": args.guidance,
        "initial_noise": usual if args.initial_noise is None else args.initial_noise,
    }


def _complete(
    args: Inpaint, model: JEM, x: Tensor, known: Tensor, labels: Tensor | None
) -> Tensor:
    """Completions in the network's units, (N, count, *shape), on the CPU."""
    import torch

    from jem.generation import inpaint
    from jem.randomness import derive_seed

    drawn = []
    with moves_shown("completing", args.quiet) as progress:
        for j in range(args.count):
            made = inpaint(
                model,
                x,
                known,
                labels=labels,
                seed=args.seed if j == 0 else derive_seed(args.seed, "completion", j),
                num_steps=args.num_steps,
                guidance=args.guidance,
                initial_noise=args.initial_noise,
                progress=_after(j, args.count, progress),
            )
            drawn.append(made)
    return torch.stack(drawn, dim=1)


def _after(before: int, count: int, progress: Progress) -> Progress:
    """Progress of one completion as that of all."""
    return lambda done, total: progress(before * total + done, count * total)


def _read(args: Inpaint, model: JEM, stream: InputStream) -> tuple[list[str], Tensor, Tensor]:
    """Names of the inputs, the inputs as they came and in the network's units, (N, *shape)."""
    import torch

    if stream.total is not None and stream.total > LARGEST_COUNT:
        raise InputError(
            f"{args.inputs} holds {stream.total:,} inputs, but at most {LARGEST_COUNT:,} are "
            "completed in one go: divide it"
        )
    batches = stream.batches
    names, raw = next(batches)
    if next(batches, None) is not None:
        raise InputError(
            f"{args.inputs} holds more than {LARGEST_COUNT:,} inputs, which is as many as are "
            "completed in one go: divide it"
        )
    scaling = _scaling(args, model, stream)
    x = scaling(raw)
    if stream.from_images:  # bytes: `x` is written in the units of the training data
        return list(names), raw_units(model, x), x
    if scaling.layout == "table":  # columns such as time stamps do not fit 32 bits
        return list(names), torch.from_numpy(raw.astype("float64")).view_as(x), x
    unscaled = replace(scaling, shift=torch.tensor(0.0), scale=torch.tensor(1.0))
    return list(names), unscaled(raw), x


def _scaling(args: Inpaint, model: JEM, stream: InputStream) -> Scaling:
    """What brings raw inputs to the network's units."""
    import torch

    from jem.data.scaling import Scaling

    shape = model.input_shape or ()
    if model.scaling is not None:
        # White is white, in whatever range the training data were stored.
        return Scaling.of_bytes(shape, "channels_last") if stream.from_images else model.scaling
    if stream.from_images:
        raise InputError(
            f"{args.run} keeps no scaling, so it takes no images: give an .npy file in the "
            "network's own units"
        )
    as_it_is = torch.tensor(0.0), torch.tensor(1.0)
    return Scaling(shape, *as_it_is, "table" if len(shape) == 1 else "channels_first")


def _labels(args: Inpaint, model: JEM, count: int) -> Tensor | None:
    if not args.labels:
        return None
    indices = class_indices(model, args.labels)
    if len(indices) not in (1, count):
        raise InputError(
            f"--labels: expected one class, or one for each of {count} inputs, got {len(indices)}"
        )
    return indices.expand(count)


def _picture(model: JEM, x: Tensor, known: Tensor, completed: Tensor, names: list[str]) -> Any:  # noqa: ANN401
    """The first inputs: as they came, what was kept, and their completions."""
    import torch

    from jem.plotting import inputs_figure

    bounds = model.bounds("cpu")
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
