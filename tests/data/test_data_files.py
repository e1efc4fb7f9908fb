import csv
import struct

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from jem.data import BatchStream, DataPart, LazyPart, load
from jem.data.files import load_file
from jem.data.image_files import open_image, pixels, upright_size
from jem.errors import InputError

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(40, 2)).round(3)
LABELS = np.array(["cat", "dog"] * 20)


def write_csv(path, header, rows, delimiter=","):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def table_rows():
    return [[*row, label] for row, label in zip(ROWS.tolist(), LABELS.tolist(), strict=True)]


def write_images(folder, classes=("cat", "dog"), count=8, size=(5, 4), mode="L"):
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
            pixels = RNG.integers(100 * number, 100 * number + 50, shape).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@pytest.mark.parametrize(("x_key", "y_key"), [("images", "labels"), ("x", "y")])
def test_npz_of_images(tmp_path, x_key, y_key):
    images = RNG.integers(0, 256, (40, 6, 5)).astype(np.uint8)
    np.savez(tmp_path / "mine.npz", **{x_key: images, y_key: LABELS})
    splits = load(tmp_path / "mine.npz")
    assert splits.name == "mine"
    assert splits.input_shape == (1, 6, 5)
    assert splits.classes == ("cat", "dog")
    assert len(splits.train) + len(splits.test) == 32


@pytest.mark.parametrize("key", ["x", "labels"])
def test_npz_of_python_objects_says_where_they_are(tmp_path, key):
    arrays = {"x": np.zeros((40, 2)), "labels": LABELS}
    arrays[key] = arrays[key].astype(object)
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=rf"under '{key}' in .*Python objects: .*astype\(str\)"):
        load(tmp_path / "a.npz")


def test_csv_with_label_column_anywhere(tmp_path):
    path = write_csv(tmp_path / "a.csv", ["age", "height", "Class"], table_rows())
    expected = load(path)
    moved = [[row[2], *row[:2]] for row in table_rows()]
    path = write_csv(tmp_path / "b.csv", ["animal", "age", "height"], moved, delimiter=";")
    splits = load(path, label_column="animal")
    assert splits.classes == ("cat", "dog")
    assert torch.equal(splits.train.x, expected.train.x)
    assert torch.equal(splits.train.y, expected.train.y)


def test_csv_says_of_all_columns_at_once_what_is_no_number(tmp_path):
    rows = [[f"id{i}", 1.0, "" if i == 3 else 2.0, "ab"[i % 2]] for i in range(20)]
    path = write_csv(tmp_path / "a.csv", ["id", "age", "height", "label"], rows)
    with pytest.raises(
        InputError, match=r"column 'id' .*'id0' in line 2.*text or gaps: height\.$"
    ):
        load(path)


def test_csv_keeps_the_names_of_its_columns(tmp_path):
    path = write_csv(
        tmp_path / "a.csv",
        ["age", "Class", "height"],
        [[age, animal, height] for age, height, animal in table_rows()],
    )
    assert load(path).columns == ("age", "height")
    assert load("iris").columns is None


def test_csv_values_reach_the_parts(tmp_path):
    path = write_csv(tmp_path / "a.csv", ["age", "height", "label"], table_rows())
    splits = load_file(path)
    raw = splits.scaling.invert(splits.test.x).numpy()
    for row, label in zip(raw, splits.test.y, strict=True):
        nearest = np.abs(ROWS - row).sum(1).argmin()
        np.testing.assert_allclose(ROWS[nearest], row, atol=1e-5)
        assert LABELS[nearest] == splits.classes[label]


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_folder_of_images(tmp_path, mode, channels):
    folder = write_images(tmp_path / "pets", mode=mode)
    (folder / ".cache").mkdir()
    (folder / "cat" / "notes.txt").write_text("not an image")
    splits = load(folder)
    assert splits.input_shape == (channels, 4, 5)
    assert splits.classes == ("cat", "dog")
    assert isinstance(splits.train, DataPart)
    brightness = splits.train.x.flatten(1).mean(1)
    assert (brightness[splits.train.y == 0] < -0.55).all()
    assert (brightness[splits.train.y == 1] > -0.25).all()


