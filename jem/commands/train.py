"""`jem train`: from data to a run folder, and the comparison with a plain classifier."""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from jem.commands.report import Report, make_report, print_answers
from jem.commands.runs import checksum, load_data, read_config, refuse_other_data
from jem.errors import InputError
from jem.training.recipe import RECIPES, Recipe, recipe_from

if TYPE_CHECKING:
    from jem.data.splits import DataSplits
    from jem.model import JEM
    from jem.training.trainer import FitResult

SHARED_WITH_CONTROL = (
    "epochs", "batch_size", "precision", "label_smoothing", "class_weight", "augment_shift",
    "augment_flip", "augment_noise", "log_every",
)  # fmt: skip
"""Recipe fields that the control takes from the hybrid: both see the same data equally often, and
compute alike."""


@dataclass
class Train:
    """Train a classifier that also scores, rejects and draws inputs.

    The recipe gives every setting; a configuration file changes some of them; flags change any of
    them.
    """

    data: str = "digits"
    """A named data set (see `jem data`), an .npz or .csv file, or a folder of images by class."""
    recipe: str = "fast"
    """A named recipe (see `jem recipes`)."""
    out: Path | None = None
    """Run folder; the first free of runs/NAME, runs/NAME-2, ... if left out."""
    resume: bool = False
    """Go on with the run in the folder, with the settings that it was started with."""
    control: bool = False
    """Also train a plain classifier on the same data, into OUT/control, to compare with."""
    dry_run: bool = False
    """Show the resolved configuration, the network, the device and a cost estimate, and stop."""
    config: Path | None = None
    """JSON file of settings, such as the config.json of another run."""
    seed: int = 0
    """The one seed of everything random."""
    network: str | None = None
    """A network of your own, `module:factory`, found in the current folder or where Python looks,
    and called with (shape, num_classes). It takes images (B, C, H, W) in [-1, 1], and rows of
    tables (B, D) standardised."""
    data_root: Path | None = None
    """Folder of downloaded data sets; the environment variable JEM_DATA if left out."""
    download: bool = False
    """Download a named data set that is missing."""
    label_column: str | None = None
    """Column of a .csv file that holds the labels, if it is not called label, class, target or y.
    All others must be numbers, none missing."""
    image_size: int | None = None
    """Pixels a side that a folder's images are brought to: scaled, and the middle cut out; needed
    where they are of several sizes."""
    skip_damaged: bool = False
    """Leave out images of a folder that cannot be read, and say how many."""
    device: str = "auto"
    """cpu, cuda, mps, or auto."""
    quiet: bool = False
    """Show no progress."""
    report: bool = True
    """Measure the run when it has ended: report.html and report.json."""
    settings: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)
    """Fields of the recipe."""


def run(argv: list[str]) -> int:
    """Train, measure on the test part and print the comparison."""
    args = _parse(argv)
    from jem.training.distributed import join

    ranks = join()
    stem = Path(args.data).resolve().stem
    folder = args.out or _default_folder(Path("runs"), stem, args.resume)
    out = ranks.agree(folder.expanduser())
    if args.resume:
        args = _as_started(args, out, _defaults(argv))
    else:
        _refuse_among_data(args.data, out)
    if args.control and args.settings.epochs == 0:
        raise InputError(
            "--control compares with a plain classifier that was trained, but --epochs 0 trains "
            "nothing: leave out --control, or give more epochs"
        )
    splits = _load(args, out, quiet=args.quiet or not ranks.first)
    _refuse_single_class(splits)
    if args.dry_run:
        _dry_run(args, splits, out)
        return 0

    from jem.report.summary import make_ood_sets, summarise
    from jem.serving.scorer import DETECTOR_FILE, fit_scorer

    recipes = {out: args.settings}
    if args.control or (args.resume and (out / "control").exists()):
        recipes[out / "control"] = control_recipe(args.settings)
    fitted = {folder: _fit(args, recipe, splits, folder) for folder, recipe in recipes.items()}
    if not ranks.first:
        return 0  # of several processes, the first measures what all have trained

    ood_sets = make_ood_sets(splits, args.seed)
    rows = {}
    for folder, (model, result) in fitted.items():
        trained = not result.as_given
        name = "hybrid" if args.settings.generative else "plain"
        name = name if trained else "as given"
        name = name if folder == out else "plain (control)"
        summary = summarise(model, splits, ood_sets, trained=trained)
        rows[name] = summary | {"fit_seconds": result.seconds, "as_given": result.as_given}
        fit_scorer(model, splits).save(folder / DETECTOR_FILE)
    (out / "summary.json").write_text(json.dumps(rows, indent=2) + "\n")
    _print_summary(rows)
    if args.report:
        figures = make_report(Report(out, data_root=args.data_root, quiet=args.quiet))
        print_answers(figures)
    print(f"run folder: {out}")
    if (out / "samples.png").exists():
        print(f"samples:    {out / 'samples.png'}")
    if args.report:
        print(f"report:     {out / 'report.html'}")
    return 0


