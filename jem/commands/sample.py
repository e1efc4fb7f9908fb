"""`jem sample`: draw inputs of the classes a person names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from jem.errors import InputError


@dataclass
class Sample:
    """Draw inputs of the classes you name, as a picture and as an .npz file beside it."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    labels: tuple[str, ...] = ()
    """Class names; all classes if left out."""
    count: int = 10
    """Samples a class."""
    out: Path = Path("samples.png")
    """Picture; the arrays go beside it with the ending .npz."""
    seed: int = 0
    """Sample i of a class depends on the seed and its place alone."""
    num_steps: int | None = None
    """Langevin moves; those of the recipe if left out."""


def run(argv: list[str]) -> int:
    """Draw samples and write picture and arrays."""
    args: Sample = tyro.cli(Sample, args=argv, prog="jem sample")
    import numpy as np
    import torch

    from jem.generation import sample
    from jem.plotting import inputs_figure, save_figure
    from jem.training.run_folder import load

    if args.count < 1:
        raise InputError(f"--count must be at least 1, but got {args.count}")
    model = load(args.run)
    classes = model.classes or ()
    wanted = list(args.labels) or list(classes)
    unknown = [name for name in wanted if name not in classes]
    if unknown:
        raise InputError(
            f"unknown class {', '.join(unknown)}: this run knows {', '.join(classes)}"
        )
    if not args.out.parent.is_dir():
        raise InputError(f"--out: there is no folder {args.out.parent}")
    labels = torch.tensor([classes.index(name) for name in wanted]).repeat_interleave(args.count)
    drawn = sample(model, labels, seed=args.seed, num_steps=args.num_steps).cpu()
    raw = drawn if model.scaling is None else model.scaling.invert(drawn)
    picture = args.out if args.out.suffix == ".png" else args.out.with_name(args.out.name + ".png")
    arrays = picture.with_suffix(".npz")
    np.savez_compressed(
        arrays,
        x=raw.numpy(),
        labels=np.array([classes[int(k)] for k in labels]),
        seed=args.seed,
    )
    figure = inputs_figure(drawn, model.bounds("cpu"), columns=args.count, row_names=wanted)
    save_figure(figure, picture)
    print(f"{len(drawn)} samples: {picture} and {arrays}")
    return 0