@pytest.mark.parametrize("memory_limit", [10**9, 100])
def test_images_of_several_sizes_are_brought_to_one(tmp_path, memory_limit):
    folder = write_images(tmp_path / "pets", size=(40, 40))
    left, right = np.zeros((20, 60), np.uint8), np.zeros((20, 60), np.uint8)
    left[:, :20], right[:, 20:40] = 255, 255  # the middle is what is kept of a wide image
    Image.fromarray(left).save(folder / "cat" / "wide.png")
    Image.fromarray(right).save(folder / "dog" / "wide.png")
    with pytest.raises(InputError, match=r"40 x 40 .* 60 x 20 .*--image-size"):
        load(folder)
    splits = load_file(folder, image_size=8, memory_limit=memory_limit)
    assert splits.input_shape == (1, 8, 8)
    parts = (splits.train, splits.validation, splits.calibration, splits.test)
    x, y = (torch.cat(tensors) for tensors in zip(*(part[:] for part in parts), strict=True))
    brightness = x.mean(dim=(1, 2, 3))
    assert brightness[y == 0].amin() < -0.95
    assert brightness[y == 1].amax() > 0.95
    with pytest.raises(InputError, match="folder of images to bring"):
        load(write_csv(tmp_path / "a.csv", ["p", "label"], [[1, "a"], [2, "b"]]), image_size=8)
    with pytest.raises(InputError, match="4 to 1024 pixels, got 2"):
        load(folder, image_size=2)


def test_an_option_of_another_kind_of_source_is_refused(tmp_path):
    folder = write_images(tmp_path / "pets")
    np.savez(tmp_path / "a.npz", x=np.zeros((8, 2)), y=np.arange(8) % 2)
    for source in ("iris", folder, tmp_path / "a.npz"):
        with pytest.raises(InputError, match=f"'kind' of labels, got {source}: leave out"):
            load(source, label_column="kind")
    with pytest.raises(InputError, match="got digits: leave out image_size"):
        load("digits", image_size=16)


def test_images_of_the_size_asked_for_stay_as_they_are(tmp_path):
    folder = write_images(tmp_path / "pets", size=(6, 6), mode="RGB")
    assert torch.equal(load(folder, image_size=6).train.x, load(folder).train.x)


def test_large_folder_stays_on_disk_and_gives_the_same(tmp_path):
    folder = write_images(tmp_path / "pets")
    memory, disk = load_file(folder), load_file(folder, memory_limit=100)
    assert isinstance(disk.train, LazyPart)
    assert torch.equal(disk.train[:][0], memory.train.x)
    assert torch.equal(disk.train.y, memory.train.y)
    assert "read from disk" in disk.describe()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_from_disk_equal_those_from_memory(tmp_path, num_workers):
    folder = write_images(tmp_path / "pets")
    batches = []
    for limit in (100, 10**9):
        part = load_file(folder, memory_limit=limit).train
        stream = BatchStream(part, 3, seed=1, name="b", num_workers=num_workers)
        batches.append(list(stream.epoch(2)))
    for (x, y), (x_memory, y_memory) in zip(*batches, strict=True):
        assert torch.equal(x, x_memory)
        assert torch.equal(y, y_memory)


def test_one_colour_image_makes_all_of_them_colour(tmp_path):
    folder = write_images(tmp_path / "pets")
    Image.new("RGB", (5, 4), "red").save(folder / "cat" / "red.png")
    assert load(folder).input_shape == (3, 4, 5)


def test_sizes_that_differ_name_both_files(tmp_path):
    folder = write_images(tmp_path / "pets")
    Image.new("L", (9, 4)).save(folder / "dog" / "wide.png")
    with pytest.raises(InputError, match=r"5 x 4 in .*0\.png and 9 x 4 in .*wide\.png"):
        load(folder)


