"""Count the lines of code of the repository, and hold them to a budget.

A line of code is one that holds a token of Python which is neither a comment nor a docstring.
`make check` runs this; it exits with status 1 where a budget is passed. Raise a budget only
together with a reason in `docs/decisions.md`.
"""

from __future__ import annotations

import ast
import sys
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CODE = {"jem": 13_610, "tests": 14_840}
"""Lines of code that a folder may hold: where it stands, for the aim is 8,500 and 10,000."""
FILES = {"jem": 119}
"""Files that a folder may hold, those without code not counted; the aim is 85."""
LONGEST = 400
"""Lines, of any kind, that a file of `jem` may hold."""
SHOWN = 10
"""How many of the largest files are shown."""

SILENT = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENDMARKER,
}  # fmt: skip


def count_code(path: Path) -> int:
    """Lines of code of a Python file.

    Args:
        path: The file.
    """
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        body = getattr(node, "body", None)
        for line in body if isinstance(body, list) else ():
            text = line.value if isinstance(line, ast.Expr) else None
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                docstrings.update(range(line.lineno, (line.end_lineno or 0) + 1))
    code: set[int] = set()
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type not in SILENT and token.type != tokenize.ENCODING:
                code.update(range(token.start[0], token.end[0] + 1))
    return len(code - docstrings)


def passed_budgets(code: dict[Path, int], lines: dict[Path, int]) -> list[str]:
    """Say which budgets are passed.

    Args:
        code: Lines of code of each file, by its path in the repository.
        lines: All lines of each file.

    Returns:
        A sentence for each budget that is passed.
    """
    found = []
    for folder, limit in CODE.items():
        total = sum(count for path, count in code.items() if path.parts[0] == folder)
        if total > limit:
            found.append(f"{folder} has {total:,} lines of code, and may have {limit:,}")
    for folder, limit in FILES.items():
        total = sum(path.parts[0] == folder and count > 0 for path, count in code.items())
        if total > limit:
            found.append(f"{folder} has {total} files, and may have {limit}")
    long = (path for path in lines if path.parts[0] == "jem" and lines[path] > LONGEST)
    return found + [f"{path} has {lines[path]} lines, and may have {LONGEST}" for path in long]


def main() -> int:
    """Print lines by folder and the largest files; say which budgets are passed."""
    paths = [path for top in ("jem", "tests", "scripts") for path in (ROOT / top).rglob("*.py")]
    code = {path.relative_to(ROOT): count_code(path) for path in sorted(paths)}
    lines = {path: len((ROOT / path).read_text().splitlines()) for path in code}
    by_folder: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for path, count in code.items():
        for folder in {path.parts[0], str(path.parent)}:
            by_folder[folder] += count
            files[folder] += count > 0
    print(f"{'folder':32}{'files':>8}{'lines of code':>16}")
    for folder in sorted(by_folder):
        total = " (all)" if "/" not in folder else ""
        print(f"{folder + total:32}{files[folder]:8}{by_folder[folder]:16,}")
    print(f"\n{'largest files':56}{'lines of code':>16}{'all lines':>12}")
    for path, count in Counter(code).most_common(SHOWN):
        print(f"{path!s:56}{count:16,}{lines[path]:12,}")
    passed = passed_budgets(code, lines)
    for sentence in passed:
        print(f"too large: {sentence}", file=sys.stderr)
    return 1 if passed else 0


if __name__ == "__main__":
    sys.exit(main())
