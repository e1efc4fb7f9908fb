"""Inputs read a batch at a time: the same numbers as in the file, or one line that says what."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

from jem.data.streams import stream_inputs
from jem.errors import InputError

RNG = np.random.default_rng(0)


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


# -- arrays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64", ">f4", "int64", "bool"])
@pytest.mark.parametrize(
    "stored", [(10, 5, 6), (10, 1, 5, 6), (10, 5, 6, 1), (4, 5, 6), (1, 5, 6)]
)
def test_npy_gives_what_numpy_gives(tmp_path, stored, dtype):
    x = RNG.integers(0, 2, stored).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    names, raw = read(tmp_path / "x.npy", (1, 5, 6))
    assert names == [str(i) for i in range(len(x))]
    np.testing.assert_array_equal(raw.reshape(x.shape), x)


@pytest.mark.parametrize("key", ["images", "x"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_is_unpacked_batch_by_batch(tmp_path, key, save):
    x = RNG.normal(size=(11, 3))
    save(tmp_path / "x.npz", labels=np.arange(11), **{key: x})
    names, raw = read(tmp_path / "x.npz", (3,))
    assert names == [str(i) for i in range(11)]
    np.testing.assert_array_equal(raw, x)


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
@pytest.mark.parametrize("shape", [(9, 3, 4, 5), (3, 4, 5)])
def test_fortran_order_is_read_rightly(tmp_path, name, shape):
    x = np.asfortranarray(RNG.normal(size=shape))
    np.save(tmp_path / name, x) if name == "x.npy" else np.savez(tmp_path / name, x=x)
    _, raw = read(tmp_path / name, (3, 4, 5))
    np.testing.assert_array_equal(raw, x.reshape(-1, 3, 4, 5))


@pytest.mark.parametrize(
    ("stored", "shape"),
    [
        ((5,), (5,)),
        ((5, 6), (1, 5, 6)),
        ((1, 5, 6), (1, 5, 6)),
        ((5, 6, 3), (3, 5, 6)),
        ((3, 5, 6), (3, 5, 6)),
    ],
)
def test_a_single_input_is_a_batch_of_one(tmp_path, stored, shape):
    x = RNG.normal(size=stored)
    np.save(tmp_path / "x.npy", x)
    names, raw = read(tmp_path / "x.npy", shape)
    assert names == ["0"]
    assert len(raw) == 1
    np.testing.assert_array_equal(raw.ravel(), x.ravel())


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_memory_is_that_of_a_batch(tmp_path, name):
    x = np.zeros((4000, 64))  # 2 MB
    np.save(tmp_path / name, x) if name == "x.npy" else np.savez_compressed(tmp_path / name, x=x)
    tracemalloc.start()
    stream = stream_inputs(tmp_path / name, (64,), batch_size=100)
    assert sum(len(raw) for _, raw in stream.batches) == 4000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < x.nbytes / 4


def test_array_problems_are_named(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((7, 4)))
    message = refused(path, (1, 5, 6))
    assert "(N, 1, 5, 6) or (N, 5, 6, 1) or (N, 5, 6), N > 0" in message
    assert "x.npy, got (7, 4)" in message
    assert "(N, 3), N > 0" in refused(path, (3,))
    np.save(path, np.zeros((0, 3)))
    assert "got (0, 3)" in refused(path, (3,))
    np.save(path, np.float64(1))
    assert "got ()" in refused(path, (3,))
    x = np.zeros((10, 3))
    x[7, 1] = np.nan
    np.save(path, x)
    assert "got nan in row 7, position (1)" in refused(path, (3,))
    x[7, 1] = np.inf
    np.savez(tmp_path / "x.npz", x=x)
    assert "x.npz, got inf in row 7" in refused(tmp_path / "x.npz", (3,))
    np.save(path, x.astype(str))
    assert "Expected numbers in" in refused(path, (3,))
    np.save(path, x.astype(complex))
    assert "values of type complex128" in refused(path, (3,))
    np.save(path, np.array([[1, None]]), allow_pickle=True)
    assert "Python objects" in refused(path, (2,))
    np.save(path, np.zeros(3, [("a", float), ("ü", float)]))
    assert "x.npy" in refused(path, (3,))


def test_damaged_arrays_are_named(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((10, 3)))
    whole = path.read_bytes()
    for content in (whole[:20], b"", b"no array at all", b"\x93NUMPY\x09\x00" + whole[8:]):
        path.write_bytes(content)
        assert "x.npy" in refused(path, (3,))
    path.write_bytes(whole[:-50])
    assert "it is cut off" in refused(path, (3,))
    path = tmp_path / "x.npz"
    np.savez_compressed(path, x=RNG.normal(size=(1000, 3)))
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert "damaged or no .npz file" in refused(path, (3,))
    broken = bytearray(whole)
    broken[2000:2100] = bytes(100)
    path.write_bytes(broken)
    assert "x.npz" in refused(path, (3,))  # numbers may come out before the damage is noticed
    np.savez(path, data=np.zeros(3))
    assert "under the key 'images' or 'x'" in refused(path, (3,))
    held = io.BytesIO()
    np.save(held, np.zeros((9, 3)))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", held.getvalue()[:-10])
    assert "it is cut off" in refused(path, (3,))


# -- tables ---------------------------------------------------------------------------------------


def test_table_leaves_labels_out(tmp_path):
    rows = RNG.normal(size=(9, 2)).round(3)
    path = tmp_path / "a.csv"
    lines = [f"{a};cat;{b}" for a, b in rows]
    for header, options in (("a;kind;b", {"label_column": "kind"}), ("a;Class;b", {})):
        path.write_text("\n".join([header, *lines[:4], "", *lines[4:]]))
        names, raw = read(path, (2,), **options)
        assert names == [str(i) for i in range(9)]
        np.testing.assert_array_equal(raw, rows)


def test_table_without_labels_may_name_a_column_like_one(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("x,y\n1,2\n3,4\n")
    for options in ({}, {"label_column": "kind"}):  # the run's column of labels is not there
        np.testing.assert_array_equal(read(path, (2,), **options)[1], [[1, 2], [3, 4]])


def test_columns_of_a_table_are_found_by_name(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id,b,label,a\nx1,1,cat,2\nx2,3,dog,4\n")
    np.testing.assert_array_equal(read(path, (2,), columns=["a", "b"])[1], [[2, 1], [4, 3]])
    assert "none called c: the header has id, b, label, a" in refused(
        path, (2,), columns=["a", "c"]
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3,tall\n", "column 'b' of .*got 'tall' in line 3"),
        ("a,b\n1,2\n\n,4\n", "column 'a' .*an empty cell in line 4"),
        ("a,b\n1,2\n3,nan\n", "column 'b' .*got nan in line 3"),
        ("a,b\n1,2\n3,4,5\n", "2 values in line 3 .*got 3"),
        ("a,b\n", "rows below the header"),
        ("\n\n", "blank lines alone"),
        ("1,2\n3,4\n", "names of columns in the first line"),
        ("a,b,c\n1,2,3\n", "column of labels"),
        ("a,b,c,label\n1,2,3,x\n", "2 columns of numbers .*got a, b, c, label"),
        ("a\n1\n", "2 columns of numbers .*got a"),
        ("a,kind\n1,2\n", "2 columns of numbers"),  # a column is missing, and one is of labels
        ('a,b\n1,2\n"3,4\n', "damaged"),
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
    with pytest.raises(InputError, match="'x' in line 12"):
        next(batches)
    assert "images of 1 x 5 x 6" in refused(path, (1, 5, 6))


# -- images ---------------------------------------------------------------------------------------


def picture(mode="L", size=(6, 5)):
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    return RNG.integers(0, 256, shape).astype(np.uint8)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.mark.parametrize(("mode", "shape"), [("L", (1, 5, 6)), ("RGB", (3, 5, 6))])
def test_folder_is_read_with_its_subfolders_in_order(tmp_path, mode, shape):
    names = ["b.png", "a.PNG", "z/2.bmp", "z/deep/er/1.png", "c/1.png", ".hidden.png", ".h/1.png"]
    pixels = {name: save(tmp_path / "in" / name, picture(mode)) for name in names}
    (tmp_path / "in" / "notes.txt").write_text("no image")
    (tmp_path / "in" / "z" / "loop").symlink_to(tmp_path / "in")
    found, raw = read(tmp_path / "in", shape, batch_size=2)
    assert found == ["a.PNG", "b.png", "c/1.png", "z/2.bmp", "z/deep/er/1.png"]
    for name, image in zip(found, raw, strict=True):
        np.testing.assert_array_equal(image.squeeze(), pixels[name])
    assert stream_inputs(tmp_path / "in", shape, batch_size=2).from_images


def test_a_linked_folder_is_read_too(tmp_path):
    save(tmp_path / "elsewhere" / "1.png", picture())
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    assert read(tmp_path / "in", (1, 5, 6))[0] == ["link/1.png"]


def test_single_image_has_its_name(tmp_path):
    pixels = save(tmp_path / "one.png", picture())
    names, raw = read(tmp_path / "one.png", (1, 5, 6))
    assert names == ["one.png"]
    np.testing.assert_array_equal(raw[0, :, :, 0], pixels)


def test_grey_stored_as_colour_is_grey_and_grey_becomes_colour(tmp_path):
    pixels = picture()
    Image.fromarray(np.stack([pixels] * 3, axis=2)).save(tmp_path / "g.png")
    np.testing.assert_array_equal(read(tmp_path / "g.png", (1, 5, 6))[1][0, :, :, 0], pixels)
    save(tmp_path / "g.png", pixels)
    assert (read(tmp_path / "g.png", (3, 5, 6))[1] == pixels[None, :, :, None]).all()


def test_image_problems_name_the_file(tmp_path):
    save(tmp_path / "in" / "a.png", picture())
    path = tmp_path / "in" / "b" / "c.png"
    save(path, picture(size=(7, 5)))
    assert "6 x 5, as in training, got 7 x 5 in" in refused(tmp_path / "in", (1, 5, 6))
    save(path, picture("RGB"))
    assert "grey images, as in training, got colours in" in refused(tmp_path / "in", (1, 5, 6))
    Image.fromarray(np.ones((5, 6), np.uint16)).save(path)
    assert "8 bits a channel" in refused(tmp_path / "in", (1, 5, 6))
    whole = (tmp_path / "in" / "a.png").read_bytes()
    for content in (b"no image", whole[: len(whole) - 30], b""):
        path.write_bytes(content)
        message = refused(tmp_path / "in", (1, 5, 6))
        assert "damaged" in message
        assert "c.png" in message
    assert "4 x 5 x 6, as in training, got images" in refused(tmp_path / "in", (4, 5, 6))
    assert "2, as in training, got images" in refused(path, (2,))


def test_several_unusable_images_are_named_at_once(tmp_path):
    for number in range(9):
        save(tmp_path / "in" / f"{number}.png", picture())
    for number in (1, 4):
        (tmp_path / "in" / f"{number}.png").write_bytes(b"no image")
    save(tmp_path / "in" / "8.png", picture(size=(7, 5)))
    message = refused(tmp_path / "in", (1, 5, 6), batch_size=3)  # 4 and 8 are in other batches
    assert message.startswith(f"Could not read the image {tmp_path / 'in' / '1.png'}")
    listed = ", ".join(str(tmp_path / "in" / f"{number}.png") for number in (1, 4, 8))
    assert f" In all, 3 images are unusable: {listed}. Leave damaged images out" in message
    (tmp_path / "in" / "4.png").unlink()
    (tmp_path / "in" / "8.png").unlink()
    assert "In all" not in refused(tmp_path / "in", (1, 5, 6), batch_size=3)


def test_damaged_images_are_left_out_when_asked_for(tmp_path):
    for number in range(9):
        save(tmp_path / "in" / f"{number}.png", picture())
    for number in (1, 4, 8):
        (tmp_path / "in" / f"{number}.png").write_bytes(b"no image")
    stream = stream_inputs(tmp_path / "in", (1, 5, 6), batch_size=4, skip_damaged=True)
    with pytest.warns(UserWarning, match="3 of 9 images in .*1.png, .*4.png, .*8.png"):
        batches = list(stream.batches)
    assert [names for names, _ in batches] == [
        ["0.png", "2.png", "3.png", "5.png"], ["6.png", "7.png"]
    ]  # fmt: skip
    for path in (tmp_path / "in").iterdir():
        path.write_bytes(b"no image")
    assert "got 9 that are damaged" in refused(tmp_path / "in", (1, 5, 6), skip_damaged=True)


def test_what_cannot_be_read_is_refused(tmp_path):
    assert "found nothing at" in refused(tmp_path / "gone.npy", (3,))
    assert "found nothing at" in refused(tmp_path / "gone.png", (1, 5, 6))
    (tmp_path / "empty").mkdir()
    assert "Expected images (.png" in refused(tmp_path / "empty", (1, 5, 6))
    (tmp_path / "a.txt").write_text("1 2")
    assert "an .npy, .npz or .csv file, an image or a folder" in refused(tmp_path / "a.txt", (2,))
    np.save(tmp_path / "x.npy", np.zeros((3, 2)))
    assert "batch size of at least 1" in refused(tmp_path / "x.npy", (2,), batch_size=0)


def test_columns_whose_names_are_numbers_are_found_by_name(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("1,0\n10,20\n")
    ((_, raw),) = stream_inputs(path, (2,), batch_size=4, columns=["0", "1"]).batches
    assert raw.tolist() == [[20.0, 10.0]]
    with pytest.raises(InputError, match="names of columns"):
        stream_inputs(path, (2,), batch_size=4)


def test_an_image_is_scored_as_the_camera_was_held(tmp_path):
    lying = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    lying.save(tmp_path / "a.png", exif=exif)
    ((_, raw),) = stream_inputs(tmp_path / "a.png", (1, 6, 4), batch_size=1).batches
    assert np.array_equal(raw[0, :, :, 0], np.rot90(np.asarray(lying), -1))
    with pytest.raises(InputError, match="of 6 x 4, as in training, got 4 x 6"):
        list(stream_inputs(tmp_path / "a.png", (1, 4, 6), batch_size=1).batches)
