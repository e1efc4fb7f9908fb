"""`jem train`: from data to a run folder, and the comparison with a plain classifier."""

import itertools
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from jem.checks import counted
from jem.commands.report import ReportFlags, make_report, print_report
from jem.commands.runs import (
    check_same_data,
    checksum,
    load_data,
    note,
    run_config,
    shipped_values,
)
from jem.commands.settings import RunConfig, TrainFlags, parse_train
from jem.data import NAMES
from jem.data.splits import DataSplits
from jem.errors import InputError
from jem.model import JEM
from jem.networks import NETWORKS, Towers
from jem.runs.folder import RunFolder
from jem.runs.model_file import save
from jem.serving.scorer import fit_scorer
from jem.training.fitting import model_for
from jem.training.probe import seconds_per_update
from jem.training.process import join
from jem.training.recipes import RECIPES
from jem.training.tensorboard import TensorBoardMonitor
from jem.training.trainer import Trainer
from jem.training.validation import why_useless

SHARED_WITH_CONTROL = (
    "epochs", "batch_size", "precision", "label_smoothing", "class_weight", "augment_shift",
    "augment_flip", "augment_noise", "log_every",
)  # fmt: skip
"""Recipe fields that the control takes from the hybrid: both see the same data equally often, and
compute alike."""

READ_WITH = ("validation", "test", "label_column", "image_size", "skip_damaged")
"""Settings that say how the data are read."""

USUAL_SIZE = 64
"""Pixels a side from which on a dry run says what smaller images would cost."""


def train(argv: list[str]) -> int:
    """Train, measure on the test part and print the comparison."""
    flags, config, changed = parse_train(argv)
    ranks = join()
    stem = Path(config.data or "").resolve().stem
    out = ranks.agree((flags.out or default_folder(Path("runs"), stem, flags.resume)).expanduser())
    if flags.resume:
        config = _as_started(out, config, changed)
    else:
        _refuse_among_data(config.data or "", out)
    if flags.control and config.recipe.epochs == 0:
        raise InputError(
            "--control compares with a plain classifier that was trained, but --epochs 0 trains "
            "nothing: leave out --control, or give more epochs"
        )
    splits = _load(flags, config, out, first=ranks.first)
    if flags.dry_run:
        _dry_run(flags, config, splits, out)
        return 0

    recipes = {out: config.recipe}
    if flags.control or (flags.resume and (out / "control").exists()):
        shared = {name: getattr(config.recipe, name) for name in SHARED_WITH_CONTROL}
        recipes[out / "control"] = replace(RECIPES["plain"], **shared)
    fitted: dict[Path, JEM] = {}
    for folder, recipe in recipes.items():
        fitted |= _fit(flags, replace(config, recipe=recipe), splits, folder)
    if not ranks.first:
        return 0  # of several processes, the first measures what all have trained
    _ship(fitted, splits, quiet=flags.quiet)
    if flags.report:
        report = ReportFlags(out, data_root=config.data_root, quiet=flags.quiet)
        print_report(make_report(report))
    print(f"run folder: {out}; to try it: jem app {out}")
    for name in ("best.pt", "samples.png", "report.html"):
        if (out / name).exists() and (flags.report or name != "report.html"):
            print(f"{name + ':':11} {out / name}")
    return _status(fitted, splits, out, own=_is_own(config))


def _is_own(config: RunConfig) -> bool:
    """Whether the network is the user's, whose outputs have an order of their own."""
    return config.network is not None and config.network.partition(":")[0] not in NETWORKS


def _status(fitted: dict[Path, JEM], splits: DataSplits, out: Path, *, own: bool) -> int:
    """Exit status of a run that came to its end: 1, and a line, if its classifier is useless."""
    folder = RunFolder(out)
    given = folder.read_config().get("as_given")
    if given and not own:
        return 0
    doubt = why_useless(fitted[folder.model], splits.validation)
    if doubt and given:
        doubt = doubt.rpartition("; ")[0] + (
            ": its outputs may stand for the classes in another order (--classes-from FILE), or "
            "it expects inputs in other units than [-1, 1]"
        )
    if doubt:
        print(f"jem: {doubt}", file=sys.stderr)
    return 1 if doubt and not given else 0


def default_folder(parent: Path, stem: str, resume: bool) -> Path:
    """The first free of NAME, NAME-2, NAME-3, ...; to resume, the last that holds a run.

    Args:
        parent: Where runs are.
        stem: NAME.
        resume: Whether a run is to be resumed.
    """
    last = parent / stem
    for number in itertools.count(1):
        folder = parent / (stem if number == 1 else f"{stem}-{number}")
        if not folder.exists():
            return last if resume else folder
        last = folder if RunFolder(folder).holds_run() else last
    raise AssertionError("unreachable: the count has no end")


def _as_started(out: Path, asked: RunConfig, changed: dict[str, Any]) -> RunConfig:
    """The settings of a run to resume: those of its folder; flags may say the same, no other."""
    started = run_config(out)
    if started.data is None:
        raise InputError(
            f"{out} does not say what data it was trained on: it was started in Python; continue "
            f"it there, with Trainer(..., run_dir={str(out)!r}).fit(..., resume=True)"
        )
    kept = started.settings()
    if other := [name for name, value in changed.items() if kept[name] != value]:
        raise InputError(
            f"--resume continues with the settings that {out} was started with; these differ: "
            f"{', '.join(other)}; leave them out, or start another run with --out"
        )
    return replace(started, data_root=asked.data_root or started.data_root)


