"""Tables in `.csv` files -> columns of numbers and a column of labels."""

import csv
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from jem.data.arrays import Array, is_missing
from jem.errors import InputError

LABEL_COLUMNS = ("label", "class", "target", "y")


def read_csv(path: Path, label_column: str | None = None) -> tuple[Array, Array, tuple[str, ...]]:
    """Read numeric columns and the column of labels from a `.csv` file with a header.

    Returns:
        Features (N, D), float64; labels (N,), strings; and the names of the D columns.
    """
    header, lines = open_table(path)
    label = find_label_column(path, header, label_column)
    rows = list(lines)
    features = [i for i in range(len(header)) if i != label]
    if not features or not rows:
        what = "a column besides the labels" if rows else "rows below the header"
        raise InputError(f"Expected {what} in {path}, got none.")
    for number, row in rows:
        if is_missing(row[label]):
            raise InputError(
                f"Expected a label in line {number}, column '{header[label]}' of {path}, got "
                f"{row[label].strip() or 'none'}: leave such rows out."
            )
    names = tuple(header[i] for i in features)
    cells = [[(number, row[i]) for number, row in rows] for i in features]
    x = np.stack(read_columns(path, names, cells), axis=1)
    return x, np.array([row[label].strip() for _, row in rows]), names


def open_table(path: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Open a `.csv` file with a header.

    Returns:
        Names of the columns, and the rows that are not blank, each with its line number and as
        long as the header; they are read when asked for.

    Raises:
        InputError: If the file cannot be read, or has no header; later, if a row is not as long.
    """
    rows = _rows(path)
    first = next(rows, None)
    if first is None:
        raise InputError(f"Expected a header and rows in {path}, got blank lines alone.")
    header = [cell.strip() for cell in first[1]]
    for i, name in enumerate(header):
        if not name:
            raise InputError(
                f"Expected a name for every column of {path}, got none for column {i + 1} "
                f"(a saved row number, perhaps): name it or remove it."
            )
        if name in header[:i]:
            raise InputError(f"Expected different names of columns in {path}, got '{name}' twice.")
    return header, _checked_rows(path, len(header), rows)


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank, with their line numbers."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            first = next((line for line in file if line.strip()), "")
            first = re.sub(r'"[^"]*"', "", first)  # a name may hold what parts columns elsewhere
            file.seek(0)
            reader = csv.reader(file, delimiter=max(",;\t", key=first.count), strict=True)
            for row in reader:
                if any(cell.strip() for cell in row):
                    yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"Could not read {path}: it is damaged or no .csv file ({error})."
        ) from error


def _checked_rows(
    path: Path, width: int, rows: Iterator[tuple[int, list[str]]]
) -> Iterator[tuple[int, list[str]]]:
    for number, row in rows:
        if len(row) != width:
            raise InputError(
                f"Expected {width} values in line {number} of {path}, as in the header, "
                f"got {len(row)}."
            )
        yield number, row


def find_label_column(path: Path, header: Sequence[str], label_column: str | None) -> int:
    """Position of the column of labels: the one that is named, or one with a usual name."""
    if label_column is not None and label_column in header:
        return header.index(label_column)
    if label_column is None:
        usual = [name for name in header if name.lower() in LABEL_COLUMNS]
        if len(usual) > 1:
            raise InputError(
                f"Expected one column of labels in {path}, got {', '.join(usual)}: name it with "
                f"--label-column (label_column= in Python), and remove others that hold labels."
            )
        if usual:
            return header.index(usual[0])
    wanted = f"called '{label_column}'" if label_column else f"({', '.join(LABEL_COLUMNS)})"
    raise InputError(
        f"Expected a column of labels {wanted} in {path}, got the columns {', '.join(header)}: "
        f"name one with --label-column (label_column= in Python); the first line is the header."
    )


def read_columns(
    path: Path, names: Sequence[str], cells: Sequence[Sequence[tuple[int, str]]]
) -> list[Array]:
    """Convert columns, or say of all of them at once that they are no numbers throughout."""
    columns, errors = [], {}
    for name, column in zip(names, cells, strict=True):
        try:
            columns.append(read_column(path, name, column))
        except InputError as error:
            errors[name] = str(error)
    if errors:
        first, *others = errors
        more = f" Other columns with text or gaps: {', '.join(others)}." if others else ""
        raise InputError(errors[first] + more)
    return columns


def read_column(path: Path, name: str, cells: Sequence[tuple[int, str]]) -> Array:
    """Convert the cells of one column, given with their line numbers."""
    values = np.empty(len(cells))
    for i, (number, cell) in enumerate(cells):
        try:
            values[i] = float(cell) if cell.strip() else math.nan
        except ValueError:
            raise InputError(
                f"Expected numbers in column '{name}' of {path}, got '{cell}' in line {number}: "
                f"encode the column as numbers or remove it."
            ) from None
        if not math.isfinite(values[i]):
            raise InputError(
                f"Expected finite numbers in column '{name}' of {path}, got "
                f"{cell.strip() or 'an empty cell'} in line {number}: remove such rows or fill in "
                f"the values."
            )
    return values
