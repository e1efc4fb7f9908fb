"""The settings of a run: what `config.json` keeps, and every command reads back once."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from jem.checks import check_integer, refuse
from jem.errors import InputError
from jem.training.recipe import Recipe
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
        data: A named data set, a file or a folder; None where a run was begun in Python.
        data_root: Folder of downloaded data sets.
        validation: File or folder of the validation part, where it is apart.
        test: The same of the test part.
        label_column: Column of labels of a .csv file.
        image_size: Pixels a side that a folder's images are brought to.
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
    try:
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
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
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
    from jem.networks import network_for

    if spec.get("name") == "companion":
        name = spec["classifier_spec"]
        return name if isinstance(name, str) else None
    spec = dict(spec)
    shape, num_classes = spec.pop("shape", (1,)), spec.pop("num_classes", 1)
    head = "factored" if recipe.head == "companion" else recipe.head
    if network_for(shape, num_classes, head=head).spec.items() >= spec.items():
        return None
    name = spec.pop("name", "")
    if spec.get("head") == recipe.head:  # the control of the run has that of its own recipe
        del spec["head"]
    return f"{name}:{','.join(f'{key}={value}' for key, value in spec.items())}"
