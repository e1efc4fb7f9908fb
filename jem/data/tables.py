"""Text files of tables, as spreadsheets and statistics programs write them: pandas reads them."""

import codecs
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

import pandas as pd

from jem.checks import refuse

LABEL_COLUMNS = ("label", "class", "target", "y")
SEPARATORS = ",;\t|"
MISSING = "?"
"""What stands for a missing value, beside what pandas knows: empty cells, NA, NaN, None, ..."""
MOST_LINES = 100
"""Lines that are looked at for the separator and the decimal mark."""


@dataclass(frozen=True)
class TableFile:
    """A text file of a table.

    Attributes:
        path: Where it is.
        names: Names of its columns.
        options: How pandas reads it.
    """

    path: Path
    names: list[str]
    options: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Find encoding, separator, decimal mark and names.

        Args:
            path: A file of UTF-8, UTF-16 or Windows-1252, parted by commas, semicolons, tabulators
                or bars. A first line such as `sep=;`, which Excel writes, says by which.

        Raises:
            InputError: If a column has no name of its own.
            ValueError: Or `OSError`, as pandas raises them for what it cannot read.
        """
        encoding = _encoding(path)
        with path.open(encoding=encoding, newline="") as file:
            lines = [line for line in islice(file, MOST_LINES) if line.strip()]
        stated = re.fullmatch(r'\ufeff?"?sep=(.)"?\s*', lines[0] if lines else "")
        lines = lines[1:] if stated else lines
        if not lines:
            refuse(str(path), "have a header and rows", "only blank lines")
        separator = stated[1] if stated else _separator(lines)
        options = {
            "sep": separator,
            "encoding": encoding,
            "decimal": _decimal_mark(path, lines[1:], separator),
            "skiprows": int(stated is not None),
            "skipinitialspace": True,
            "na_values": MISSING,
        }
        first = pd.read_csv(
            path, header=None, nrows=1, dtype=str, **options | {"keep_default_na": False}
        )
        names = [str(name).strip() for name in first.iloc[0]]
        for name in names:
            if not name or name.startswith("Unnamed: "):
                remedy = "a row number that was saved, perhaps: name that column or remove it"
                refuse(str(path), "have a name for every column", f"{name!r}", remedy)
            if names.count(name) > 1:
                refuse(str(path), "have different names of columns", f"'{name}' twice")
        return cls(path, names, options | {"names": names, "header": 0, "index_col": False})

    def rows(self, text: Sequence[str] = (), at_once: int | None = None) -> Iterator[pd.DataFrame]:
        """Give the rows, numbered from 0; those without any value are left out.

        Args:
            text: Names of columns that stay text.
            at_once: Rows of each part; None gives all in one.

        Raises:
            InputError: If there are none.
            ValueError: Or `OSError`, as pandas raises them for what it cannot read.
        """
        # Without low_memory a column is all numbers or all text.
        how = {"chunksize": at_once or 2**62, "low_memory": at_once is not None}
        kinds, empty = dict.fromkeys(text, str), True
        with pd.read_csv(self.path, dtype=kinds, **self.options, **how) as reader:
            for rows in reader:
                rows = rows.dropna(how="all")
                if len(rows):
                    empty = False
                    yield rows
        if empty:
            refuse(str(self.path), "have rows below the header", "none")

    def label(self, named: str | None) -> str:
        """The column of labels: the one that is named, or one with a usual name.

        Raises:
            InputError: If there is none, or more than one.
        """
        wanted = [name for name in self.names if name.lower() in LABEL_COLUMNS]
        if named is not None:
            wanted = [name for name in self.names if name == named]
        if len(wanted) != 1:
            called = f"'{named}'" if named else " or ".join(LABEL_COLUMNS)
            expected = f"have one column of labels called {called}"
            remedy = "name it with --label-column (label_column= in Python)"
            refuse(
                str(self.path), expected, f"the columns {', '.join(wanted or self.names)}", remedy
            )
        return wanted[0]

    def features(self, count: int, label_column: str | None) -> list[str]:
        """Columns that are no labels, where the names of those of training are not known.

        Args:
            count: How many a network takes.
            label_column: Name of a column of labels that may be there.

        Raises:
            InputError: If there are more or fewer.
        """
        if all(re.fullmatch(r"[-+.\deE]+", name) for name in self.names):
            refuse(str(self.path), "have names of columns in its first line", "numbers")
        label = None
        if label_column in self.names or len(self.names) == count + 1:
            label = self.label(label_column)
        chosen = [name for name in self.names if name != label]
        if len(chosen) != count:
            expected = f"have {count} columns as in training, and perhaps one of labels"
            refuse(str(self.path), expected, ", ".join(self.names))
        return chosen


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            return "utf-16"
    with path.open(encoding="utf-8") as text:
        try:
            while text.read(2**16):
                pass
        except UnicodeDecodeError:
            return "cp1252"
    return "utf-8"


def _separator(lines: Sequence[str]) -> str:
    """The mark that every line has most of: a name or a text may hold another."""
    bare = [re.sub(r'"[^"]*"', "", line) for line in lines[:20]]
    return max(SEPARATORS, key=lambda mark: min(line.count(mark) for line in bare))


def _decimal_mark(path: Path, lines: Sequence[str], separator: str) -> str:
    if separator == ",":
        return "."
    cells = [cell.strip().strip('"') for line in lines for cell in line.split(separator)]
    found = {
        mark: next((c for c in cells if re.fullmatch(rf"[-+]?\d*{re.escape(mark)}\d+", c)), None)
        for mark in ".,"
    }
    if all(found.values()):
        got = " and ".join(map(str, found.values()))
        refuse(str(path), "have one decimal mark", got, "write all numbers in one way")
    return "," if found[","] else "."
