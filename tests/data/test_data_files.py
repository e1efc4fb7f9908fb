"""Files of arrays and tables: the numbers that stand in them, whole or a batch at a time."""

import csv
import gc
import tracemalloc

import numpy as np
import pytest
import torch

from jem.data import load
from jem.data.columns import Column
from jem.data.files import stream_inputs
from jem.errors import InputError

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(40, 2)).round(3)
A, B = Column("a"), Column("b")
LABELS = np.array(["cat", "dog"] * 20)
TABLE = [[*row, label] for row, label in zip(ROWS.tolist(), LABELS.tolist(), strict=True)]


def write_csv(path, header, rows, delimiter=","):
    with open(path, "w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return path


def read(path, shape, batch_size=4, **options):
    """All names and raw inputs of a file."""
    stream = stream_inputs(path, shape, batch_size=batch_size, **options)
    names, parts = zip(*stream.batches, strict=True)
    assert [len(part) for part in parts[:-1]] == [batch_size] * (len(parts) - 1)
    assert [len(part) for part in names] == [len(part) for part in parts]
    names, raw = [name for part in names for name in part], np.concatenate(parts)
    assert stream.total in (None, len(raw))
    return names, raw


def refused(path, shape, **options):
    with pytest.raises(InputError) as caught:
        read(path, shape, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- arrays to train on ---------------------------------------------------------------------------


def test_npz_of_python_objects_runs_no_code(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((40, 2)), labels=LABELS.astype(object))
    with pytest.raises(InputError, match=r"Python objects: .*astype\(str\)"):
        load(tmp_path / "a.npz")


def test_npz_problems(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, images=ROWS)
    with pytest.raises(InputError, match=r"'labels' or 'y', got the keys images"):
        load(path)
    np.savez(path, x=ROWS, y=LABELS[:9])
    with pytest.raises(InputError, match=r"a\.npz: `y` .*\(40,\), got \(9,\)"):
        load(path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no archive"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"a\.npz.* damaged") as caught:
            load(path)
        assert "allow_pickle" not in str(caught.value)
    (tmp_path / "a.xlsx").write_text("anything")
    with pytest.raises(InputError, match=r"a\.xlsx.* an \.npz file, a \.csv file or a folder"):
        load(tmp_path / "a.xlsx")


def test_an_option_of_another_kind_of_source_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((8, 2)), y=np.arange(8) % 2)
    table = write_csv(tmp_path / "a.csv", ["a", "b", "label"], TABLE)
    for source, name, value in (
        ("iris", "label_column", "kind"), (tmp_path, "label_column", "kind"),
        (tmp_path / "a.npz", "label_column", "kind"), ("digits", "image_size", 16),
        (table, "skip_damaged", True),
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"`{name}` must be given only"):
            load(source, **{name: value})


# -- tables to train on ---------------------------------------------------------------------------


def test_csv_values_reach_the_parts_with_their_labels_and_names(tmp_path):
    splits = load(write_csv(tmp_path / "a.csv", ["age", "height", "label"], TABLE))
    assert splits.columns == ("age", "height")
    raw = splits.scaling.invert(splits.test.x).numpy()
    for row, label in zip(raw, splits.test.y, strict=True):
        nearest = np.abs(ROWS - row).sum(1).argmin()
        np.testing.assert_allclose(ROWS[nearest], row, atol=1e-5)
        assert LABELS[nearest] == splits.classes[label]
    assert load("iris").columns is None


def test_csv_with_label_column_anywhere(tmp_path):
    expected = load(write_csv(tmp_path / "a.csv", ["age", "height", "Class"], TABLE))
    moved = [[row[2], *row[:2]] for row in TABLE]
    path = write_csv(tmp_path / "b.csv", ["animal", "age", "height"], moved, delimiter=";")
    splits = load(path, label_column="animal")
    assert splits.classes == ("cat", "dog")
    assert torch.equal(splits.train.x, expected.train.x)
    assert torch.equal(splits.train.y, expected.train.y)


def test_labels_that_are_numbers_are_sorted_as_numbers_and_1_is_1_0(tmp_path):
    labels = ["10", "9", "2", "2.0"] * 10
    path = write_csv(tmp_path / "a.csv", ["a", "label"], zip(range(40), labels, strict=True))
    assert load(path).classes == ("2", "9", "10")


@pytest.mark.parametrize(
    "header", ['"length, cm";"width, cm";label', '"a;b;c;d",v,label', "\nu;v;label"]
)
def test_the_delimiter_is_that_of_the_names_not_one_in_them(tmp_path, header):
    mark = "," if "v,label" in header else ";"
    rows = [mark.join([str(1.5 + i), "2", "no" if i % 2 else "yes"]) for i in range(16)]
    (tmp_path / "a.csv").write_text("\n".join([header, *rows]))
    splits = load(tmp_path / "a.csv")
    assert (splits.input_shape, splits.classes) == ((2,), ("no", "yes"))


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("sep=;\ngröße;b;label\n0.5;2;Bär\n", "utf-8"),  # Excel's own first line
        ("größe;b;label\n0,5;2;Bär\n", "cp1252"),
        ("größe\tb\tlabel\n0.5\t2\tBär\n", "utf-16"),
        ("größe|b|label\n0.5|2|Bär\n", "utf-8-sig"),
        ('größe;b;label\n"0,5";2;"Bär"\n', "utf-8"),
    ],
)
def test_a_table_is_read_as_other_programs_write_it(tmp_path, text, encoding):
    head, row = text.rstrip("\n").rsplit("\n", 1)
    lines = [head, *[row] * 8, *[row.replace("Bär", "Uhu")] * 8]
    (tmp_path / "a.csv").write_bytes("\n".join(lines).encode(encoding))
    splits = load(tmp_path / "a.csv")
    assert (splits.columns, splits.classes) == (("größe", "b"), ("Bär", "Uhu"))
    assert splits.scaling.invert(splits.test.x)[0].tolist() == [0.5, 2.0]


