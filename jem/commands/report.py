"""`jem report`: one page that says what a run is worth, and the same figures as JSON."""

from __future__ import annotations

import platform
import shlex
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jem.commands.runs import inputs_of, load_model, read_config, splits_of
from jem.errors import InputError, RunFolderError

if TYPE_CHECKING:
    from torch import Tensor

    from jem.data.splits import DataSplits
    from jem.model import JEM
    from jem.report.subject import Subject


NUM_MADE = 1000
"""Inputs of a foreign set that is made."""

MOST_FOREIGN = 2000
"""Inputs of a foreign set that is loaded: of a file of more some are chosen at random, of a named
data set those that come first."""


@dataclass
class Report:
    """Measure a run on its test part, and write report.html and report.json into it."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    ood: tuple[str, ...] = ()
    """More foreign sets: gaussian_noise, constant_images or rotations, which are made; names of
    data sets; or files and folders as `jem score` takes them, in the units of the training data,
    labels or not."""
    label_column: str | None = None
    """Column of a .csv file of foreign inputs to leave out; that of the run if left out."""
    acceptance_rate: float = 0.95
    """Share of in-distribution inputs that the threshold is to accept."""
    data: str | None = None
    """Where the data of the run are now; where training found them if left out."""
    data_root: Path | None = None
    """Folder of downloaded data sets; that of the run, or JEM_DATA, if left out."""
    network: str | None = None
    """The network of a run on one of your own, `module:factory`, called with (shape, classes)."""
    seed: int = 0
    """Decides foreign sets, samples and bootstrap replicates."""
    quiet: bool = False
    """Show no progress."""


def run(argv: list[str]) -> int:
    """Measure a run, write its report, and print the answers."""
    args = tyro.cli(Report, args=argv, prog="jem report")
    figures = make_report(args)
    print_answers(figures)
    print(f"report: {args.run / 'report.html'} and {args.run / 'report.json'}")
    return 0


def make_report(args: Report) -> dict[str, Any]:
    """Measure a run and write both files.

    Args:
        args: The run, and how to measure it.

    Returns:
        The content of `report.json`.
    """
    if args.label_column is not None and not any(n.lower().endswith(".csv") for n in args.ood):
        raise InputError(f"--label-column {args.label_column} is for .csv files given to --ood")
    if not 0 < args.acceptance_rate < 1:
        raise InputError(f"--acceptance-rate must lie in (0, 1), but got {args.acceptance_rate:g}")
    from jem.report.write import SectionDisplay, write_report_on

    subject = _subject(args)
    title = f"{subject.splits.name}: what the run {args.run.name} is worth"
    with SectionDisplay(enabled=not args.quiet) as tell:
        return write_report_on(
            subject,
            args.run,
            title=title,
            acceptance_rate=args.acceptance_rate,
            seed=args.seed,
            progress=tell,
        )


def _subject(args: Report) -> Subject:
    from jem.report.subject import Subject
    from jem.runs.checkpoint import Checkpoints
    from jem.runs.folder import RunFolder
    from jem.training.log import read_metrics

    folder, config = RunFolder(args.run), read_config(args.run)
    model = load_model(args.run, args.network)
    splits = splits_of(args.run, config, args.data, args.data_root, quiet=args.quiet)
    if tuple(splits.input_shape) != model.input_shape or splits.classes != model.classes:
        raise InputError(
            f"the data {splits.name} do not fit the run: it was trained on inputs of shape "
            f"{model.input_shape} of {len(model.classes or ())} classes"
        )
    _, state = Checkpoints(folder.checkpoints).load_latest()
    chains = state["chains"] or {}
    return Subject(
        model,
        splits,
        control=_control(args.run / "control", args.network),
        chains=chains.get("chains"),
        chain_labels=chains.get("labels"),
        ood_sets=dict(_foreign(name, args, config, model, splits) for name in args.ood),
        run=_facts(args.run, config, model, splits, state["progress"]),
        records=read_metrics(folder.metrics),
    )


def _control(folder: Path, network: str | None) -> JEM | None:
    try:
        return load_model(folder, network)
    except RunFolderError:
        return None


def _foreign(
    name: str, args: Report, config: dict[str, Any], model: JEM, own: DataSplits
) -> tuple[str, Tensor]:
    """Name and inputs of a foreign set: made for the data, or loaded."""
    from jem.data import NAMES
    from jem.data.ood_sets import OOD_SETS, ROTATIONS, make_ood_set

    if name in (*OOD_SETS, ROTATIONS):
        if own.kind != "image":
            raise InputError(f"--ood {name}: such sets are made for images, not for {own.name}")
        return name.replace("_", " "), make_ood_set(name, own, NUM_MADE, seed=args.seed)
    if name not in NAMES:
        if not Path(name).expanduser().exists():
            raise InputError(
                f"--ood {name}: expected a file or folder of inputs, a data set "
                f"({', '.join(NAMES)}) or a set made of the run's images "
                f"({', '.join((*OOD_SETS, ROTATIONS))}), found none of that name"
            )
        return name, _read(Path(name), args, config, model)
    return name, _named(name, args.data_root or config.get("data_root"), model)


def _read(path: Path, args: Report, config: dict[str, Any], model: JEM) -> Tensor:
    """Inputs of a file or folder in the network's units: at most `MOST_FOREIGN`, at random."""
    import torch

    from jem.data.scaling import Scaling
    from jem.randomness import named_generator

    shape = model.input_shape or ()
    stream = inputs_of(
        path,
        model,
        config,
        batch_size=256,
        label_column=args.label_column,
        skip_damaged=True,
    )
    # White is white, in whatever range the training data were stored.
    scale = Scaling.of_bytes(shape, "channels_last") if stream.from_images else model.preprocess
    generator = named_generator(args.seed, "foreign inputs")
    x, keys = torch.empty(0, *shape), torch.empty(0)
    for _, raw in stream.batches:
        x = torch.cat([x, scale(raw).cpu()])
        keys = torch.cat([keys, torch.rand(len(raw), generator=generator)])
        kept = keys.argsort()[:MOST_FOREIGN]  # the lowest keys of all: each input as likely
        x, keys = x[kept], keys[kept]
    return x


