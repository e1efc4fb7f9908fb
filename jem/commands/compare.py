"""`jem compare`: runs side by side, in one table and one page."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jem.commands.outputs import check_out
from jem.commands.report import Report, make_report
from jem.commands.runs import run_config
from jem.errors import InputError, RunFolderError


@dataclass
class Compare:
    """Put the reports of runs side by side; a run without one gets one."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders."""
    out: Path = Path("compare.html")
    """The page."""
    quiet: bool = False
    """Show no progress."""


def run(argv: list[str]) -> int:
    """Print the table and write the page."""
    args = tyro.cli(Compare, args=argv, prog="jem compare")
    if len(args.runs) < 2:
        raise InputError(f"expected at least two runs to compare, but got {len(args.runs)}")
    out = check_out(args.out)
    for path in args.runs:
        run_config(path)  # before any is measured
    from jem.report.page import comparison_rows, render_comparison
    from jem.runs.files import write_atomically

    reports = {str(path): _figures(path, args.quiet) for path in args.runs}
    table = Table(
        "figure", *map(escape, reports), title="test part, 95 % intervals over test inputs"
    )
    for label, cells in comparison_rows(reports):
        table.add_row(escape(label), *(_shown(cell) for cell in cells))
    Console().print(table)
    page = render_comparison(reports, title="Runs side by side")
    write_atomically(out, page.encode())
    print(f"page: {out}")
    return 0


def _figures(path: Path, quiet: bool) -> dict[str, Any]:
    """The report of a run; made, and made anew where the run has gone on since."""
    from jem.report.measure import SCHEMA_VERSION
    from jem.report.page import comparison_rows
    from jem.runs.checkpoint import Checkpoints
    from jem.runs.folder import RunFolder

    file = path / "report.json"
    if not file.exists():
        return make_report(Report(path, quiet=quiet))
    try:
        figures: dict[str, Any] = json.loads(file.read_text())
        if figures["schema_version"] != SCHEMA_VERSION:
            raise RunFolderError(
                f"{file} is of another version: make it again with jem report {path}"
            )
        measured = figures["run"]["iterations"]
        comparison_rows({"": figures})  # that all is there
    except (OSError, ValueError) as error:
        raise RunFolderError(f"cannot read {file}: {error}") from error
    except (LookupError, TypeError, AttributeError) as error:
        raise RunFolderError(
            f"{file} is no report ({type(error).__name__}: {error}): make it again with "
            f"jem report {path}"
        ) from error
    newest = Checkpoints(RunFolder(path).checkpoints).iterations()[-1:]
    if newest and newest != [measured]:
        return make_report(Report(path, quiet=quiet))
    return figures


def _shown(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "-"
    interval = "" if cell["low"] is None else f" [{cell['low']:.4f}, {cell['high']:.4f}]"
    return f"{cell['value']:.4f}{interval}"