@pytest.mark.parametrize("mark", ["", "NA", "?", "None", "nan"])
def test_rows_without_a_label_are_left_out_and_counted(tmp_path, mark):
    path = write_csv(tmp_path / "a.csv", ["a", "b", "label"], [*TABLE, [1, 2, mark], [3, 4, mark]])
    splits = load(path)
    assert (splits.classes, len(splits.train)) == (("cat", "dog"), 24)
    assert splits.notes == ("a.csv: 42 rows read; left out: 2 without a label in column 'label'",)
    assert splits.notes[0] in splits.describe()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,c\n1,2,x\n", "one column of labels.*columns a, b, c: .*--label-column"),
        ("a,label\n" + "1,x\n2,y\n" * 9 + "tall,y\n", "column 'a'.*, got tall in row 18"),
        ("a,label\n1,x\n1,y\ninf,x\n" + "2,x\n2,y\n" * 9, "column 'a'.*, got inf in row 2"),
        ("a,label\n1,x\n2,y,3\n", "damaged"),
        ("a;label\n1,5;x\n1.5;y\n", "one decimal mark, got 1.5 and 1,5"),
        ("x,y,colour\n1,0.5,2\n", "quantities such as 0.5: .*--label-column"),
        (",a,label\n0,1,x\n", "a row number that was saved"),
        ("a,a,label\n0,1,x\n", "'a' twice"),
        ("a,label\n", "rows below the header"),
        ('a,label\n"1,x\n', "damaged"),
        (bytes(range(128, 256)), "damaged"),
    ],
)
def test_csv_problems(tmp_path, text, message):
    path = tmp_path / "a.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message):
        load(path)


def test_a_table_takes_a_few_times_its_size_of_memory(tmp_path):
    values = RNG.normal(size=(20_000, 30)).round(6)
    path = tmp_path / "a.csv"
    header = ",".join([*(f"c{j}" for j in range(30)), "label"])
    rows = np.column_stack([values, np.arange(20_000) % 2])
    np.savetxt(path, rows, "%.6g", ",", header=header, comments="")
    tracemalloc.start()
    splits = load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(splits.train) > 10_000
    assert peak < 6 * path.stat().st_size


# -- arrays, a batch at a time --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "float32", ">f4", "int64", "bool"])
@pytest.mark.parametrize("stored", [(10, 5, 6), (10, 1, 5, 6), (10, 5, 6, 1), (1, 5, 6)])
@pytest.mark.parametrize("save", [np.save, np.savez, np.savez_compressed])
def test_arrays_give_what_numpy_gives(tmp_path, stored, dtype, save):
    x = RNG.integers(0, 2, stored).astype(dtype, order="F" if dtype == "int64" else "C")
    path = tmp_path / ("x.npy" if save is np.save else "x.npz")
    save(path, x) if save is np.save else save(path, labels=np.arange(11), x=x)
    names, raw = read(path, (1, 5, 6))
    assert names == [str(i) for i in range(len(x))]
    np.testing.assert_array_equal(raw.reshape(x.shape), x)


@pytest.mark.parametrize("name", ["x.npy", "x.csv"])
def test_memory_is_that_of_a_batch(tmp_path, name):
    x = np.zeros((4000, 64))  # 2 MB
    if name == "x.npy":
        np.save(tmp_path / name, x)
    else:
        write_csv(tmp_path / name, [f"c{i}" for i in range(64)], x)
    tracemalloc.start()
    stream = stream_inputs(tmp_path / name, (64,), batch_size=100)
    assert sum(len(raw) for _, raw in stream.batches) == 4000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < x.nbytes / 2


def with_value(value):
    x = np.zeros((10, 3))
    x[7, 1] = value
    return x