def test_damaged_images_are_named(tmp_path):
    folder = write_images(tmp_path / "pets")
    whole = (folder / "dog" / "3.png").read_bytes()
    (folder / "dog" / "3.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"3\.png: it is damaged"):
        load(folder)
    (folder / "dog" / "3.png").write_bytes(whole[: len(whole) - 30])
    with pytest.raises(InputError, match=r"3\.png: it is damaged"):
        load(folder)


def test_several_damaged_images_are_named_at_once(tmp_path):
    folder = write_images(tmp_path / "pets")
    names = sorted(path for path in folder.rglob("*.png"))
    whole = names[1].read_bytes()
    names[1].write_bytes(whole[: len(whole) - 30])  # its header can be read
    names[3].write_bytes(whole[: len(whole) - 30])
    with pytest.raises(InputError, match="In all, 2 images are unusable: ") as caught:
        load(folder)
    assert f": {names[1]}, {names[3]}. Leave damaged images out with --skip" in str(caught.value)
    for path in names[2:8]:
        path.write_bytes(b"no image")
    with pytest.raises(InputError) as caught:
        load(folder)
    listed = ", ".join(str(path) for path in names[1:6])
    assert f"In all, 7 images are unusable: {listed}, .... Leave" in str(caught.value)
    assert str(caught.value).startswith(f"Could not read the image {names[1]}: it is damaged")


def damage(*paths):
    """Cut images off after their headers."""
    for path in paths:
        path.write_bytes(path.read_bytes()[:-30])


@pytest.mark.parametrize("memory_limit", [10**9, 100])
def test_damaged_images_are_left_out_when_asked_for(tmp_path, memory_limit):
    folder = write_images(tmp_path / "pets")
    names = sorted(folder.rglob("*.png"))
    damage(names[1], names[3])
    message = f"^2 of 16 images in {folder} are damaged and were left out: {names[1]}, {names[3]}$"
    with pytest.warns(UserWarning, match=message):
        skipped = load_file(folder, skip_damaged=True, memory_limit=memory_limit)
    names[1].unlink()
    names[3].unlink()
    removed = load_file(folder, skip_damaged=True)  # nothing is damaged, nothing is said
    assert torch.equal(skipped.train[:][0], removed.train.x)
    assert torch.equal(skipped.train.y, removed.train.y)


def test_what_leaving_damaged_images_out_cannot_mend(tmp_path):
    folder = write_images(tmp_path / "pets")
    damage(*(folder / "dog").iterdir())
    with (
        pytest.warns(UserWarning, match="8 of 16 images"),
        pytest.raises(InputError, match=r"class folder .*dog, got damaged ones alone: replace"),
    ):
        load(folder, skip_damaged=True)
    damage(*(folder / "cat").iterdir())
    with pytest.raises(InputError, match=r"Expected images in .*pets, got 16 that are damaged"):
        load(folder, skip_damaged=True)
    table = write_csv(tmp_path / "a.csv", ["p", "label"], [[1, "a"], [2, "b"]])
    with pytest.raises(InputError, match="leave out skip_damaged"):
        load(table, skip_damaged=True)
    deep = write_images(tmp_path / "deep")
    Image.fromarray(np.ones((4, 5), np.uint16)).save(deep / "dog" / "deep.png")
    with pytest.raises(InputError, match="8 bits a channel"):
        load(deep, skip_damaged=True)


def test_a_damaged_image_found_in_training_says_how_to_leave_it_out(tmp_path):
    folder = write_images(tmp_path / "pets")
    damage(*folder.rglob("*.png"))
    part = load_file(folder, memory_limit=100).train
    with pytest.raises(InputError, match=r"damaged .*--skip-damaged"):
        part[0]


def test_images_of_sixteen_bits_are_refused(tmp_path):
    folder = write_images(tmp_path / "pets")
    Image.fromarray(np.ones((4, 5), np.uint16)).save(folder / "dog" / "deep.png")
    with pytest.raises(InputError, match=r"8 bits a channel, got more in .*deep\.png"):
        load(folder)


def test_other_files_of_a_folder_are_counted(tmp_path):
    folder = write_images(tmp_path / "pets")
    assert "ignored" not in load(folder).describe()
    (folder / "dog" / "notes.txt").write_text("not an image")
    assert load(folder).describe().endswith("\n  1 other file was ignored")
    (folder / "readme.md").write_text("not an image")
    assert load(folder).describe().endswith("\n  2 other files were ignored")


def test_folders_that_are_no_classes(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="one subfolder of images for each class"):
        load(tmp_path / "empty")
    with pytest.raises(InputError, match="at least two classes, got only 'cat'"):
        load(write_images(tmp_path / "one", classes=["cat"]))
    write_images(tmp_path / "nested" / "train")
    with pytest.raises(InputError, match=r"give .*train itself"):
        load(tmp_path / "nested")


def test_npz_problems(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, images=ROWS)
    with pytest.raises(InputError, match=r"labels under the key 'labels' or 'y'.*keys images"):
        load(path)
    np.savez(path, data=ROWS, y=LABELS)
    with pytest.raises(InputError, match=r"inputs under the key 'images' or 'x'.*keys data, y"):
        load(path)
    np.savez(path, x=ROWS, y=LABELS[:9])
    with pytest.raises(InputError, match=r"a\.npz: .*40 inputs and 9 labels"):
        load(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="damaged"):
        load(path)
    np.savez_compressed(path, x=np.zeros((40, 500)), y=LABELS)
    broken = bytearray(path.read_bytes())
    broken[60:90] = bytes(30)
    path.write_bytes(broken)
    with pytest.raises(InputError, match="damaged"):
        load(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="got an empty file"):
        load(path)
    with open(path, "wb") as file:
        np.save(file, ROWS)
    with pytest.raises(InputError, match="single array"):
        load(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,c\n1,2,x\n", "column of labels .label, class, target, y.*columns a, b, c"),
        ("a,label\n1,x\ntall,y\n", "column 'a' of .*got 'tall' in line 3"),
        ("a,label\n1,x\n,y\n", "column 'a' .*an empty cell in line 3"),
        ("a,label\n1,x\n\nnan,y\n", "column 'a' .*got nan in line 4"),
        ("a,label\n1,x\ninf,y\n", "got inf in line 3"),
        ("a,label\n1,x\n2\n", "2 values in line 3 .*got 1"),
        ("a,label\n1,x\n2, \n", "label in line 3, column 'label' .*got none"),
        ("a,label\n1,NA\n2,NaN\n", "label in line 3, column 'label' .*got NaN"),
        ("y,a,Label\n1,2,x\n", "one column of labels .*got y, Label: name it with --label-col"),
        (",a,label\n0,1,x\n", "none for column 1 .a saved row number"),
        ("a,a,label\n0,1,x\n", "'a' twice"),
        ("label\nx\ny\n", "a column besides the labels"),
        ("a,label\n", "rows below the header"),
        ("\n \n", "blank lines alone"),
        ("a,label\n1,x\n2,x\n", "at least two classes, got only 'x'"),
        ("a,label\n1,x\n2,y\n", "at least 4 examples of every class"),
        ('a,label\n"1,x\n', "damaged"),
    ],
)
def test_csv_problems(tmp_path, text, message):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load(path)