def _refuse_among_data(data: str, out: Path) -> None:
    """Refuse a run folder in a folder of images, whose folders are its classes."""
    folder, place = Path(data).expanduser().resolve(), out.resolve()
    if data not in ("", *NAMES) and folder.is_dir() and folder in (place, *place.parents):
        raise InputError(
            f"the run folder {out} is inside the data folder {data}, and would be read as a "
            "class: choose another with --out"
        )


def _load(flags: TrainFlags, config: RunConfig, out: Path, *, first: bool) -> DataSplits:
    splits = load_data(
        config.data or "",
        quiet=flags.quiet or not first,
        root=config.data_root,
        download=flags.files.download,
        seed=config.seed,
        **{name: getattr(config, name) for name in READ_WITH},
    )
    order = config.values.get("classes") if flags.resume else _lines(flags.classes_from)
    splits = splits if order is None else splits.in_order(order)
    notes = list(splits.notes)
    if _is_own(config):
        notes.append(f"the outputs of {config.network} stand for {', '.join(splits.classes)}")
    for line in notes if first else ():
        note(line)
    if flags.resume:
        check_same_data(out, config, splits)
    if len(splits.classes) < 2 and config.recipe.head != "density":
        raise InputError(
            f"a classifier needs at least two classes, but {splits.name} has one; "
            "--head density trains a density alone"
        )
    return splits


def _lines(file: Path | None) -> list[str] | None:
    try:
        lines = None if file is None else file.expanduser().read_text("utf-8").splitlines()
        return lines and [line.strip() for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise InputError(f"--classes-from: cannot read {file}: {error}") from error


def _fit(
    flags: TrainFlags, config: RunConfig, splits: DataSplits, folder: Path
) -> dict[Path, JEM]:
    """Train; return the models to keep, by their files."""
    if folder.name == "control" and not flags.quiet:
        note("training the plain classifier, to compare with")
    model = model_for(config.network, splits, config.recipe, config.seed)
    encoding = splits.scaling.encoding
    columns = {"columns": [column.plain() for column in encoding]} if encoding else {}
    trainer = Trainer(
        model,
        config.recipe,
        run_dir=folder,
        seed=config.seed,
        device=flags.device,
        monitor=None if flags.log is None else TensorBoardMonitor(quiet=flags.quiet),
        progress=not flags.quiet,
        metadata=config.metadata() | columns | {"data_checksum": checksum(splits)},
    )
    if config.recipe.head is None and isinstance(model.network, Towers) and _is_own(config):
        note("a network beside yours learns the density (--head joint: one for both)")
    resume = flags.resume and RunFolder(folder).holds_run()
    if not flags.quiet and max(splits.input_shape[1:], default=0) > USUAL_SIZE:
        note("fitting what chains begin at, which takes seconds for large images")
    result = trainer.fit(splits.train, splits.validation, resume=resume)
    kept = {RunFolder(folder).model: model}
    return kept if result.refused is None else kept | {RunFolder(folder).best: result.refused}


def _ship(fitted: dict[Path, JEM], splits: DataSplits, *, quiet: bool) -> None:
    """Write each model into its file, with threshold and temperature."""
    if not quiet:
        note("fitting threshold and temperature")
    for file, model in fitted.items():
        scorer = fit_scorer(model, splits)
        save(
            model,
            file,
            detector=scorer.detector,
            temperature=scorer.temperature,
            metadata=shipped_values(run_config(file.parent)),
        )


def _dry_run(flags: TrainFlags, config: RunConfig, splits: DataSplits, out: Path) -> None:

    model = model_for(config.network, splits, config.recipe, config.seed)
    trainer = Trainer(model, config.recipe, seed=config.seed, device=flags.device)
    if not flags.quiet:
        note("preparing the run, and timing a few updates")
    seconds = seconds_per_update(trainer, splits.train)
    resolved = config.metadata() | {"seed": config.seed, "recipe": asdict(trainer.context.recipe)}
    print(json.dumps(resolved, indent=2))
    print(splits.describe())
    print(model.network)
    count = sum(p.numel() for p in model.parameters())
    total = trainer.total_iterations
    made = "" if out.exists() else " (not made)"
    print(f"parameters: {count:,}\ndevice:     {trainer.device}\nrun folder: {out}{made}")
    print(
        f"cost:       {counted(trainer.num_epochs, 'epoch')}, {counted(total, 'update')}, "
        f"{1000 * seconds:.1f} ms each on this machine: about {total * seconds:.0f} s"
    )
    later = {"samples": trainer.context.trains_density, "the report": flags.report}
    later["the plain classifier"] = flags.control
    if named := [name for name, wanted in later.items() if wanted]:
        print(f"            {' and '.join(named)} come after that, and take minutes")
    largest = max(splits.input_shape)
    if len(splits.input_shape) == 3 and largest > USUAL_SIZE and config.image_size:
        share = (USUAL_SIZE / config.image_size) ** 2
        print(f"            with --image-size {USUAL_SIZE} about {share:.2g} times that")
