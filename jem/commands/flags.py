"""The flags of `jem train`: first those that people use most, then the recipe's by group."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import tyro

from jem.commands.config import RECIPE_FIELDS, RunConfig, read_settings
from jem.errors import InputError
from jem.training.recipe import GROUPS, Recipe, help_texts
from jem.training.recipes import recipe_from


@dataclass
class DataFlags:
    """How data are found and read."""

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
    validation: Path | None = None
    """File or folder of the validation part, where you have divided the data yourself."""
    test: Path | None = None
    """The same for the test part."""


@dataclass
class TrainFlags:
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
    epochs: int | None = None
    network: str | None = None
    """A network by name and sizes, such as wide_resnet:depth=16,width=4; or one of your own,
    module:factory, found in the current folder or where Python looks, and called with
    (shape, num_classes). It takes images (B, C, H, W) in [-1, 1], and rows of tables (B, D)
    standardised. The one that suits the data if left out."""
    control: bool = False
    """Also train a plain classifier on the same data, into OUT/control, to compare with."""
    seed: int = 0
    """The one seed of everything random."""
    device: str = "auto"
    """cpu, cuda, mps, or auto."""
    resume: bool = False
    """Go on with the run in the folder, with the settings that it was started with."""
    config: Path | None = None
    """JSON file of settings, such as the config.json of another run."""
    dry_run: bool = False
    """Show the resolved configuration, the network, the device and a cost estimate, and stop."""
    report: bool = True
    """Measure the run when it has ended: report.html and report.json."""
    quiet: bool = False
    """Show no progress."""
    files: DataFlags = field(default_factory=DataFlags)


def parse_train(argv: list[str]) -> tuple[TrainFlags, RunConfig, dict[str, Any]]:
    """Read the command line: the recipe, changed by the configuration file, changed by flags.

    Args:
        argv: The arguments of `jem train`.

    Returns:
        The flags, the settings of the run, and those settings that flags changed.

    Raises:
        InputError: If recipe or file cannot be used.
    """
    if argv and not argv[0].startswith("-"):
        raise InputError(f"data are named with a flag: jem train --data {argv[0]}")
    first = argparse.ArgumentParser("jem train", add_help=False, allow_abbrev=False)
    first.add_argument("--recipe")
    first.add_argument("--config", type=Path)
    named, _ = first.parse_known_args(argv)
    base = RunConfig(data=TrainFlags.data, recipe=recipe_from(named.recipe or TrainFlags.recipe))
    usual = base if named.config is None else read_settings(named.config.expanduser(), base)
    written = usual.values.get("recipe", {})
    whole = isinstance(written, str) or written.keys() >= RECIPE_FIELDS
    if named.recipe and whole and usual.recipe != base.recipe and "--resume" not in argv:
        raise InputError(
            f"--recipe {named.recipe}: {named.config} holds a whole recipe, which would hide it: "
            "leave out --recipe, or take the recipe out of the file"
        )
    default = _flags_for(usual)
    flags = tyro.cli(
        type(default),
        args=[_SPELLED_OUT.get(word, word) for word in argv],
        prog="jem train",
        default=default,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    values = vars(flags) | vars(flags.files)
    for group in GROUPS:
        values |= vars(values[group])
    recipe = Recipe(**{name: values[name] for name in RECIPE_FIELDS})
    own = {f.name: values[f.name] for f in fields(RunConfig) if f.name in values}
    paths = {name: own[name] and str(own[name]) for name in ("data_root", "validation", "test")}
    config = RunConfig(**own | paths | {"recipe": recipe})
    before = usual.settings()
    return flags, config, {k: v for k, v in config.settings().items() if v != before[k]}


_SPELLED_OUT = {
    f"--{word}{name.replace('_', '-')}": f"--{name.replace('_', '-')}={value}"
    for name, kind in get_type_hints(Recipe).items()
    if kind == bool | None
    for word, value in (("", True), ("no-", False))
}
"""Flags of settings that may be left open, for which tyro wants the value: `--x`, `--no-x`."""


def _flags_for(usual: RunConfig) -> Any:  # noqa: ANN401
    """`TrainFlags` with the fields of the recipe, all with the settings before flags."""
    kinds, docs = get_type_hints(Recipe), help_texts()

    def flag(name: str) -> tuple[str, Any, Any]:
        kind = Annotated[kinds[name], tyro.conf.arg(help=docs[name])]  # type: ignore[valid-type]
        return name, kind, field(default=getattr(usual.recipe, name))

    groups = {
        group: make_dataclass(group, [flag(name) for name in names if name != "epochs"])
        for group, names in GROUPS.items()
    }
    added = [(name, kind, field(default_factory=kind)) for name, kind in groups.items()]
    every = make_dataclass("Train", [flag("epochs"), *added], bases=(TrainFlags,))
    every.__doc__ = TrainFlags.__doc__

    def path(text: str | None) -> Path | None:
        return None if text is None else Path(text)

    files = DataFlags(
        data_root=path(usual.data_root),
        validation=path(usual.validation),
        test=path(usual.test),
        label_column=usual.label_column,
        image_size=usual.image_size,
        skip_damaged=usual.skip_damaged,
    )
    return every(data=usual.data, seed=usual.seed, network=usual.network, files=files)
