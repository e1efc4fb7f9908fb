"""What is done to each column of a table: text, dates and missing values become numbers."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from jem.checks import refuse

Array = npt.NDArray[Any]

LARGEST = np.finfo(np.float32).max
MOST_LEVELS = 20
"""Levels of a one-hot column; of more, the position is taken."""
RAREST = 3
"""Training rows that a level has at least; rarer ones teach a network nothing, and are unknown."""
TYPING_ERRORS = 0.1
"""Share of text below which a column is one of numbers with errors in it, which are refused."""
FAR = 10.0
"""Ranges above the greatest number at which a missing one stands, where training missed none."""
IDENTIFIER = re.compile(r"(^|[_ ])(id|code|zip|plz|zip_?code|post_?code)s?$", re.IGNORECASE)
"""Names of columns whose whole numbers are no quantities."""
BLANK = r"^\s*$"
"""Texts that are no value: what a data frame holds where a file had a blank among numbers."""
NO_VALUE = "missing"
"""The level of rows without a value."""
DATES = ("ISO8601", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y")
"""Ways to write a date, the first that fits every row."""


@dataclass(frozen=True)
class Column:
    """How a column of the user's table becomes numbers.

    Attributes:
        name: Its name.
        kind: `"number"`; `"date"`, days since 1970; `"one-hot"`, a number for each level and one
            for all that is no level; or `"ordinal"`, the position of the level and a number for
            what is none.
        fill: The median of the training part, where values are missing; a second number then says
            whether one was. None where the table has none missing.
        levels: Texts that it may hold, the most frequent first.
        form: How dates are written, one of `DATES`.
        low: Least number of the training part; None where it was not looked at.
        high: Greatest one.
        whole: Whether all of them are whole numbers.

    Example:
        >>> import pandas as pd
        >>> city = Column("city", "one-hot", levels=("Oslo", "Rome"))
        >>> city.encode(pd.Series(["Rome", "Nome"])).tolist()
        [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """

    name: str
    kind: Literal["number", "date", "one-hot", "ordinal"] = "number"
    fill: float | None = None
    levels: tuple[str, ...] = ()
    form: str = ""
    low: float | None = None
    high: float | None = None
    whole: bool = False

    @classmethod
    def fit(cls, values: pd.Series, train: Array) -> Self | None:
        """Choose by all rows, and take median and levels from the training part.

        Args:
            values: The column.
            train: Positions of training rows.

        Returns:
            What to do, or None for text that differs in most rows, such as names, and for a
            column without values in training: nothing can be learned of them.

        Raises:
            InputError: If a few values among numbers are text.
        """
        name = str(values.name)
        if values.iloc[train].isna().all():
            return None
        kind: Any = "number" if pd.api.types.is_numeric_dtype(values) else None
        form = ""
        if pd.api.types.is_datetime64_any_dtype(values):
            kind, form = "date", DATES[0]
        if kind is None:
            text = _text(values).dropna()
            wrong = pd.to_numeric(text, errors="coerce").isna()
            if 0 < wrong.mean() < TYPING_ERRORS:
                row = wrong.index[wrong.argmax()]
                remedy = "correct it, leave it empty or remove the column"
                refuse(f"column '{name}'", "hold numbers", f"{text[row]} in row {row}", remedy)
            if wrong.all():
                form = next((form for form in DATES if _times(text, form).notna().all()), "")
            kind = "date" if form else "number" if not wrong.any() else None
        if kind is not None:
            filled = values.isna().any()
            numbers = cls(name, kind, 0.0, form=form).encode(values.iloc[train])
            known = numbers[numbers[:, 1] == 0, 0]
            return cls(
                name,
                kind,
                float(np.median(known)) if filled else None,
                form=form,
                low=float(known.min()),
                high=float(known.max()),
                whole=bool((known == known.round()).all()),
            )
        counts = _text(values.iloc[train]).fillna(NO_VALUE).value_counts()
        counts = counts[counts >= RAREST]
        levels = tuple(sorted(counts.index, key=lambda level: (-counts[level], level)))
        if not levels or text.nunique() > max(MOST_LEVELS, len(text) / 2):
            return None
        return cls(name, "one-hot" if len(levels) <= MOST_LEVELS else "ordinal", levels=levels)

    @property
    def width(self) -> int:
        """How many numbers it becomes."""
        if self.kind == "one-hot":
            return len(self.levels) + 1
        return 1 + (self.kind == "ordinal" or self.fill is not None)

    def encode(self, values: pd.Series) -> Array:
        """Turn values into numbers, float64, shape (N, width).

        A number that is missing, where training missed none, becomes one far above all others, so
        that its row is foreign.

        Raises:
            InputError: If one is no finite number, or missing where the range is not known.
        """
        if self.kind in ("one-hot", "ordinal"):
            text = _text(values).fillna(NO_VALUE)
            position = pd.Index(self.levels, dtype=object).get_indexer(text.astype(object))
            if self.kind == "one-hot":
                parts: Array = np.eye(self.width)[position]  # -1, which is none, is the last
                return parts
            last = len(self.levels) - 1
            return np.column_stack([np.where(position < 0, last, position), position < 0])
        if self.kind == "number":
            numbers = pd.to_numeric(values, errors="coerce")
        else:
            since = _times(values, self.form) - pd.Timestamp(0, tz="UTC")
            numbers = since / pd.Timedelta(days=1)
        x: Array = numbers.to_numpy(np.float64, na_value=np.nan)
        fill = self.fill
        if fill is None and self.low is not None and self.high is not None:
            fill = self.high + FAR * max(self.high - self.low, 1.0)
        missing = values.isna().to_numpy() & (fill is not None)
        wrong = ~missing & ~(np.abs(x) <= LARGEST)
        if wrong.any():
            row = int(wrong.argmax())
            expected = f"hold finite {self.kind}s{', none missing' if fill is None else ''}"
            got = f"{values.iloc[row]} in row {values.index[row]}"
            refuse(f"column '{self.name}'", expected, got, "correct that row or remove it")
        x = np.where(missing, np.nan if fill is None else fill, x)
        return x[:, None] if self.fill is None else np.column_stack([x, missing])

    def decode(self, numbers: Array) -> Any:  # noqa: ANN401
        """Turn numbers (N, width) back into values, N of them: the nearest that training had."""
        if self.levels:
            one_hot = self.kind == "one-hot"
            chosen = numbers[:, :-1].argmax(1) if one_hot else np.rint(numbers[:, 0])
            position = chosen.clip(0, len(self.levels) - 1).astype(int)
            level = np.array(self.levels, object)[position]
            return np.where(level == NO_VALUE, None, level)
        values = pd.Series(numbers[:, 0]).clip(self.low, self.high)
        values = values.round() if self.whole else values
        if self.kind == "date":
            values = pd.to_datetime(values.round(), unit="D").dt.strftime(
                self.form.replace("ISO8601", "%Y-%m-%d")
            )
        return values if self.fill is None else values.mask(numbers[:, 1] > 0.5)

    def plain(self) -> dict[str, Any]:
        """Return plain values, from which `of` makes an equal column."""
        said = asdict(self).items()
        return {
            n: value for n, value in said if value not in (None, "", ()) and value is not False
        }

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild a column from its plain values."""
        return cls(**{**values, "levels": tuple(values.get("levels", ()))})

    def __str__(self) -> str:
        """Say what is done, in a few words."""
        done = f"{self.kind}, {self.low:g} to {self.high:g}" if self.low is not None else self.kind
        if self.kind == "date":
            done = f"date ({self.form}), days since 1970"
        elif self.levels:
            done = f"{len(self.levels)} levels, {self.kind}, all others unknown"
        if self.fill is not None:
            done += f", missing ones are {self.fill:.6g} with a flag"
        return f"{self.name}: {done}"


def fit_columns(frame: pd.DataFrame, train: Array) -> tuple[Column, ...]:
    """Choose what is done to each column; those of which nothing can be learned are left out.

    Args:
        frame: A table without labels.
        train: Positions of training rows.

    Raises:
        InputError: If a column cannot be used, or none is left.
    """
    names = [str(name) for name in frame.columns]
    for name in names:
        if names.count(name) > 1:
            refuse("columns", "have different names", f"'{name}' twice")
    frame = frame.replace(BLANK, np.nan, regex=True)
    fitted = [Column.fit(frame[name].rename(str(name)), train) for name in frame.columns]
    columns = tuple(column for column in fitted if column is not None)
    if not columns:
        got = f"text that differs in most rows, or nothing, in {', '.join(names)}"
        refuse("columns", "hold numbers or categories", got)
    return columns


def encode(columns: Sequence[Column], frame: pd.DataFrame) -> Array:
    """Turn a table into numbers; its other columns are left out.

    Args:
        columns: What is done to each, as in training.
        frame: Rows with these columns, in any order.

    Returns:
        float64, shape (N, D); D is the sum of their widths.

    Raises:
        InputError: If a column is missing, or holds what it cannot.
    """
    by_name = {str(name): name for name in getattr(frame, "columns", ())}
    if missing := [column.name for column in columns if column.name not in by_name]:
        expected = f"have the columns of the training data ({', '.join(missing)} is missing)"
        refuse("table", expected, ", ".join(by_name))
    frame = frame.replace(BLANK, np.nan, regex=True)
    return np.column_stack([column.encode(frame[by_name[column.name]]) for column in columns])


def decode(columns: Sequence[Column], numbers: Array) -> pd.DataFrame:
    """Turn numbers (N, D) back into a table that `encode` takes."""
    parts = np.split(numbers, np.cumsum([column.width for column in columns])[:-1], axis=1)
    return pd.DataFrame({c.name: c.decode(p) for c, p in zip(columns, parts, strict=True)})


def _times(values: pd.Series, form: str) -> pd.Series:

    return pd.to_datetime(values, format=form, errors="coerce", utc=True)


def _text(values: pd.Series) -> pd.Series:
    """Values as text: 1 and 1.0, and true and True, are one."""
    text = values.astype("string").str.strip().str.replace(r"(?<=\d)\.0$", "", regex=True)
    return text.replace({"TRUE": "True", "true": "True", "FALSE": "False", "false": "False"})