def _named(name: str, root: Path | None, model: JEM) -> Tensor:
    """Inputs of a data set, as raw data for the model's own scaling."""
    import torch

    from jem.data import load

    splits = load(name, root=root)
    if splits.input_shape != model.input_shape:
        raise InputError(
            f"--ood {name}: inputs of shape {splits.input_shape} do not fit the run's "
            f"{model.input_shape}"
        )
    parts = [part[:MOST_FOREIGN][0] for part in (splits.test, splits.calibration)]
    x = torch.cat(parts)[:MOST_FOREIGN]
    return x if splits.kind == "image" else model.preprocess(splits.scaling.invert(x))


def _facts(
    run: Path, config: dict[str, Any], model: JEM, splits: DataSplits, progress: dict[str, Any]
) -> dict[str, Any]:
    """What was trained, on what, how, and how to do it again."""
    recipe, network = config["recipe"], config.get("network")
    named = network.get("name") if isinstance(network, dict) else network
    parameters = sum(p.numel() for p in model.parameters())
    kind = "plain classifier" if recipe["objective"] == "none" else "hybrid classifier"
    network_words = f"the network {named or 'of its owner'} ({parameters:,} parameters)"
    as_given = config.get("as_given") or ("" if progress["iteration"] else "0 updates were made")
    if not as_given:
        sentence = (
            f"A {kind} with {network_words}, trained on "
            f"{len(splits.train):,} inputs of {splits.name} in {len(splits.classes)} classes: "
            f"{progress['iteration']:,} updates in {progress['seconds']:.0f} seconds, seed "
            f"{config['seed']}."
        )
    else:
        sentence = (
            f"A classifier as given with {network_words}, for {splits.name} in "
            f"{len(splits.classes)} classes, seed {config['seed']}: {as_given}."
        )
    again = ["jem", "train", "--config", str(run / "config.json"), "--out", "runs/again"]
    return {
        "sentence": sentence,
        "made": date.today().isoformat(),
        "version": config["versions"]["jem"],
        "machine": platform.machine(),
        "parameters": parameters,
        "iterations": progress["iteration"],
        "as_given": as_given,
        "seconds": progress["seconds"],
        "recoveries": progress["recoveries"],
        "command": shlex.join(again),
        "control_command": None if as_given else shlex.join([*again, "--control"]),
        "config": config,
    }


def print_answers(figures: dict[str, Any]) -> None:
    """Print the verdicts of a report as a table."""
    table = Table(title="the run in one minute", show_lines=True)
    for column in ("question", "answer", "because"):
        table.add_column(column)
    for verdict in figures["verdicts"]:
        table.add_row(*(escape(verdict[key]) for key in ("question", "answer", "because")))
    Console().print(table)
