"""`jem recipes`: every setting of the named recipes, side by side."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import tyro
from rich.console import Console
from rich.table import Column, Table

from jem.training.recipe import DEFAULTS, GROUPS
from jem.training.recipes import RECIPES


@dataclass
class Recipes:
    """Show the named recipes side by side."""


def run(argv: list[str]) -> int:
    """Print the table of recipes, and what they leave to the kind of data."""
    tyro.cli(Recipes, args=argv, prog="jem recipes")
    recipes = Table(Column("field", no_wrap=True), *RECIPES)
    for group, names in GROUPS.items():
        recipes.add_section()
        recipes.add_row(f"[bold]{group}")
        for name in names:
            recipes.add_row(name, *(_shown(getattr(recipe, name)) for recipe in RECIPES.values()))
    kinds = Table("for -, by input", *DEFAULTS)
    for name in DEFAULTS["vector"]:
        kinds.add_row(name, *(_shown(values[name]) for values in DEFAULTS.values()))
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(recipes, kinds)
    console.print(
        "vectors: rows of tables, points; large: from 16 pixels a side; colour: several channels"
    )
    return 0


def _shown(value: Any) -> str:  # noqa: ANN401
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
