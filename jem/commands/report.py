"""`jem report` and `jem compare`: pages that say what runs are worth, and the figures as JSON."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from torch import Tensor

from jem.checks import check_number
from jem.commands.runs import Run, check_out, open_run, run_config
from jem.data import NAMES, load
from jem.data.shifts import OOD_SETS, ROTATIONS, make_ood_set
from jem.data.splits import DataSplits
from jem.errors import InputError, RunFolderError
from jem.progress import ProgressBar
from jem.randomness import named_generator
from jem.report.card import write_card
from jem.report.measure import measure
from jem.report.page import (
    comparison_rows,
    read_report,
    render_comparison,
    write_pages,
)
from jem.report.subject import Subject, TrainingRun
from jem.runs.checkpoint import Checkpoints
from jem.runs.folder import RunFolder, write_atomically
from jem.training.monitor import read_metrics

NUM_MADE = 1000
"""Inputs of an OOD set that is made."""

MOST_LOADED = 2000
"""Inputs of an OOD set that is loaded: of a file of more some are chosen at random, of a named
data set those that come first."""


@dataclass
class ReportFlags:
    """Measure a run on its test part, and write report.html and report.json into it."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Run folder."""
    ood: tuple[str, ...] = ()
    """Further OOD sets: gaussian_noise, constant_images or rotations (made by jem), named data
    sets, or files and folders as `jem score` takes them. Labels are not needed."""
    label_column: str | None = None
    """Column of a .csv file of OOD inputs that is not an input. If None: that of the run."""
    acceptance_rate: float = 0.95
    """Share of inputs like the training data that the threshold is set to accept."""
    data: str | None = None
    """Where the training data are now. If None: where training found them."""
    data_root: str | None = None
    """Folder of downloaded data sets. If None: that of the run, or the variable JEM_DATA."""
    network: str | None = None
    """`module:factory` of your own network, if the run does not name it."""
    attack: bool = False
    """Also attack test inputs: what is left of the accuracy under small changes that are made to
    fool the classifier. It takes minutes."""
    likelihood: bool = False
    """Also measure what a test input costs in bits under the density, and whether that can be
    trusted. It takes minutes."""
    seed: int = 0
    """Seed of OOD sets, samples, attacks, chains and bootstrap replicates."""
    card: bool = False
    """Also write README.md into it, a model card in the format of the Hugging Face Hub. Without
    other flags, figures that are there already are not measured again."""
    quiet: bool = False
    """Show no progress."""


def report(argv: list[str]) -> int:
    """Measure a run, write its report, and print the answers."""
    args = tyro.cli(ReportFlags, args=argv, prog="jem report")
    if args.card and (args.run / "README.md").exists():
        raise InputError(f"{args.run / 'README.md'} is there already: it may be yours, so move it")
    alone = args == ReportFlags(args.run, card=True, quiet=args.quiet)
    print_report(_figures(args) if alone else make_report(args))
    print(f"report: {args.run / 'report.html'} and {args.run / 'report.json'}")
    if args.card:
        print(f"model card: {write_card(args.run)}")
    return 0


def make_report(args: ReportFlags) -> dict[str, Any]:
    """Measure a run and write both files.

    Args:
        args: The run, and how to measure it.

    Returns:
        The content of `report.json`.
    """
    if args.label_column is not None and not any(n.lower().endswith(".csv") for n in args.ood):
        raise InputError(f"--label-column {args.label_column} is for .csv files given to --ood")
    check_number("--acceptance-rate", args.acceptance_rate, "(0, 1)")
    subject = subject_of(args)
    title = f"Report on the run {args.run.name} ({subject.splits.name})"
    with ProgressBar("measuring", quiet=args.quiet) as bar:
        report = measure(
            subject,
            acceptance_rate=args.acceptance_rate,
            attack=args.attack,
            likelihood=args.likelihood,
            seed=args.seed,
            progress=lambda section: bar.stage(f"measuring {section}"),
        )
    return write_pages(report, args.run, subject.model.bounds("cpu"), title=title)


