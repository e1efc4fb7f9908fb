"""`jem sample`: draw inputs of the classes a person names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from jem.commands.drawings import (
    Outputs,
    class_indices,
    made_by,
    moves_shown,
    raw_units,
)
from jem.commands.runs import doubt_density, load_model, read_config
from jem.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from jem.model import JEM
    from jem.sampling.base_distributions import BaseDistribution


@dataclass
class Sample:
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
    seed: int = 0
    """Sample i of a class depends on the seed and its place alone."""
    init: Literal["fresh", "saved", "gaussian"] = "fresh"
    """Where chains begin: as the recipe says of samples, at chains that training left, or at a
    Gaussian a class fitted to the training data."""
    num_steps: int | None = None
    """Langevin steps; those of the recipe if left out, and 20 from saved chains."""
    guidance: float = 1.0
    """Strength s of the class in E(x) - s log p(y|x): below 1 more varied, above more typical."""
    initial_noise: float | None = None
    """Noise of the first step, falling to that of the recipe; 0.5 with 100 steps gives more varied
    images. That of the recipe throughout if left out."""
    step_decay: float = 1.0
    """Size of the last step over that of the first."""
    data: str | None = None
    """Where the data of the run are now, for --init gaussian, if they were moved."""
    data_root: Path | None = None
    """Folder of downloaded data sets, for the same."""
    network: str | None = None
    """The network of a run on one of your own, `module:factory`, called with (shape, classes)."""
    quiet: bool = False
    """Show no progress."""


def run(argv: list[str]) -> int:
    """Draw samples and write picture and arrays."""
    args: Sample = tyro.cli(Sample, args=argv, prog="jem sample")
    from jem.generation import sample
    from jem.generation.chains import chain_of
    from jem.plotting import inputs_figure

    if args.count < 1:
        raise InputError(f"--count must be at least 1, but got {args.count}")
    config = read_config(args.run)
    is_table = len(config.get("input_shape") or ()) == 1
    outputs = Outputs.at(args.out, args.data, config.get("data"), table=is_table)
    model = load_model(args.run, args.network)
    chain_of(model)
    doubt_density(args.run)
    names = list(args.labels) or list(model.classes or ())
    labels = class_indices(model, names).repeat_interleave(args.count)
    init = _init(args, model)
    with moves_shown("drawing", args.quiet) as progress:
        drawn = sample(
            model,
            labels,
            seed=args.seed,
            num_steps=args.num_steps,
            init=init,
            guidance=args.guidance,
            initial_noise=args.initial_noise,
            step_decay=args.step_decay,
            progress=progress,
        )
    raw, of_rows = raw_units(model, drawn), [name for name in names for _ in range(args.count)]
    outputs.write(
        inputs_figure(drawn, model.bounds("cpu"), columns=args.count, row_names=names),
        made_by("sample", args.run, model, **_settings(args, model)),
        x=raw.numpy(),
        labels=of_rows,
        seed=args.seed,
    )
    written = [outputs.picture, outputs.arrays]
    if raw.ndim == 2:
        columns = config.get("columns") or [f"x{i}" for i in range(raw.shape[1])]
        outputs.write_table(columns, raw, of_rows)
        written.append(outputs.table)
    print(f"{len(drawn)} samples: {', '.join(map(str, written))}")
    return 0


def _settings(args: Sample, model: JEM) -> dict[str, object]:
    from jem.generation.samples import SAVED_STEPS

    usual = SAVED_STEPS if args.init == "saved" else model.sampler.num_steps
    return {
        "seed": args.seed,
        "init": args.init,
        "num_steps": usual if args.num_steps is None else args.num_steps,
        "guidance": args.guidance,
        "initial_noise": args.initial_noise,
        "step_decay": args.step_decay,
    }


def _init(args: Sample, model: JEM) -> BaseDistribution | Tensor | None:
    if args.init == "saved":
        return saved_chains(args.run)
    return _gaussian(args, model) if args.init == "gaussian" else None


def saved_chains(run: Path) -> Tensor:
    """Chains in the newest whole checkpoint of a run.

    Raises:
        InputError: If the run was trained without chains.
    """
    from jem.runs.checkpoint import Checkpoints
    from jem.runs.folder import RunFolder

    _, state = Checkpoints(RunFolder(run).checkpoints).load_latest()
    if not state["chains"]:
        raise InputError(f"{run} has no saved chains: it was trained without a generative recipe")
    chains: Tensor = state["chains"]["chains"]
    return chains


def _gaussian(args: Sample, model: JEM) -> BaseDistribution:
    """A Gaussian a class, fitted to the training part of the run's data."""
    from jem.commands.runs import splits_of
    from jem.sampling.base_distributions import GaussianBase
    from jem.training.setup import examples_of

    splits = splits_of(
        args.run, read_config(args.run), args.data, args.data_root, quiet=args.quiet
    )
    if (splits.input_shape, splits.classes) != (model.input_shape, model.classes):
        raise InputError(
            f"{splits.name} is not what the run was trained on: its shape or classes differ; "
            "name the data of the run with --data"
        )
    x, y = examples_of(splits.train)
    return GaussianBase.fit(x, y, len(splits.classes), bounds=model.bounds("cpu"))
