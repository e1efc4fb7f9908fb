"""`jem inpaint` as a person meets it: the files it writes, and what it says to mistakes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import jem
from jem import networks
from jem.cli import main
from jem.commands.masks import read_mask
from jem.errors import InputError
from jem.model import JEM
from jem.training.recipes import RECIPES
from jem.training.trainer import Trainer

QUICK = replace(
    RECIPES["fast"], epochs=1, num_chains=16, buffer_size=16, sample_steps=2, checkpoint_every=1000
)


def run(*words):
    return main([str(word) for word in words])


def refused(capsys, out, *words):
    """The one line that a mistake gets; nothing is written."""
    capsys.readouterr()
    before = sorted(out.parent.iterdir()) if out.parent.is_dir() else None
    assert run("inpaint", *words, "--out", out) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("jem: error: ")
    assert (sorted(out.parent.iterdir()) if out.parent.is_dir() else None) == before
    return lines[0]


def train(folder, splits, network, recipe=QUICK):
    model = JEM(network, classes=splits.classes, domain=splits.domain, scaling=splits.scaling)
    few = splits.train.x[:128], splits.train.y[:128]
    Trainer(model, recipe, run_dir=folder, seed=0, device="cpu").fit(few)
    return folder


def seeded(build):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


@pytest.fixture(scope="module")
def digits():
    return jem.data.load("digits", seed=0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits):
    network = seeded(lambda: networks.small_cnn((1, 8, 8), 10, width=4, head="factored"))
    return train(tmp_path_factory.mktemp("inpaint") / "run", digits, network)


@pytest.fixture(scope="module")
def raw(digits):
    return digits.scaling.invert(digits.test.x[:5]).numpy()


def arrays(path):
    with np.load(path, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


# -- what is written ------------------------------------------------------------------------------


def test_completions_keep_what_was_known_and_say_how_they_were_made(trained, raw, tmp_path):
    np.savez(tmp_path / "in.npz", images=raw[:, 0].astype(np.uint8))
    out = tmp_path / "done.png"
    words = ("--count", 2, "--seed", 3, "--num-steps", 4)
    assert run("inpaint", trained, tmp_path / "in.npz", *words, "--out", out) == 0
    found = arrays(tmp_path / "done.npz")
    assert found["x"].shape == (5, 2, 1, 8, 8)
    assert np.array_equal(
        found["x"][:, :, :, :4], np.broadcast_to(raw[:, None, :, :4], (5, 2, 1, 4, 8))
    )
    assert not np.array_equal(found["x"][:, 0], found["x"][:, 1])
    assert found["x"].min() >= 0
    assert found["x"].max() <= 16
    assert found["known"].shape == (5, 1, 8, 8)
    assert found["known"][:, :, :4].all()
    assert not found["known"][:, :, 4:].any()
    assert list(found["inputs"]) == ["0", "1", "2", "3", "4"]
    made = json.loads(str(found["metadata"]))
    assert made["command"] == "jem inpaint"
    keys = ("mask", "labels", "count", "seed", "num_steps", "guidance", "initial_noise")
    assert [made[key] for key in keys] == ["lower", [], 2, 3, 4, 1.0, 0.01]
    assert Image.open(out).size[0] > 100
    model = jem.load(trained)
    first = jem.inpaint(
        model, model.preprocess(raw), torch.from_numpy(found["known"]), seed=3, num_steps=4
    )
    torch.testing.assert_close(
        torch.from_numpy(found["x"][:, 0]), model.scaling.invert(first), rtol=0, atol=1e-5
    )


def test_known_values_are_exact_whatever_their_type(trained, raw, tmp_path):
    values = (raw + np.random.default_rng(0).random(raw.shape)).clip(0, 16).astype(np.float32)
    np.save(tmp_path / "in.npy", values)
    for name in ("a", "b"):
        words = ("--mask", "1,2,5,7", "--out", tmp_path / name)
        assert run("inpaint", trained, tmp_path / "in.npy", *words) == 0
    found = arrays(tmp_path / "a.npz")
    known = found["known"]
    assert known.mean() == 1 - 20 / 64
    assert np.array_equal(found["x"][:, 0][known], values[known])
    assert np.array_equal(found["x"], arrays(tmp_path / "b.npz")["x"])


def test_a_folder_of_images_and_an_image_as_mask(trained, digits, raw, tmp_path):
    (tmp_path / "pictures").mkdir()
    for index, image in enumerate(raw):
        pixels = (image[0] * 255 / 16).round().astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{index}.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[2:4, 3:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    words = ("--mask", tmp_path / "mask.png", "--labels", 3, "--out", tmp_path / "done")
    assert run("inpaint", trained, tmp_path / "pictures", *words) == 0
    found = arrays(tmp_path / "done.npz")
    assert np.array_equal(~found["known"][0, 0], mask > 0)
    assert list(found["inputs"]) == [f"{index}.png" for index in range(5)]
    assert np.abs(found["x"][:, 0] - raw)[found["known"]].max() < 0.05  # bytes were rounded


def test_of_many_inputs_the_picture_holds_the_first(trained, raw, tmp_path, capsys):
    np.save(tmp_path / "in.npy", np.concatenate([raw] * 5)[:21])
    words = (trained, tmp_path / "in.npy", "--out", tmp_path / "done.png", "--num-steps", 1)
    assert run("inpaint", *words) == 0
    said = f"21 inputs completed: the first 20 in {tmp_path / 'done.png'}, all in "
    assert said in capsys.readouterr().out.replace("\n", "")
    np.save(tmp_path / "in.npy", np.concatenate([raw] * 5)[:20])
    assert run("inpaint", *words) == 0
    assert "the first" not in capsys.readouterr().out


def test_classes_are_one_for_all_or_one_an_input(trained, raw, tmp_path):
    np.save(tmp_path / "in.npy", raw)
    done = {}
    for name, labels in {
        "none": [],
        "one": ["3"],
        "each": list("33333"),
        "other": list("32333"),
    }.items():
        words = ["--labels", *labels] if labels else []
        out = tmp_path / f"{name}.png"
        assert run("inpaint", trained, tmp_path / "in.npy", *words, "--out", out) == 0
        done[name] = arrays(tmp_path / f"{name}.npz")["x"]
    assert np.array_equal(done["one"], done["each"])
    assert not np.array_equal(done["one"], done["none"])
    assert np.array_equal(done["one"][[0, 2, 3, 4]], done["other"][[0, 2, 3, 4]])
    assert not np.array_equal(done["one"][1], done["other"][1])


def test_tables_are_completed_too(tmp_path, capsys):
    wine = jem.data.load("wine", seed=0)
    network = seeded(lambda: networks.mlp((13,), 3, width=8, depth=2))
    folder = train(tmp_path / "wine", wine, network)
    rows = wine.scaling.invert(wine.test.x[:3]).double().numpy() * (1 + 1e-12)
    np.save(tmp_path / "in.npy", rows)
    mask = np.zeros(13)
    mask[[2, 5]] = 1
    np.savez(tmp_path / "mask.npz", mask=mask)
    words = (folder, tmp_path / "in.npy", "--mask", tmp_path / "mask.npz")
    assert run("inpaint", *words, "--out", tmp_path / "done.png") == 0
    found = arrays(tmp_path / "done.npz")
    assert found["x"].shape == (3, 1, 13)
    assert np.array_equal(np.delete(found["x"][:, 0], [2, 5], axis=1), np.delete(rows, [2, 5], 1))
    assert (found["x"][:, 0, [2, 5]] != rows[:, [2, 5]]).all()
    message = refused(capsys, tmp_path / "no.png", *words[:2], "--mask", "lower")
    assert "is for images, but the inputs are rows of 13 numbers" in message


# -- masks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rows", "columns"),
    [
        ("lower", [2, 3, 4], [0, 1, 2, 3]), ("upper", [0, 1], [0, 1, 2, 3]),
        ("left", [0, 1, 2, 3, 4], [0, 1]), ("right", [0, 1, 2, 3, 4], [2, 3]),
        ("1,0,3,2", [0, 1], [1, 2]), (" 0, 4, 4, 5 ", [4], [0, 1, 2, 3]),
    ],
)  # fmt: skip
def test_halves_and_boxes(text, rows, columns):
    expected = torch.zeros(3, 5, 4, dtype=torch.bool)
    for row in rows:
        expected[:, row, columns] = True
    assert torch.equal(read_mask(text, 2, (3, 5, 4)), expected.expand(2, 3, 5, 4))


def test_mask_files_of_every_shape(tmp_path):
    rng = np.random.default_rng(0)
    for shape in [(5, 4), (3, 5, 4), (7, 3, 5, 4), (7, 5, 4)]:
        mask = rng.integers(0, 2, shape)
        np.save(tmp_path / "m.npy", mask.astype(float) * 7)
        read = read_mask(str(tmp_path / "m.npy"), 7, (3, 5, 4)).numpy()
        full = mask[:, None] if shape == (7, 5, 4) else mask
        assert np.array_equal(read, np.broadcast_to(full, (7, 3, 5, 4)).astype(bool))


def test_a_plane_for_each_channel_or_each_input_is_refused_where_both_fit(tmp_path):
    np.save(tmp_path / "m.npy", np.ones((3, 5, 4)))
    with pytest.raises(InputError, match=r"expected shape \(3, 3, 5, 4\) or \(5, 4\), got"):
        read_mask(str(tmp_path / "m.npy"), 3, (3, 5, 4))
    np.save(tmp_path / "m.npy", np.ones((1, 5, 4)))
    assert read_mask(str(tmp_path / "m.npy"), 1, (1, 5, 4)).all()


def test_transparent_parts_of_a_mask_mark_nothing(tmp_path):
    drawn = np.zeros((5, 4, 4), np.uint8)
    drawn[2, :, :] = 255  # a white stroke on nothing
    Image.fromarray(drawn, "RGBA").save(tmp_path / "m.png")
    assert read_mask(str(tmp_path / "m.png"), 1, (1, 5, 4))[0, 0].any(dim=1).tolist() == [
        False, False, True, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bottom", "expected lower, upper, left, right, a box x0,y0,x1,y1 or a file"),
        ("0,0,5,2", "must be x0,y0,x1,y1 with x0 < x1 <= 4 and y0 < y1 <= 5"),
        ("2,0,2,2", "with x0 < x1"),
        ("1,2,3", "there is no file"),
    ],
)
def test_masks_that_are_none(text, message):
    with pytest.raises(InputError, match=message):
        read_mask(text, 2, (3, 5, 4))


def test_mask_files_that_do_not_fit(tmp_path):
    for content, message in [
        (
            np.ones((4, 5)),
            r"expected shape \(3, 5, 4\) or \(2, 3, 5, 4\) or \(5, 4\) or .*\(4, 5\)",
        ),
        (np.zeros((5, 4)), "marks nothing to draw"),
        (np.full((5, 4), "x"), "expected booleans or numbers"),
        (np.full((5, 4), None), "Could not read the mask"),
    ]:
        np.save(tmp_path / "m.npy", content, allow_pickle=True)
        with pytest.raises(InputError, match=message):
            read_mask(str(tmp_path / "m.npy"), 2, (3, 5, 4))
    np.savez(tmp_path / "m.npz", other=np.ones((5, 4)))
    with pytest.raises(InputError, match="'mask'"):
        read_mask(str(tmp_path / "m.npz"), 2, (3, 5, 4))
    (tmp_path / "m.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="damaged"):
        read_mask(str(tmp_path / "m.png"), 2, (3, 5, 4))


# -- mistakes -------------------------------------------------------------------------------------


def test_mistakes_get_one_line_and_write_nothing(trained, raw, tmp_path, capsys):
    source = tmp_path / "in.npy"
    np.save(source, raw)
    out = tmp_path / "new" / "done.png"
    assert "no folder" in refused(capsys, out, trained, source)
    out.parent.mkdir()
    for words, message in [
        (["--mask", "bottom"], "--mask: expected lower"),
        (["--count", 0], "`--count` must be a whole number"),
        (["--labels", "ten"], "unknown class ten"),
        (["--labels", 1, 2], "must name one class, or one for each of 5 inputs, got 2"),
        (["--guidance", -1, "--labels", 1], "`guidance` must be at least 0"),
        (["--initial-noise", -1], "`initial_noise` must be at least 0"),
        (["--num-steps", -1], "`num_steps` must be"),
    ]:
        assert message in refused(capsys, out, trained, source, *words)
    assert "holds no run" in refused(capsys, out, tmp_path / "gone", source)
    assert "gone.npy` must be a file or a folder" in refused(
        capsys, out, trained, tmp_path / "gone.npy"
    )
    np.save(source, raw[:, :, :5])
    assert "must have shape (N, 1, 8, 8)" in refused(capsys, out, trained, source)
    np.save(source, np.where(raw > 15, np.nan, raw))
    assert "must hold finite numbers" in refused(capsys, out, trained, source)
    source.write_bytes(b"no array")
    assert "damaged" in refused(capsys, out, trained, source)


def test_the_inputs_are_not_written_over(trained, raw, tmp_path, capsys):
    np.savez(tmp_path / "in.npz", x=raw)
    before = (tmp_path / "in.npz").read_bytes()
    message = refused(capsys, tmp_path / "in.png", trained, tmp_path / "in.npz")
    assert "in.npz is read, and would be lost" in message
    assert (tmp_path / "in.npz").read_bytes() == before
