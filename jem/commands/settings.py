"""The settings of a run: the flags of `jem train`, and what `config.json` keeps of them."""

import argparse
import json
from dataclasses import asdict, dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_type_hints

import tyro

from jem.checks import check_integer, refuse
from jem.errors import InputError, naming
from jem.networks import network_for, usual_head
from jem.networks.heads import Head
from jem.training.recipe import GROUPS, Recipe, help_texts
from jem.training.recipes import recipe_from

FACTS = {
    "input_shape", "classes", "columns", "iterations", "versions", "device", "as_given",
    "data_checksum",
}  # fmt: skip
"""What a run adds to its `config.json` for readers; none of it is a setting."""

RECIPE_FIELDS = {f.name for f in fields(Recipe)}


@dataclass(frozen=True)
class RunConfig:
    """What a run trains, on what and how.

    Attributes:
        data: A named data set, a file or a folder; None where a run was started in Python.
        data_root: Folder of downloaded data sets.
        validation: File or folder of the validation part, where it is apart.
        test: The same of the test part.
        label_column: Column of labels of a .csv file.
        image_size: Pixels a side that a folder's images are scaled to.
        skip_damaged: Leave out images that cannot be read.
        seed: The one seed of everything random.
        network: A network by name or `module:factory`; None for the one that suits the data.
        recipe: Every other setting.
        values: All that the file says, which in a run is more: see `FACTS`.
    """

    data: str | None = None
    data_root: str | None = None
    validation: str | None = None
    test: str | None = None
    label_column: str | None = None
    image_size: int | None = None
    skip_damaged: bool = False
    seed: int = 0
    network: str | None = None
    recipe: Recipe = field(default_factory=Recipe)
    values: dict[str, Any] = field(default_factory=dict)

    def metadata(self) -> dict[str, Any]:
        """What `Trainer` keeps of it in `config.json`, beside seed and recipe."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("seed", "recipe", "values"):
            del own[name]
        return {name: value for name, value in own.items() if value not in (None, False)}

    def settings(self) -> dict[str, Any]:
        """Every setting that a run keeps to its end; a folder of data sets may move."""
        own = {f.name: getattr(self, f.name) for f in fields(self)} | asdict(self.recipe)
        for name in ("data_root", "recipe", "values"):
            del own[name]
        return own


def read_settings(path: Path, base: RunConfig) -> RunConfig:
    """Read a file of settings, such as the `config.json` of another run.

    Args:
        path: A JSON object, as `settings_of` takes it.
        base: Settings that the file changes.

    Raises:
        InputError: If the file holds no such object, or a setting that does not exist or fit.
        OSError: If there is no such file.
    """
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold a JSON object of settings")
    return settings_of(values, str(path), base)


def settings_of(
    values: dict[str, Any], source: str, base: RunConfig | None = None, *, strict: bool = True
) -> RunConfig:
    """Turn the content of a settings file into settings.

    Args:
        values: Settings by name. `recipe` is a name or an object of fields, and fields of the
            recipe may stand beside it too.
        source: Where they come from, for messages.
        base: Settings that they change; the defaults if None.
        strict: Refuse what is neither a setting nor of `FACTS`.

    Raises:
        InputError: If a setting does not exist or fit.
    """
    base = RunConfig() if base is None else base
    own = {f.name for f in fields(RunConfig)} - {"recipe", "values"}
    unknown = values.keys() - own - RECIPE_FIELDS - FACTS - {"recipe"}
    if strict and unknown:
        raise InputError(f"{source} holds unknown settings: {', '.join(sorted(unknown))}")
    with naming(source):
        changes = values.get("recipe", {})
        if isinstance(changes, str):
            changes = asdict(recipe_from(changes))
        if not isinstance(changes, dict):
            refuse("recipe", "be a name or an object", repr(changes))
        changes |= {name: values[name] for name in values.keys() & RECIPE_FIELDS}
        recipe = recipe_from(base.recipe, changes)
        found = {name: values[name] for name in values.keys() & own}
        if isinstance(found.get("network"), dict):
            found["network"] = _network_name(found["network"], recipe)
        for name, value in found.items():
            _check(name, value)
    return replace(base, **found, recipe=recipe, values=values)


def _check(name: str, value: Any) -> None:  # noqa: ANN401
    if name == "seed":
        check_integer(name, value, 0)
    elif name == "image_size":
        check_integer(name, value, 1, optional=True)
    elif name == "skip_damaged":
        if not isinstance(value, bool):
            refuse(name, "be true or false", repr(value))
    elif not isinstance(value, str) and (value is not None or name == "data"):
        refuse(name, "be text", repr(value))


def _network_name(spec: dict[str, Any], recipe: Recipe) -> str | None:
    """A network of ours by name and sizes; None for the one that the recipe gives such data."""
    if "classifier_spec" in spec:  # a companion, or towers
        name = spec["classifier_spec"]
        return name if isinstance(name, str) else None
    spec = dict(spec)
    shape, num_classes = spec.pop("shape", (1,)), spec.pop("num_classes", 1)
    others: dict[str | None, Head | None] = {"companion": None, "density": "joint"}
    head = others.get(recipe.head, cast("Head | None", recipe.head))
    if network_for(shape, num_classes, head=head).spec.items() >= spec.items():
        return None
    name = spec.pop("name", "")
    if spec.get("head") == (head or usual_head(shape)):  # the control has its recipe's
        del spec["head"]
    return f"{name}:{','.join(f'{key}={value}' for key, value in spec.items())}"


# -- flags: first those that people use most, then those of the recipe by group ----------------


@dataclass
class DataFlags:
    """How data are found and read."""

    data_root: str | None = None
    """Folder of downloaded data sets. If None: the environment variable JEM_DATA."""
    download: bool = False
    """Download a named data set that is missing."""
    label_column: str | None = None
    """Column of a .csv file that holds the labels. If None: label, class, target or y."""
    image_size: int | None = None
    """Scale images to this many pixels a side and keep the middle. Needed if they have several
    sizes."""
    skip_damaged: bool = False
    """Leave out images of a folder that cannot be read, and say how many."""
    validation: str | None = None
    """File or folder of the validation part, if you have divided the data yourself."""
    test: str | None = None
    """The same for the test part."""


@dataclass
class TrainFlags:
    """Train a classifier that also rejects and draws inputs.

    Settings come from the recipe, then from --config, then from flags; the later one wins.
    """

    data: str = "digits"
    """A named data set (see `jem data`), an .npz or .csv file, or a folder of images by class."""
    recipe: str = "fast"
    """A named recipe (see `jem recipes`)."""
    out: Path | None = None
    """Run folder. If None: the first free of runs/NAME, runs/NAME-2, ..."""
    epochs: int | None = None
    network: str | None = None
    """If None: one that suits the data. A network by name and sizes, such as
    wide_resnet:depth=16,width=4; or your own, module:factory, found in the current folder or where
    Python looks, and called with (shape, num_classes). It gets images (B, C, H, W) in [-1, 1], or
    standardised rows of tables (B, D)."""
    control: bool = False
    """Also train a plain classifier on the same data, into OUT/control, to compare with."""
    seed: int = 0
    """The one seed of everything random."""
    device: str = "auto"
    """cpu, cuda, mps, or auto."""
    resume: bool = False
    """Continue the run in --out, with the settings that it was started with."""
    config: Path | None = None
    """JSON file of settings, such as the config.json of another run."""
    classes_from: Path | None = None
    """Text file with the names of the classes, one a line, in the order of your network's
    outputs. If None: sorted as text, as in torchvision's ImageFolder."""
    dry_run: bool = False
    """Show the resolved configuration, the network, the device and a cost estimate, and stop."""
    report: bool = True
    """Write report.html and report.json when training has ended; --resume does not remember it."""
    log: Literal["tensorboard"] | None = None
    """Also write event files for TensorBoard into OUT/tensorboard."""
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
    config = RunConfig(**own | {"recipe": recipe})
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
    kept = (f.name for f in fields(DataFlags) if f.name != "download")
    files = DataFlags(**{name: getattr(usual, name) for name in kept})
    return every(data=usual.data, seed=usual.seed, network=usual.network, files=files)