def subject_of(args: ReportFlags) -> Subject:
    """The model of a run, its data, and what is known of its training."""
    run = open_run(args.run, args.network)
    splits = run.splits(args.data, args.data_root, quiet=args.quiet)
    folder = args.run / "control"
    try:
        control = open_run(folder, args.network)
    except RunFolderError:
        control = None
    return Subject(
        run.model,
        splits,
        control=None if control is None else control.model,
        ood_sets=dict(_ood_set(name, args, run, splits) for name in args.ood),
        run=_training_run(run, splits, control),
    )


def _ood_set(name: str, args: ReportFlags, run: Run, own: DataSplits) -> tuple[str, Tensor]:
    """Name and inputs of an OOD set: made from the data, or read from a data set or a file."""
    made = (*OOD_SETS, ROTATIONS)
    if name in made:
        if own.kind != "image":
            raise InputError(f"--ood {name}: such sets are made for images, not for {own.name}")
        return name.replace("_", " "), make_ood_set(name, own, NUM_MADE, seed=args.seed)
    if name not in NAMES:
        if not Path(name).expanduser().exists():
            raise InputError(
                f"--ood {name}: expected a file or folder of inputs, a data set "
                f"({', '.join(NAMES)}) or a set made of the run's images ({', '.join(made)}), "
                "found none of that name"
            )
        return name, read_ood_inputs(Path(name), run, args.label_column, args.seed)
    splits = load(name, root=args.data_root or run.config.data_root)
    if splits.input_shape != run.shape:
        raise InputError(
            f"--ood {name}: inputs of shape {splits.input_shape} do not fit the run's {run.shape}"
        )
    parts = [part[:MOST_LOADED][0] for part in (splits.test, splits.calibration)]
    x = torch.cat(parts)[:MOST_LOADED]
    if splits.kind == "table":
        x = run.model.preprocess(splits.scaling.invert(x))
    return name, x


def read_ood_inputs(path: Path, run: Run, label_column: str | None, seed: int) -> Tensor:
    """Read inputs of a file or folder, at most `MOST_LOADED` of them, chosen at random.

    Args:
        path: A file or folder, as `jem score` takes it.
        run: The run.
        label_column: Column of a .csv file to leave out.
        seed: Decides which are chosen.

    Returns:
        Inputs in the network's units, shape (N, *shape).
    """
    path = path.expanduser()
    stream, scale = run.inputs(
        path,
        batch_size=256,
        label_column=label_column if path.suffix.lower() == ".csv" else None,
        skip_damaged=path.is_dir(),
    )
    generator = named_generator(seed, "foreign inputs")
    x, keys = torch.empty(0, *run.shape), torch.empty(0)
    for _, raw in stream.batches:
        x = torch.cat([x, scale(raw).cpu()])
        keys = torch.cat([keys, torch.rand(len(raw), generator=generator)])
        kept = keys.argsort()[:MOST_LOADED]  # the lowest keys of all: each input as likely
        x, keys = x[kept], keys[kept]
    return x


