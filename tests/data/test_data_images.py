"""Image files and folders of them: pixels, classes, parts, and what cannot be used."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.datasets import ImageFolder

from jem.data import DataPart, LazyPart, load
from jem.data.files import stream_inputs
from jem.data.images import load_image
from jem.data.splits import PART_NAMES
from jem.errors import InputError

RNG = np.random.default_rng(0)


def save(path, size=(5, 4), mode="L", low=0, high=256, **options):
    """Write an image of random pixels, and return them."""
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    pixels = RNG.integers(low, high, shape).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return pixels


def write_folder(folder, classes=("cat", "dog"), count=8, size=(5, 4), mode="L"):
    """Images of one class a subfolder, each class brighter than the one before."""
    for number, name in enumerate(classes):
        for i in range(count):
            low = 100 * (number % 2)
            save(folder / name / f"{i}.png", size, mode, low, low + 50)
    return folder


def damage(*paths):
    """Cut images off after their headers."""
    for path in paths:
        path.write_bytes(path.read_bytes()[:-30])


def everything(splits):
    parts = [getattr(splits, name)[:] for name in PART_NAMES if len(getattr(splits, name))]
    return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))


def read(path, shape=(1, 4, 5), **options):
    stream = stream_inputs(path, shape, batch_size=4, **options)
    assert stream.from_images
    batches = list(stream.batches)
    return [name for names, _ in batches for name in names], np.concatenate(
        [x for _, x in batches]
    )


# -- folders to train on --------------------------------------------------------------------------


def test_folder_of_images_of_which_one_in_colour_makes_all_of_them_colour(tmp_path):
    folder = write_folder(tmp_path / "pets")
    (folder / ".cache").mkdir()
    splits = load(folder)
    assert (splits.name, splits.input_shape) == ("pets", (1, 4, 5))
    assert splits.classes == ("cat", "dog")
    assert isinstance(splits.train, DataPart)
    brightness = splits.train.x.flatten(1).mean(1)
    assert (brightness[splits.train.y == 0] < -0.55).all()
    assert (brightness[splits.train.y == 1] > -0.25).all()
    for part in splits.parts.values():
        again = [
            splits.scaling(np.asarray(Image.open(file))[:, :, None])[0] for file in part.sources
        ]
        assert torch.equal(torch.stack(again), part[:][0])
    save(folder / "cat" / "red.png", mode="RGB")
    assert load(folder).input_shape == (3, 4, 5)


def test_classes_and_images_are_those_of_image_folder(tmp_path):
    folder = write_folder(tmp_path / "in", classes=[str(k) for k in range(1, 13)], count=4)
    save(folder / "3" / "more" / "nested.JPG")
    theirs = ImageFolder(folder)
    splits = load(folder)
    assert splits.classes == tuple(theirs.classes)
    assert splits.classes[:4] == ("1", "10", "11", "12")
    x, y = everything(splits)
    expected = {
        (np.asarray(Image.open(path).convert("L")).tobytes(), label)
        for path, label in theirs.samples
    }
    raw = splits.scaling.invert(x)[:, 0].round().byte().numpy()
    assert {(image.tobytes(), int(label)) for image, label in zip(raw, y, strict=True)} == expected


@pytest.mark.parametrize(
    ("folders", "sizes"),
    [
        (("train", "val", "test"), (36, 8, 4, 8)),
        (("train", "test"), (32, 4, 4, 8)),
        (("train", "valid"), (28, 8, 4, 8)),
    ],
)
def test_parts_that_the_user_made_are_kept(tmp_path, folders, sizes):
    home = {}
    for name in folders:
        for path in [tmp_path / name / label / str(i) for label in "ab" for i in range(20)]:
            if name == "train" or int(path.name) < 4:
                pixels = save(path.with_suffix(".png"))
                home[pixels.tobytes()] = "validation" if name[0] == "v" else name
    splits = load(tmp_path)
    assert tuple(len(getattr(splits, name)) for name in PART_NAMES) == sizes
    for name in PART_NAMES:
        raw = splits.scaling.invert(getattr(splits, name).x).round().byte().numpy()
        homes = {home[image.tobytes()] for image in raw}
        assert homes == ({name} if name in home.values() else {"train"})


def test_a_class_of_the_test_part_must_be_known(tmp_path):
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "test", classes=("cat", "eel"))
    with pytest.raises(InputError, match="among the training classes cat, dog, got 'eel'"):
        load(tmp_path)


def test_large_folder_stays_on_disk_and_gives_the_same(tmp_path):
    folder = write_folder(tmp_path / "pets", mode="RGB")
    memory, disk = load(folder), load(folder, memory_limit=100)
    assert isinstance(disk.train, LazyPart)
    assert "read from disk" in disk.describe()
    for name in PART_NAMES:
        for ours, theirs in zip(getattr(disk, name)[:], getattr(memory, name)[:], strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("memory_limit", [10**9, 100])
def test_images_of_several_sizes_are_brought_to_one(tmp_path, memory_limit):
    folder = write_folder(tmp_path / "pets", size=(40, 40))
    left, right = np.zeros((20, 60), np.uint8), np.zeros((20, 60), np.uint8)
    left[:, :20], right[:, 20:40] = 255, 255  # the middle is what is kept of a wide image
    Image.fromarray(left).save(folder / "cat" / "wide.png")
    Image.fromarray(right).save(folder / "dog" / "wide.png")
    with pytest.raises(InputError, match=r"40 x 40 .* 60 x 20 .*wide\.png: --image-size"):
        load(folder)
    splits = load(folder, image_size=8, memory_limit=memory_limit)
    assert splits.input_shape == (1, 8, 8)
    x, y = everything(splits)
    brightness = x.mean(dim=(1, 2, 3))
    assert brightness[y == 0].amin() < -0.95
    assert brightness[y == 1].amax() > 0.95
    with pytest.raises(InputError, match="`image_size` must"):
        load(folder, image_size=2)


def test_other_files_of_a_folder_are_counted(tmp_path):
    folder = write_folder(tmp_path / "pets")
    count = f"{len(everything(load(folder))[1])} images read, of subfolders too; left out:"
    assert load(folder).describe().endswith(f"\n  {count} 0 other files")
    (folder / "dog" / "more").mkdir()
    (folder / "dog" / "more" / "notes.txt").write_text("not an image")
    assert load(folder).describe().endswith(f"{count} 1 other file")
    (folder / "readme.md").write_text("not an image")
    (folder / "__MACOSX" / "dog").mkdir(parents=True)  # of archives made on a Mac
    (folder / "__MACOSX" / "dog" / "a.png").write_text("not an image")
    assert load(folder).describe().endswith(f"{count} 2 other files")


def test_folders_that_are_no_classes(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="a subfolder of images for each class"):
        load(tmp_path / "empty")
    assert load(write_folder(tmp_path / "one", classes=["cat"])).classes == ("cat",)
    folder = write_folder(tmp_path / "pets")
    (folder / "eel").mkdir()
    with pytest.raises(InputError, match="eel` must hold images"):
        load(folder)


# -- pixels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparent_ground_is_white(tmp_path, mode):
    cover = RNG.random((6, 6)) < 0.5
    pixels = np.zeros((6, 6, len(mode)), np.uint8)  # black where there is anything
    pixels[..., -1] = 255 * cover
    Image.fromarray(pixels, mode).save(tmp_path / "a.png")
    raw = read(tmp_path / "a.png", (1, 6, 6))[1]
    assert np.array_equal(raw[0, :, :, 0], np.where(cover, 0, 255))
    assert not np.asarray(load_image(tmp_path / "a.png", ground="black")).any()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_taken_as_the_camera_was_held(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for label in ("cat", "dog"):
        for i in range(4):
            save(tmp_path / label / f"{i}.png", (4, 6), exif=exif)
    path = tmp_path / "cat" / "0.png"
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(read(path, (1, *upright.shape))[1][0, :, :, 0], upright)
    assert load(tmp_path).input_shape == (1, *upright.shape)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_an_odd_exif_block_does_not_cost_a_photograph(tmp_path):
    maker = struct.pack("<HHLL", 0x010F, 5, 1, 38)  # a maker that is a number, where text belongs
    held = struct.pack("<HHLHH", 0x0112, 3, 1, 6, 0)
    block = (
        b"Exif\0\0II*\0" + struct.pack("<LH", 8, 2) + maker + held + struct.pack("<LLL", 0, 1, 3)
    )
    save(tmp_path / "lying.jpg", (6, 4), exif=block)
    assert load_image(tmp_path / "lying.jpg").size == (4, 6)


def test_grey_stored_as_colour_is_grey_and_grey_becomes_colour(tmp_path):
    pixels = save(tmp_path / "a.png")
    assert (read(tmp_path / "a.png", (3, 4, 5))[1] == pixels[None, :, :, None]).all()
    Image.fromarray(np.stack([pixels] * 3, axis=2)).save(tmp_path / "a.png")
    names, raw = read(tmp_path / "a.png")
    assert names == ["a.png"]
    assert np.array_equal(raw[0, :, :, 0], pixels)


# -- what cannot be used --------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [True, False])
def test_damaged_images_are_named_all_at_once(tmp_path, cut):
    folder = write_folder(tmp_path / "pets")
    names = sorted(folder.rglob("*.png"))
    for path in names[1:8:2]:
        damage(path) if cut else path.write_bytes(b"no image")
    for use in (load, read):
        with pytest.raises(InputError, match="In all, 4 images cannot be used: ") as caught:
            use(folder)
        assert "--skip-damaged" in str(caught.value)
        assert all(str(path) in str(caught.value) for path in names[1:8:2])


@pytest.mark.parametrize("memory_limit", [10**9, 100])
def test_damaged_images_are_left_out_when_asked_for(tmp_path, memory_limit):
    folder = write_folder(tmp_path / "pets")
    names = sorted(folder.rglob("*.png"))
    damage(names[1])
    (folder / "cat" / "broken.ppm").write_bytes(b"P6\n8j8 8\n255\n" + bytes(192))
    gone = [names[1], folder / "cat" / "broken.ppm"]
    with pytest.warns(UserWarning, match=f"^2 of 17 images left out, damaged: .*{names[1]}"):
        skipped = load(folder, skip_damaged=True, memory_limit=memory_limit)
    with pytest.warns(UserWarning, match="^2 of 17 images"):
        scored, _ = read(folder, skip_damaged=True)
    for path in gone:
        path.unlink()
    removed = load(folder, skip_damaged=True)  # nothing is damaged, nothing is said
    assert torch.equal(skipped.train[:][0], removed.train.x)
    assert torch.equal(skipped.train.y, removed.train.y)
    assert scored == read(folder)[0]


@pytest.mark.filterwarnings("ignore:8 of 16 images")
def test_what_leaving_damaged_images_out_cannot_mend(tmp_path):
    folder = write_folder(tmp_path / "pets")
    damage(*(folder / "dog").iterdir())
    with pytest.raises(InputError, match=r"dog` must hold images that can be read"):
        load(folder, skip_damaged=True)
    damage(*(folder / "cat").iterdir())
    for use in (load, read):
        with pytest.raises(InputError, match="all 16 images are damaged"):
            use(folder, skip_damaged=True)
    Image.fromarray(np.ones((4, 5), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(InputError, match=r"deep\.png` must have 8 bits a channel"):
        read(tmp_path / "deep.png", skip_damaged=True)


def test_images_that_do_not_fit_the_network_are_named(tmp_path):
    save(tmp_path / "in" / "a.png")
    path = tmp_path / "in" / "b" / "c.png"
    save(path, size=(7, 4))
    save(path, mode="RGB")
    with pytest.raises(InputError, match=r"c\.png` must be grey"):
        read(tmp_path / "in")
    for shape in ((4, 5, 6), (2,)):
        with pytest.raises(InputError, match="as in training, got images"):
            read(path, shape)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty` must hold images \(\.png"):
        read(tmp_path / "empty")


# -- folders to score -----------------------------------------------------------------------------


def test_images_of_another_size_are_scored_and_counted(tmp_path):
    kept = save(tmp_path / "in" / "a.png")
    high = save(tmp_path / "in" / "b.png", size=(5, 8))
    stream = stream_inputs(tmp_path / "in", (1, 4, 5), batch_size=4)
    ((_, images),) = stream.batches
    assert np.array_equal(images[0, :, :, 0], kept)
    assert np.array_equal(images[1, :, :, 0], high[2:6])  # wide enough: the middle is cut out
    (line,) = stream.notes
    assert line.startswith("brought to 5 x 4 pixels")
    assert line.endswith(": 1 image")


def test_folder_is_read_with_its_subfolders_in_order(tmp_path):
    names = ["b.png", "a.PNG", "z/2.bmp", "z/deep/er/1.png", "c/1.png", ".hidden.png", ".h/1.png"]
    pixels = {name: save(tmp_path / "in" / name) for name in names}
    (tmp_path / "in" / "notes.txt").write_text("no image")
    save(tmp_path / "elsewhere" / "1.jfif", format="JPEG")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    found, raw = read(tmp_path / "in")
    expected = ["a.PNG", "b.png", "c/1.png", "link/1.jfif", "z/2.bmp", "z/deep/er/1.png"]
    assert found == expected
    for name, image in zip(found, raw, strict=True):
        if Path(name).suffix != ".jfif":
            assert np.array_equal(image[:, :, 0], pixels[name])
