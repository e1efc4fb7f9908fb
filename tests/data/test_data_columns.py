"""Text, dates and missing values of a table become numbers, the same ones for new rows."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder

from jem.data import Scaling, from_arrays
from jem.data.columns import Column, decode, encode, fit_columns
from jem.errors import InputError
from jem.sampling.outliers import column_groups

RNG = np.random.default_rng(0)
N = 300
TABLE = pd.DataFrame(
    {
        "age": RNG.integers(18, 80, N).astype(float),
        "city": RNG.choice(["Oslo", "Rome", "Bern"], N),
        "joined": pd.date_range("2020-01-01", periods=N).strftime("%d.%m.%Y"),
        "member": RNG.choice([True, False], N),
        "shop": [f"shop {i % 25}" for i in range(N)],
        "name": [f"person {i}" for i in range(N)],
        "empty": [None] * N,
        "rare": [f"level {i // 2}" for i in range(N)],
    }
)
TABLE.loc[::10, "age"] = np.nan
TABLE.loc[5:29, "city"] = None
TABLE.loc[0, "city"] = "Atlantis"
LABELS = np.array(["no", "yes"] * (N // 2))
TRAIN = np.arange(200)
COLUMNS = fit_columns(TABLE, TRAIN)
BY_NAME = {column.name: column for column in COLUMNS}


def test_each_column_gets_what_suits_it():
    kinds = {name: column.kind for name, column in BY_NAME.items()}
    assert kinds == {
        "age": "number", "city": "one-hot", "joined": "date", "member": "number",
        "shop": "ordinal",
    }  # fmt: skip
    assert BY_NAME["age"].fill == TABLE["age"][TRAIN].median()
    assert set(BY_NAME["city"].levels) == {"Oslo", "Rome", "Bern", "missing"}  # one Atlantis


def test_numbers_and_categories_are_those_of_scikit_learn():
    x = encode(COLUMNS, TABLE)
    reference = SimpleImputer(strategy="median", add_indicator=True).fit(TABLE[["age"]][:200])
    np.testing.assert_array_equal(x[:, :2], reference.transform(TABLE[["age"]]))
    levels = [np.array(BY_NAME["city"].levels, dtype=object)]
    one_hot = OneHotEncoder(categories=levels, handle_unknown="ignore", sparse_output=False)
    text = TABLE[["city"]].astype(object).where(TABLE[["city"]].notna(), "missing")
    expected = one_hot.fit(text).transform(text)
    np.testing.assert_array_equal(x[:, 2:6], expected)
    np.testing.assert_array_equal(x[:, 6], 1 - expected.sum(axis=1))  # unknown: Atlantis


def test_dates_are_days_however_they_are_written():
    days = np.arange(N) + 18262.0  # 2020-01-01
    written = pd.to_datetime(TABLE["joined"], format="%d.%m.%Y")
    for values in (TABLE["joined"], written, written.dt.strftime("%Y-%m-%d"), written.dt.date):
        (column,) = fit_columns(pd.DataFrame({"joined": values}), TRAIN)
        np.testing.assert_array_equal(column.encode(values)[:, 0], days)


def test_rows_come_back_as_they_were():
    numbers = encode(COLUMNS, TABLE)[TRAIN]
    back = decode(COLUMNS, numbers)
    assert list(back) == ["age", "city", "joined", "member", "shop"]
    np.testing.assert_array_equal(encode(COLUMNS, back)[1:], numbers[1:])
    assert back["joined"][3] == "04.01.2020"


def test_a_level_is_one_whether_written_as_number_or_text():
    column = Column("grade", "one-hot", levels=("1", "True", "A"))
    values = pd.Series([1, 1.0, "1", " 1 ", "TRUE", True, "A "], dtype=object)
    assert column.encode(values).argmax(axis=1).tolist() == [0, 0, 0, 0, 1, 1, 2]


def test_a_scaling_keeps_what_was_done_and_does_it_to_new_rows():
    data = from_arrays(TABLE, LABELS)
    state = data.scaling.state_dict()
    scaling = Scaling.from_state_dict(state)
    assert scaling.encoding == data.scaling.encoding
    torch.testing.assert_close(scaling(TABLE), data.scaling(encode(scaling.encoding, TABLE)))
    assert data.columns == ("age",) * 2 + ("city",) * 5 + ("joined", "member") + ("shop",) * 2
    told = data.describe()
    assert "(text that differs in most rows, or no values): empty, name, rare" in told
    assert "city: 4 levels, one-hot, all others unknown" in told
    assert "joined: date (%d.%m.%Y), days since 1970" in told


def test_numbers_are_told_with_their_range_and_what_may_identify_rows_is_doubted():
    told = from_arrays(TABLE[["age"]].assign(zip=1067, row=range(N)), LABELS).describe()
    assert "identifiers or codes? Delete such columns: zip, row" in told
    assert "zip: number, 1067 to 1067" in told


def test_the_parts_of_a_column_are_one_column():
    data = from_arrays(TABLE, LABELS)
    groups = column_groups(data.train.x, data.columns)
    assert groups.tolist() == [0, 0, 1, 1, 1, 1, 1, 2, 3, 4, 4]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([*range(40), "tall"], "column 'a'. must hold numbers, got tall in row 40"),
        ([*range(40), np.inf], "column 'a'. must hold finite numbers, got inf in"),
        ([f"id {i}" for i in range(41)], "numbers or categories, got text that differs in most"),
    ],
)
def test_what_cannot_be_learned_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        from_arrays(pd.DataFrame({"a": values}), [0, 1] * 20 + [0])


def test_new_rows_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"\(city is missing\), got age"):
        encode([BY_NAME["city"]], TABLE[["age"]])
    with pytest.raises(InputError, match="none missing, got nan in row 3"):
        Column("a").encode(pd.Series([0.0, 1.0, 2.0, np.nan]))
    with pytest.raises(InputError, match="finite dates, none missing, got soon in row 0"):
        Column("a", "date", form="ISO8601").encode(pd.Series(["soon"]))


def test_drawn_rows_keep_whole_numbers_and_ranges():
    frame = pd.DataFrame({"count": [0, 1, 5, 2], "share": [0.0, 0.25, 1.0, 0.5]})
    columns = fit_columns(frame, np.arange(4))
    back = decode(columns, np.array([[-0.2, -0.2], [3.4, 0.3], [7.0, 1.2]]))
    assert back.to_numpy().tolist() == [[0.0, 0.0], [3.0, 0.3], [5.0, 1.0]]
    assert [Column.of(column.plain()) for column in columns] == list(columns)


def test_a_number_that_is_missing_where_training_missed_none_is_far_from_all():
    (column,) = fit_columns(pd.DataFrame({"count": [0, 1, 5, 2]}), np.arange(4))
    assert column.encode(pd.Series([3.0, np.nan]))[:, 0].tolist() == [3.0, 55.0]