def _training_run(run: Run, splits: DataSplits, control: Run | None) -> TrainingRun:
    """What was trained, on what, how, and how to do it again."""
    config, state = run.config.values, _state_of(run)
    progress, chains = state["progress"], state["chains"] or {}
    network = config.get("network")
    named = network.get("name") if isinstance(network, dict) else network
    parameters = sum(p.numel() for p in run.model.parameters())
    with_network = f"with the network {named or 'of its owner'} ({parameters:,} parameters)"
    as_given = config.get("as_given") or ("" if progress["iteration"] else "0 updates were made")
    about = f"{splits.name} in {len(splits.classes)} classes"
    sentence = f"A classifier as given {with_network}, for {about}: {as_given}."
    if not as_given:
        kind = "hybrid" if run.config.recipe.trains_density else "plain"
        sentence = (
            f"A {kind} classifier {with_network}, trained on {len(splits.train):,} inputs of "
            f"{about}: {progress['iteration']:,} updates in {progress['seconds']:.0f} seconds, "
            f"seed {run.config.seed}."
        )
    again = ["jem", "train", "--config", str(run.path / "config.json"), "--out", "runs/again"]
    return TrainingRun(
        sentence=sentence,
        as_given=as_given,
        iterations=progress["iteration"],
        seconds=progress["seconds"],
        control_seconds=None if control is None else _state_of(control)["progress"]["seconds"],
        command=shlex.join(again),
        control_command="" if as_given else shlex.join([*again, "--control"]),
        config=config,
        chains=chains.get("chains"),
        records=read_metrics(RunFolder(run.path).metrics),
    )


def _state_of(run: Run) -> dict[str, Any]:
    """The newest whole checkpoint."""
    return Checkpoints(RunFolder(run.path).checkpoints).load_latest()[1]


def print_report(figures: dict[str, Any]) -> None:
    """Print the tables that are on the page too.

    Args:
        figures: The content of a `report.json`.
    """
    table = Table("question", "answer", "because", title="the run in one minute")
    table.show_lines = True
    for verdict in figures["verdicts"]:
        table.add_row(*(escape(verdict[key]) for key in ("question", "answer", "because")))
    Console().print(table)
    compared = any("control" in row for row in figures["summary"])
    columns = {"model": "model", **({"control": "plain classifier"} if compared else {})}
    title = f"test part, n = {figures['ood']['num_test']}, 95 % intervals over test inputs"
    table = Table(
        "figure", *(Column(name, no_wrap=True) for name in columns.values()), title=title
    )
    for row in figures["summary"]:
        table.add_row(escape(row["name"]), *(_shown(row.get(key)) for key in columns))
    table.caption = "lower is better for NLL, ECE, Frechet distance and time, higher for the rest"
    Console().print(table)


def _shown(estimate: dict[str, Any] | None) -> str:
    """A figure with its interval, as text for a table."""
    if not estimate or estimate["value"] is None:
        return "-"
    low, high = estimate["low"], estimate["high"]
    interval = "" if low is None else escape(f" [{low:.3f}, {high:.3f}]")
    return f"{estimate['value']:.3f}{interval}"


@dataclass
class CompareFlags:
    """Compare runs on one page. A run without a report is measured first."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders."""
    out: Path = Path("compare.html")
    """The page."""
    quiet: bool = False
    """Show no progress."""


def compare(argv: list[str]) -> int:
    """Print the table and write the page."""
    args = tyro.cli(CompareFlags, args=argv, prog="jem compare")
    if len(args.runs) < 2:
        raise InputError(f"expected at least two runs to compare, but got {len(args.runs)}")
    out = check_out(args.out)
    for path in args.runs:
        run_config(path)  # before any is measured
    reports = {str(path): _figures(ReportFlags(path, quiet=args.quiet)) for path in args.runs}
    table = Table(
        "figure", *map(escape, reports), title="test part, 95 % intervals over test inputs"
    )
    for name, _, cells in comparison_rows(reports):
        table.add_row(escape(name), *map(_shown, cells))
    Console().print(table)
    page = render_comparison(reports, title="Runs side by side")
    write_atomically(out, page.encode(errors="backslashreplace"))
    print(f"page: {out}")
    return 0


def _figures(args: ReportFlags) -> dict[str, Any]:
    """The report of a run; made if there is none, or if training has continued since."""
    file = args.run / "report.json"
    newest = Checkpoints(RunFolder(args.run).checkpoints).iterations()[-1:]
    figures = read_report(file) if file.exists() else {}
    if figures and newest in ([], [figures["run"].get("iterations")]):
        return figures
    return make_report(args)
