"""`jem data` and `jem recipes`: what there is to train on, and how."""

import sys
from dataclasses import dataclass
from typing import Any

import tyro
from rich.console import Console
from rich.table import Column, Table

from jem.commands.runs import load_data
from jem.commands.settings import DataFlags
from jem.data import NAMES
from jem.training.recipe import DEFAULTS, GROUPS
from jem.training.recipes import RECIPES


@dataclass
class DescribeFlags(DataFlags):
    """List the named data sets, or describe one."""

    name: tyro.conf.Positional[str | None] = None
    """A named set, a file or a folder."""


def data(argv: list[str]) -> int:
    """List or describe data sets."""
    args: DescribeFlags = tyro.cli(DescribeFlags, args=argv, prog="jem data")

    if args.name is not None:
        options = dict(vars(args))
        name, root = options.pop("name"), options.pop("data_root")
        print(load_data(name, root=root, **options).describe())
        return 0
    for name, description in NAMES.items():
        print(f"{name:15}{description}")
    print(_YOUR_OWN)
    return 0


_YOUR_OWN = """
Your own, which `jem data PATH` describes:
  mine.npz   `images` (N, H, W), (N, H, W, C) or (N, C, H, W), or `x` (N, D), and `labels` (N,)
  mine.csv   first line: names of the columns; then numbers, categories, dates; the class in a
             column label, class, target or y, or in the one that --label-column names
  images/    a folder for each class, of images of one size, or of any size with --image-size 32"""


@dataclass
class RecipesFlags:
    """Show the named recipes side by side."""


def recipes(argv: list[str]) -> int:
    """Print the table of recipes, and what they leave to the kind of data."""
    tyro.cli(RecipesFlags, args=argv, prog="jem recipes")
    table = Table(Column("field", no_wrap=True), *RECIPES)
    for group, names in GROUPS.items():
        table.add_section()
        table.add_row(f"[bold]{group}")
        for name in names:
            table.add_row(name, *(_shown(getattr(recipe, name)) for recipe in RECIPES.values()))
    kinds = Table("for -, by input", *DEFAULTS)
    for name in DEFAULTS["vector"]:
        kinds.add_row(name, *(_shown(values[name]) for values in DEFAULTS.values()))
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table, kinds)
    console.print(
        "vector: rows of tables, points; embedding: vectors of 100 numbers or more; large: 16 "
        "pixels a side or more; colour: several channels; photograph: three channels, classes "
        "with names"
    )
    return 0


def _shown(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, tuple):
        return " ".join(map(_shown, value))
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
