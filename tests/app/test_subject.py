"""What the page in the browser asks of a model: inputs, verdicts, nearest examples."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import jem
from jem.app.subject import Subject
from jem.serving.scorer import fit_scorer

K = 3


def images(ground):
    """Noisy images with a stroke whose column is the class; the ground is 0 or 255."""
    generator = np.random.default_rng(0)
    y = np.arange(240) % K
    x = np.full((240, 8, 8), ground, np.uint8)
    for row, k in zip(x, y, strict=True):
        row[1:7, 2 * k + 1] = generator.integers(100, 156)
    return jem.data.from_arrays(x, np.array(["a", "b", "c"])[y])


def subject_of(data):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(K))
    network(data.train.x[:2])
    model = jem.JEM(network, classes=data.classes, domain=data.domain, scaling=data.scaling)
    model.input_shape = data.input_shape
    return Subject("mine", fit_scorer(model, data), data)


@pytest.mark.parametrize("ground", [0, 255])
def test_strokes_lie_on_the_ground_of_the_data_and_differ_from_it_most(ground):
    subject = subject_of(images(ground))
    ink = np.zeros((80, 80), np.uint8)
    ink[:, :10] = 255
    raw = subject.model.scaling.invert(subject.from_strokes(ink))[0, 0]
    assert raw[:, 1:].round().eq(ground).all()
    assert raw[:, 0].round().eq(255 - ground).all()


def test_a_file_of_any_size_and_colour_becomes_an_input(tmp_path):
    subject = subject_of(images(0))
    for mode in ("L", "RGB", "CMYK", "P"):
        file = tmp_path / f"{mode}.tif"
        Image.new("RGB", (50, 30), (9, 9, 9)).convert(mode).save(file)
        raw = subject.model.scaling.invert(subject.from_file(file))
        assert raw.shape == (1, 1, 8, 8)
        assert raw.sub(9).abs().max() < 3
    (tmp_path / "no.png").write_bytes(b"no image")
    with pytest.raises(jem.InputError, match=r"no\.png"):
        subject.from_file(tmp_path / "no.png")


def test_the_answer_is_that_of_the_scorer():
    data = images(0)
    subject = subject_of(data)
    noise = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 20
    for x in (*data.test.x[:5].split(1), noise):
        found = subject.scorer.predict(x)
        probabilities, verdict, figure = subject.answer(x)
        assert list(probabilities) == ["a", "b", "c"]
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert verdict.startswith("### Rejected" if found.is_ood[0] else "### Accepted")
        assert f"{float(found.p_value[0]):.1%}" in verdict
        assert len(figure.axes) == 1


def test_the_nearest_example_of_a_training_image_is_itself():
    data = images(0)
    subject = subject_of(data)
    (picture, name), *_ = subject.nearest(data.train.x[4:5])
    assert name == data.classes[data.train.y[4]]
    assert np.array_equal(picture, subject.picture(data.train.x[4:5]))
    assert Subject("alone", subject.scorer).nearest(data.train.x[:1]) == []


def test_a_row_of_a_table_is_the_input_that_it_came_from():
    generator = np.random.default_rng(0)
    frame = pd.DataFrame({
        "amount": generator.normal(50, 9, 200), "kind": generator.choice(["x", "y"], 200)
    })  # fmt: skip
    data = jem.data.from_arrays(frame, np.where(frame.kind == "x", "a", "b"))
    torch.manual_seed(0)
    network = torch.nn.Linear(data.input_shape[0], 2)
    model = jem.JEM(network, classes=data.classes, scaling=data.scaling, domain=data.domain)
    model.input_shape = data.input_shape
    subject = Subject("table", fit_scorer(model, data), data)
    rows = subject.rows()
    assert list(rows.columns) == ["amount", "kind"]
    for i in range(5):
        assert subject.from_row(dict(rows.iloc[i])).allclose(data.test.x[i : i + 1], atol=1e-5)
    with pytest.raises(jem.InputError, match="table"):
        Subject("alone", subject.scorer).rows()


def test_a_classifier_without_a_density_has_a_page_that_draws_nothing():
    page = pytest.importorskip("jem.app.page", reason="needs the extra `app`")
    data = images(0)
    subject = subject_of(data)
    assert callable(page.build_page([subject]))
    with pytest.raises(jem.InputError, match="sampler"):
        jem.sample(subject.model, [0])