def _parse(argv: list[str]) -> Train:
    """Arguments from the command line; data without their flag are told which it is."""
    default = _defaults(argv)
    args, unknown = tyro.cli(
        Train, args=argv, prog="jem train", default=default, return_unknown_args=True
    )
    if unknown and not unknown[0].startswith("-"):
        raise InputError(f"data are named with a flag: jem train --data {unknown[0]}")
    if unknown:  # options: the parser knows similar ones
        tyro.cli(Train, args=argv, prog="jem train", default=default)
    return args


def _default_folder(parent: Path, stem: str, resume: bool) -> Path:
    """The first free of NAME, NAME-2, NAME-3, ...; to resume, the last that holds a run."""
    from jem.runs.folder import RunFolder

    last = parent / stem
    for number in itertools.count(1):
        folder = parent / (stem if number == 1 else f"{stem}-{number}")
        if not folder.exists():
            return last if resume else folder
        last = folder if RunFolder(folder).holds_run() else last
    raise AssertionError("unreachable: the count has no end")


def _defaults(argv: list[str]) -> Train:
    """Settings before flags: the named recipe, then the configuration file."""
    recipe = _flag(argv, "--recipe") or Train.recipe
    config = _flag(argv, "--config")
    own, changes = _settings_of(Path(config).expanduser()) if config else ({}, {})
    resolved = recipe_from(recipe, changes)
    named = _flag(argv, "--recipe") is not None and "--resume" not in argv
    if named and changes.keys() >= _OF_RECIPE and resolved != recipe_from(recipe):
        raise InputError(
            f"--recipe {recipe}: {config} holds a whole recipe, which would hide it: leave out "
            "--recipe, or take the recipe out of the file"
        )
    return Train(**own, settings=resolved)


def _flag(argv: list[str], name: str) -> str | None:
    """Value of a flag, given as `--flag value` or `--flag=value`; the last one counts."""
    value = None
    for index, word in enumerate(argv):
        if word == name and index + 1 < len(argv):
            value = argv[index + 1]
        elif word.startswith(name + "="):
            value = word.removeprefix(name + "=")
    return value