@pytest.mark.parametrize(
    ("x", "shape", "message"),
    [
        (np.zeros((7, 4)), (1, 5, 6), "(N, 1, 5, 6) or (N, 5, 6, 1) or (N, 5, 6) with N > 0, got"),
        (with_value(np.nan), (3,), "got nan in row 7, position (1,)"),
        (with_value(1e39), (3,), "got 1e+39 in row 7"),
        (with_value(1).astype(str), (3,), "must hold numbers"),
    ],
)
def test_array_problems_are_named(tmp_path, x, shape, message):
    np.save(tmp_path / "x.npy", x, allow_pickle=True)
    np.savez(tmp_path / "x.npz", x=x)
    for name in ("x.npy", "x.npz"):
        found = refused(tmp_path / name, shape)
        assert message in found
        assert name in found


@pytest.mark.filterwarnings(
    "error::ResourceWarning", "error::pytest.PytestUnraisableExceptionWarning"
)
def test_damaged_arrays_are_named_and_closed(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((10, 3)))
    whole = path.read_bytes()
    for content in (whole[:20], b"", b"\x93NUMPY\x09\x00" + whole[8:]):
        path.write_bytes(content)
        assert "x.npy" in refused(path, (3,))
    path.write_bytes(whole[:-50])
    assert "x.npy` must be a whole .npy file" in refused(path, (3,))
    path = tmp_path / "x.npz"
    np.savez_compressed(path, x=RNG.normal(size=(1000, 3)))
    archive = path.read_bytes()
    path.write_bytes(archive[:-100])
    assert "x.npz` must be a whole .npz file" in refused(path, (3,))
    broken = bytearray(archive)
    broken[2000:2100] = bytes(100)
    path.write_bytes(broken)
    assert "x.npz" in refused(path, (3,))
    np.savez(path, data=np.zeros(3))
    assert "under 'images' or 'x'" in refused(path, (3,))
    gc.collect()  # a file that is left open warns when it goes


def test_what_cannot_be_read_is_refused(tmp_path):
    assert "gone.npy` must be a file or a folder, got no such path" in refused(
        tmp_path / "gone.npy", (3,)
    )
    (tmp_path / "a.txt").write_text("1 2")
    assert "an .npy, .npz or .csv file" in refused(tmp_path / "a.txt", (2,))
    np.save(tmp_path / "x.npy", np.zeros((3, 2)))
    assert "`batch_size` must" in refused(tmp_path / "x.npy", (2,), batch_size=0)


# -- tables, a batch at a time --------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "label_column"), [("kind", "kind"), ("Class", None)])
def test_table_leaves_labels_out(tmp_path, kind, label_column):
    rows = RNG.normal(size=(9, 2)).round(3)
    lines = [f"{a};cat;{b}" for a, b in rows]
    text = "\n".join([f"a;{kind};b", *lines[:4], "", *lines[4:]])
    (tmp_path / "a.csv").write_text(text)
    names, raw = read(tmp_path / "a.csv", (2,), label_column=label_column)
    assert names == [str(i) for i in range(9)]
    np.testing.assert_array_equal(raw, rows)


def test_table_without_labels_may_name_a_column_like_one(tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n1,2\n3,4\n")
    for options in ({}, {"label_column": "kind"}):  # the run's column of labels is not there
        raw = read(tmp_path / "a.csv", (2,), **options)[1]
        np.testing.assert_array_equal(raw, [[1, 2], [3, 4]])


def test_columns_of_a_table_are_found_by_name(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id,b,label,a\nx1,1,cat,2\nx2,3,dog,4\n")
    np.testing.assert_array_equal(read(path, (2,), columns=[A, B])[1], [[2, 1], [4, 3]])
    assert "(c is missing), got id, b, label, a" in refused(path, (2,), columns=[A, Column("c")])
    assert "`label_column` must" in refused(path, (2,), columns=[A, B], label_column="a")
    path.write_text("1,0\n10,20\n")
    assert read(path, (2,), columns=[Column("0"), Column("1")])[1].tolist() == [[20.0, 10.0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3,tall\n", "column 'b'.*, got tall in row 1"),
        ("1,2\n3,4\n", "names of columns in its first line"),
        ("a,b,c,label\n1,2,3,x\n", "2 columns .*got a, b, c, label"),
        ("a,kind\n1,2\n", "2 columns .*got a, kind"),  # a column is missing, one is of labels
    ],
)
def test_table_problems_are_named(tmp_path, text, message):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read(path, (2,), label_column="kind" if "kind" in text else None)


def test_a_bad_row_is_met_where_it_stands(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,b\n" + "1,2\n" * 10 + "1,x\n")
    batches = stream_inputs(path, (2,), batch_size=4).batches
    assert [len(next(batches)[0]) for _ in range(2)] == [4, 4]
    with pytest.raises(InputError, match="x in row 10"):
        next(batches)
    assert "images of shape (1, 5, 6) as in training, got a table" in refused(path, (1, 5, 6))
