"""`jem inpaint`: what is kept, what is written, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import jem
from jem.commands.inpaint import read_mask
from jem.errors import InputError


@pytest.fixture(scope="module")
def raw(raw_digits):
    return raw_digits[:5, None]


@pytest.fixture
def complete(run, digits_run, tmp_path):
    """Complete inputs, and return the arrays that were written."""

    def make(inputs, *words, folder=digits_run, name="done"):
        if isinstance(inputs, np.ndarray):
            np.save(tmp_path / "in.npy", inputs)
            inputs = tmp_path / "in.npy"
        words = ("--force", "--quiet", "--out", tmp_path / name, *words)
        assert run("inpaint", folder, inputs, *words) == 0
        with np.load(tmp_path / f"{name}.npz", allow_pickle=False) as found:
            return {key: found[key] for key in found.files}

    return make


def test_completions_keep_what_was_known_and_say_how_they_were_made(
    complete, digits_run, raw, tmp_path
):
    np.savez(tmp_path / "in.npz", images=raw[:, 0].astype(np.uint8))
    found = complete(tmp_path / "in.npz", "--count", 2, "--seed", 3)
    assert found["x"].shape == (5, 2, 1, 8, 8)
    upper = np.broadcast_to(raw[:, None, :, :4], (5, 2, 1, 4, 8))
    assert np.array_equal(found["x"][:, :, :, :4], upper)
    assert not np.array_equal(found["x"][:, 0], found["x"][:, 1])
    assert found["known"][:, :, :4].all()
    assert not found["known"][:, :, 4:].any()
    assert list(found["inputs"]) == ["0", "1", "2", "3", "4"]
    made = json.loads(str(found["metadata"]))
    keys = ("command", "mask", "count", "seed", "num_steps")
    assert [made[key] for key in keys] == ["jem inpaint", "lower", 2, 3, 3]
    assert Image.open(tmp_path / "done.png").size[0] > 100
    model, known = jem.load(digits_run), torch.from_numpy(found["known"])
    first = jem.inpaint(model, model.preprocess(raw), known, seed=3)
    np.testing.assert_allclose(found["x"][:, 0], model.scaling.invert(first), atol=1e-5)


def test_known_values_are_exact_whatever_their_type(complete, raw):
    values = (raw + np.random.default_rng(0).random(raw.shape)).clip(0, 16).astype(np.float32)
    one, two = (complete(values, "--mask", "left", name=name) for name in ("a", "b"))
    assert np.array_equal(one["x"][:, 0][one["known"]], values[one["known"]])
    assert np.array_equal(one["x"], two["x"])


def test_a_folder_of_images_and_an_image_as_mask(complete, raw, tmp_path):
    (tmp_path / "pictures").mkdir()
    for index, image in enumerate(raw):
        pixels = (image[0] * 255 / 16).round().astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{index}.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[2:4, 3:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    found = complete(tmp_path / "pictures", "--mask", tmp_path / "mask.png")
    assert np.array_equal(~found["known"][0, 0], mask > 0)
    assert list(found["inputs"]) == [f"{index}.png" for index in range(5)]
    assert np.abs(found["x"][:, 0] - raw)[found["known"]].max() < 0.05  # bytes were rounded


def test_of_many_inputs_the_picture_holds_the_first(complete, raw, capsys):
    complete(np.concatenate([raw] * 5)[:21])
    assert "the first 20 in" in capsys.readouterr().out


def test_tables_are_completed_too(complete, train, tmp_path):
    folder = train(tmp_path / "wine", "wine", detector=False)
    wine = jem.data.load("wine", seed=0)
    rows = wine.scaling.invert(wine.test.x[:3]).double().numpy() * (1 + 1e-12)
    np.savez(tmp_path / "mask.npz", mask=np.isin(np.arange(13), [2, 5]))
    x = complete(rows, "--mask", tmp_path / "mask.npz", folder=folder)["x"]
    assert x.shape == (3, 1, 13)
    assert np.array_equal(np.delete(x[:, 0], [2, 5], axis=1), np.delete(rows, [2, 5], axis=1))
    assert (x[:, 0, [2, 5]] != rows[:, [2, 5]]).all()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--mask", "bottom"], "--mask"), (["--count", 0], "--count"),
        (["--out", "no/done.png"], "no folder"),
        (["--out", "in.npz"], "in.npz is read"), (["--mask", "done.npz"], "done.npz is read"),
    ],
)  # fmt: skip
def test_mistakes_write_nothing(refused, digits_run, raw, tmp_path, monkeypatch, words, named):
    monkeypatch.chdir(tmp_path)
    np.savez("in.npz", x=raw)
    np.savez("done.npz", mask=np.ones((8, 8)), metadata="as if drawn")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    out = [] if "--out" in words else ["--out", "done.png"]
    assert named in refused("inpaint", digits_run, "in.npz", "--force", *words, *out)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_inputs_that_are_none_are_named(refused, digits_run, raw, tmp_path):
    source = tmp_path / "in.npy"
    for content, named in (
        (raw[:, :, :5], "5"), (np.where(raw > 15, np.nan, raw), "finite"), (None, "in.npy"),
    ):  # fmt: skip
        source.write_bytes(b"no array") if content is None else np.save(source, content)
        out = ("--out", tmp_path / "done.png")
        assert named in refused("inpaint", digits_run, source, *out)


# -- masks ----------------------------------------------------------------------------------------

SHAPE = (3, 5, 4)


@pytest.mark.parametrize("shape", [(5, 4), (3, 5, 4), (7, 3, 5, 4), (7, 5, 4)])
def test_files_hold_a_mask_for_all_inputs_or_for_each(tmp_path, shape):
    mask = np.random.default_rng(0).integers(0, 2, shape)
    np.save(tmp_path / "m.npy", mask.astype(float) * 7)
    full = mask[:, None] if shape == (7, 5, 4) else mask
    expected = np.broadcast_to(full, (7, *SHAPE)).astype(bool)
    assert np.array_equal(read_mask(str(tmp_path / "m.npy"), 7, SHAPE), expected)


def test_transparent_parts_of_an_image_mark_nothing(tmp_path):
    drawn = np.zeros((5, 4, 4), np.uint8)
    drawn[2, :, :] = 255  # a white stroke on nothing
    Image.fromarray(drawn, "RGBA").save(tmp_path / "m.png")
    marked = read_mask(str(tmp_path / "m.png"), 1, (1, 5, 4))[0, 0].any(dim=1)
    assert marked.tolist() == [False, False, True, False, False]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("lower", np.s_[:, 2:]), ("upper", np.s_[:, :2]),
        ("left", np.s_[:, :, :2]), ("right", np.s_[:, :, 2:]),
    ],
)  # fmt: skip
def test_halves(text, place):
    expected = torch.zeros(SHAPE, dtype=torch.bool)
    expected[place] = True
    assert torch.equal(read_mask(text, 2, SHAPE), expected.expand(2, *SHAPE))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (np.ones((4, 5)), r"\(2, 3, 5, 4\), got \(4, 5\)"), (np.zeros((5, 4)), "marks nothing"),
        (np.full((5, 4), "x"), "hold numbers"), (np.full((5, 4), None), "m.npy"),
        ({"other": np.ones((5, 4))}, "'mask'"), (b"no image", "damaged"), (None, "lower, upper"),
    ],
)  # fmt: skip
def test_what_is_no_mask_is_refused(tmp_path, content, named):
    ending = "npz" if isinstance(content, dict) else "png" if isinstance(content, bytes) else "npy"
    path = tmp_path / f"m.{ending}"
    if isinstance(content, dict):
        np.savez(path, **content)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(InputError, match=named):
        read_mask(str(path), 2, SHAPE)
    with pytest.raises(InputError, match="13"):
        read_mask("lower", 2, (13,))