def _settings_of(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of `Train` from a file, and the fields of the recipe that it changes."""
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} must hold a JSON object of settings")
    changes = config.get("recipe", {})
    if isinstance(changes, str):
        changes = asdict(recipe_from(changes))
    if not isinstance(changes, dict):
        raise InputError(f"{path}: `recipe` must be a name or an object, but is {changes!r}")
    own = {}
    for key, kind in _OWN.items():
        value = config.get(key, getattr(Train, key))
        if value is None and getattr(Train, key) is None:
            continue  # left open
        if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
            raise InputError(f"{path}: `{key}` must be {_KINDS[kind]}, but is {value!r}")
        if key in config and not isinstance(value, dict):  # a network of ours: the recipe's
            own[key] = Path(value) if key == "data_root" else value
    changes = {**changes, **{k: v for k, v in config.items() if k in _OF_RECIPE}}
    unknown = set(config) - _OF_RECIPE - {*_OWN} - _INFORMATIVE
    if unknown:
        raise InputError(f"{path} holds unknown settings: {', '.join(sorted(unknown))}")
    return own, changes


_OWN: dict[str, Any] = {
    "data": str, "data_root": str, "label_column": str, "image_size": int, "skip_damaged": bool,
    "seed": int, "network": (str, dict),
}  # fmt: skip
"""Arguments of `Train` that a file may hold, and their types."""

_KINDS = {str: "text", int: "a whole number", bool: "true or false", (str, dict): "module:factory"}

_OF_RECIPE = {f.name for f in fields(Recipe)}

_SETTLED = {*_OWN} - {"data_root"} | _OF_RECIPE
"""Settings that a run keeps to its end; the root folder of named data sets may move."""

_INFORMATIVE = {
    "recipe", "input_shape", "classes", "columns", "iterations", "versions", "device", "as_given",
    "data_checksum",
}  # fmt: skip
"""Other keys that a run writes into its config.json: people read them, `jem train` the recipe."""


def _as_started(args: Train, out: Path, defaults: Train) -> Train:
    """Arguments of a run to resume: what its folder says; flags may say the same, no other."""
    from jem.runs.folder import RunFolder

    folder = RunFolder(out)
    folder.read_config()
    own, changes = _settings_of(folder.config)
    if "data" not in own:
        raise InputError(
            f"{out} does not say what data it was trained on: it was begun in Python, and goes on "
            f"there, with Trainer(..., run_dir={str(out)!r}).fit(..., resume=True)"
        )
    recipe = recipe_from(args.recipe, changes)
    given = {
        name: value
        for name, value in (vars(args) | vars(args.settings)).items()
        if value != (vars(defaults) | vars(defaults.settings))[name] and name in _SETTLED
    }
    started = vars(args) | vars(recipe) | own
    other = [name for name, value in given.items() if started[name] != value]
    if other:
        raise InputError(
            f"--resume goes on with the settings that {out} was begun with; these differ: "
            f"{', '.join(other)}; leave them out, or begin another run with --out"
        )
    return replace(args, **own, settings=recipe, out=out)


def _refuse_among_data(data: str, out: Path) -> None:
    """Refuse a run folder in a folder of images, whose folders are its classes."""
    from jem.data import NAMES

    folder, place = Path(data).expanduser().resolve(), out.resolve()
    if data not in ("", *NAMES) and folder.is_dir() and folder in (place, *place.parents):
        raise InputError(
            f"the run folder {out} would lie in the folder of the data {data}, and be one of "
            "their classes: choose another with --out"
        )


def _load(args: Train, out: Path, *, quiet: bool) -> DataSplits:
    splits = load_data(
        args.data,
        quiet=quiet,
        root=args.data_root,
        download=args.download,
        seed=args.seed,
        label_column=args.label_column,
        image_size=args.image_size,
        skip_damaged=args.skip_damaged,
    )
    if args.resume:
        refuse_other_data(out, read_config(out), splits)
    return splits


def _refuse_single_class(splits: DataSplits) -> None:
    if len(splits.classes) < 2:
        raise InputError(f"a classifier needs at least two classes, but {splits.name} has one")


def _make_model(args: Train, recipe: Recipe, splits: DataSplits) -> JEM:
    from jem import networks
    from jem.model import JEM

    shape, num_classes = splits.input_shape, len(splits.classes)
    given = None
    if args.network is not None:
        sys.path.insert(0, str(Path.cwd()))
        given = partial(networks.network_from_reference, args.network)
    return JEM(
        networks.make_network(given, shape, num_classes, recipe.head, args.seed),
        input_shape=shape,
        classes=splits.classes,
        domain=splits.domain,
        scaling=splits.scaling,
    )


def _describe(args: Train) -> dict[str, Any]:
    root = None if args.data_root is None else str(args.data_root)
    metadata = {
        "data": args.data,
        "data_root": root,
        "label_column": args.label_column,
        "image_size": args.image_size,
        "skip_damaged": args.skip_damaged or None,
        "network": args.network,
    }
    return {key: value for key, value in metadata.items() if value is not None}


def _fit(args: Train, recipe: Recipe, splits: DataSplits, folder: Path) -> tuple[JEM, FitResult]:
    from jem.runs.folder import RunFolder
    from jem.training.trainer import Trainer

    model = _make_model(args, recipe, splits)
    trainer = Trainer(
        model,
        recipe,
        run_dir=folder,
        seed=args.seed,
        device=args.device,
        progress=not args.quiet,
        metadata=_describe(args)
        | ({"columns": splits.columns} if splits.columns else {})
        | {"data_checksum": checksum(splits)},
    )
    resume = args.resume and RunFolder(folder).holds_run()
    result = trainer.fit(splits.train, splits.validation, resume=resume)
    return model, result


def control_recipe(recipe: Recipe) -> Recipe:
    """The plain recipe that sees the same data as another, equally often and equally changed.

    Args:
        recipe: The recipe of the run to compare with.

    Returns:
        `RECIPES["plain"]` with the fields of `SHARED_WITH_CONTROL` taken over.
    """
    shared = {name: getattr(recipe, name) for name in SHARED_WITH_CONTROL}
    return replace(RECIPES["plain"], **shared)


def _dry_run(args: Train, splits: DataSplits, out: Path) -> None:
    from jem.runs.folder import network_spec
    from jem.training.trainer import Trainer

    model = _make_model(args, args.settings, splits)
    trainer = Trainer(model, args.settings, seed=args.seed, device=args.device)
    seconds = trainer.seconds_per_iteration(splits.train)
    config = {
        **_describe(args),
        "seed": args.seed,
        "recipe": asdict(args.settings),
        "network": network_spec(model.network, _describe(args)),
    }
    print(json.dumps(config, indent=2))
    print(splits.describe())
    print(model.network)
    count = sum(p.numel() for p in model.parameters())
    total = trainer.total_iterations
    print(f"parameters: {count:,}\ndevice:     {trainer.device}\nrun folder: {out} (not made)")
    print(
        f"cost:       {trainer.num_epochs} epochs, {total:,} iterations, "
        f"{1000 * seconds:.1f} ms each here: about {total * seconds:.0f} s"
    )


def _print_summary(rows: dict[str, dict[str, Any]]) -> None:
    first = next(iter(rows.values()))
    table = Table(
        title=f"test part, n = {first['num_test']}; AUROC of the log-density, 95 % interval"
    )
    table.add_column("figure")
    for name in rows:
        table.add_column(name, justify="right")
    if "accuracy" in first:
        for key, digits in (("accuracy", 3), ("nll", 3), ("ece", 3)):
            table.add_row(key, *(f"{row[key]:.{digits}f}" for row in rows.values()))
    for name, figure in first["auroc"].items():
        cells = []
        for row in rows.values():
            value = row["auroc"][name]
            cells.append(f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]")
        seen = any(row["auroc"][name]["seen"] for row in rows.values())
        label = f"AUROC, {name}{', seen' if seen else ''} (n = {figure['num_foreign']})"
        table.add_row(label, *cells)
    table.add_row("seconds of fit", *(f"{row['fit_seconds']:.1f}" for row in rows.values()))
    if any(figure["seen"] for row in rows.values() for figure in row["auroc"].values()):
        table.caption = "seen: the hybrid's training held such inputs against the data"
    Console().print(table)