def test_csv_that_is_no_text_or_lacks_the_column(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(bytes(range(128, 256)))
    with pytest.raises(InputError, match=r"damaged or no \.csv file"):
        load(path)
    path.write_text("a,label\n1,x\n")
    with pytest.raises(InputError, match=r"called 'kind'.*columns a, label.*--label-column"):
        load(path, label_column="kind")


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "a.xlsx"
    path.write_text("anything")
    with pytest.raises(InputError, match=r"an \.npz file, a \.csv file or a folder.*a\.xlsx"):
        load(path)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparent_ground_is_white(tmp_path, mode):
    rng = np.random.default_rng(0)
    channels = {"LA": 1, "RGBA": 3}[mode]
    covers = []
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for i in range(8):
            cover = rng.random((6, 6)) < 0.5
            covers.append(cover)
            pixels = np.zeros((6, 6, channels + 1), np.uint8)  # black where there is anything
            pixels[..., -1] = 255 * cover
            Image.fromarray(pixels, mode).save(tmp_path / label / f"{i}.png")
    splits = load_file(tmp_path)
    parts = (splits.train, splits.validation, splits.calibration, splits.test)
    x = torch.cat([part.x for part in parts])
    assert x.shape == (16, channels, 6, 6)
    found = {tuple((row[0] < 0).flatten().tolist()) for row in x}
    assert found == {tuple(cover.flatten().tolist()) for cover in covers}
    assert set(x.unique().tolist()) == {-1.0, 1.0}


def test_photographs_are_taken_as_the_camera_was_held(tmp_path):
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    for label in ("cat", "dog"):
        for kind in ("upright", "lying"):
            (tmp_path / kind / label).mkdir(parents=True)
        for i in range(8):
            upright = rng.integers(0, 256, (6, 4), np.uint8)
            Image.fromarray(upright).save(tmp_path / "upright" / label / f"{i}.png")
            exif[0x0112] = 6
            lying = Image.fromarray(np.rot90(upright).copy())
            lying.save(tmp_path / "lying" / label / f"{i}.png", exif=exif)
    for image_size in (None, 4):
        upright = load_file(tmp_path / "upright", image_size=image_size)
        lying = load_file(tmp_path / "lying", image_size=image_size)
        assert torch.equal(upright.train.x, lying.train.x)


def test_whatever_damages_an_image_it_can_be_left_out(tmp_path):
    folder = write_images(tmp_path / "pets")
    (folder / "cat" / "broken.ppm").write_bytes(b"P6\n8j8 8\n255\n" + bytes(192))
    with pytest.raises(InputError, match="it is damaged"):
        load_file(folder)
    with pytest.warns(UserWarning, match="1 of 17 images"):
        assert len(load_file(folder, skip_damaged=True).test) > 0


@pytest.mark.parametrize(
    "header", ['"length, cm";"width, cm";label', '"a;b;c;d",v,label', "\nu;v;label"]
)
def test_the_delimiter_is_that_of_the_names_not_one_in_them(tmp_path, header):
    mark = "," if "v,label" in header else ";"
    rows = [mark.join(["1.5", "2", "no" if i % 2 else "yes"]) for i in range(16)]
    rows[3] = rows[3].replace("1.5", "2.5")
    path = tmp_path / "a.csv"
    path.write_text("\n".join([header, *rows]))
    splits = load_file(path)
    assert splits.input_shape == (2,)
    assert splits.classes == ("no", "yes")


def test_an_odd_exif_block_does_not_cost_a_photograph(tmp_path):
    maker = struct.pack("<HHLL", 0x010F, 5, 1, 38)  # a maker that is a number, where text belongs
    held = struct.pack("<HHLHH", 0x0112, 3, 1, 6, 0)
    block = (
        b"Exif\0\0II*\0" + struct.pack("<LH", 8, 2) + maker + held + struct.pack("<LLL", 0, 1, 3)
    )
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for i in range(20):
            odd = bytearray(block)
            if i:
                odd[int(rng.integers(6, len(odd)))] = int(rng.integers(256))
            image = Image.fromarray(rng.integers(0, 256, (6, 6), np.uint8))
            image.save(tmp_path / label / f"{i}.jpg", exif=bytes(odd))
    assert load_file(tmp_path).input_shape == (1, 6, 6)


def test_every_way_to_hold_a_camera(tmp_path):
    upright = np.random.default_rng(0).integers(0, 256, (6, 4), np.uint8)
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.png"
        Image.fromarray(upright).save(path, exif=exif)
        with Image.open(path) as image:
            expected = np.asarray(ImageOps.exif_transpose(image))
        with open_image(path) as image:
            assert np.array_equal(pixels(path, image, "L"), expected)
            assert upright_size(image) == expected.shape[::-1]
