"""`jem compare`: runs side by side, in one table and one page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jem.commands.outputs import check_out
from jem.commands.report import Report, make_report, shown
from jem.commands.runs import run_config
from jem.errors import InputError


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
    for name, _, cells in comparison_rows(reports):
        table.add_row(escape(name), *(escape(shown(cell)) for cell in cells))
    Console().print(table)
    page = render_comparison(reports, title="Runs side by side")
    write_atomically(out, page.encode())
    print(f"page: {out}")
    return 0


def _figures(path: Path, quiet: bool) -> dict[str, Any]:
    """The report of a run; made, and made anew where the run has gone on since."""
    from jem.report.page import read_report
    from jem.runs.checkpoint import Checkpoints
    from jem.runs.folder import RunFolder

    file = path / "report.json"
    if not file.exists():
        return make_report(Report(path, quiet=quiet))
    figures = read_report(file)
    newest = Checkpoints(RunFolder(path).checkpoints).iterations()[-1:]
    if newest and newest != [figures["run"].get("iterations")]:
        return make_report(Report(path, quiet=quiet))
    return figures
