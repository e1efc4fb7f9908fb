"""Samples, completions and chains in a report: how many, of which classes, and how they look."""

import pytest
import torch

import jem
from jem.report.measure import measure
from jem.report.samples import AFFORDABLE, affordable, reference_classifier_of

pytestmark = pytest.mark.usefixtures("quick_reference_classifier")


@pytest.mark.parametrize(
    ("shape", "steps", "fewest", "expected"),
    [
        ((1, 8, 8), 200, 100, 500), ((13,), 200, 100, 500), ((1, 28, 28), 0, 100, 500),
        ((1, 28, 28), 200, 100, AFFORDABLE // (200 * 28 * 28)),
        ((3, 28, 28), 200, 100, AFFORDABLE // (200 * 28 * 28)),
        ((3, 96, 96), 200, 100, 100), ((3, 96, 96), 200, 1000, 500),
    ],
)  # fmt: skip
def test_large_images_take_fewer_steps_but_never_too_few(shape, steps, fewest, expected):
    assert affordable(shape, steps, fewest, 500) == expected


def test_the_reference_classifier_learns_from_fewer_large_images(monkeypatch, make_subject):
    of = make_subject(control=False)
    assert f"{len(of.splits.train)} training inputs" in reference_classifier_of(of, seed=0).name
    monkeypatch.setattr("jem.report.samples.REFERENCE_PIXELS", 50 * 8 * 8)
    assert "50 training inputs" in reference_classifier_of(of, seed=0).name


def test_ten_samples_of_each_class_are_shown_as_drawn(measured):
    of, report = measured
    shown = report.samples.fresh_by_class
    assert shown.shape == (30, 1, 8, 8)
    drawn = [jem.sample(of.model, [label] * 20, seed=0) for label in range(3)]
    assert all(image.isfinite().all() for image in drawn)
    assert len(shown.flatten(1).unique(dim=0)) == 30  # no sample twice


def test_completions_are_shown_as_they_are(measured):
    of, report = measured
    found = report.completions
    assert found.num_inputs == len(of.splits.test)
    kinds = ["original", "kept", "mean fill", "nearest neighbour", "one completion"]
    assert list(found.pictures) == kinds
    pictures = dict(found.pictures)
    whole = pictures.pop("original")
    for picture in pictures.values():
        assert torch.equal(picture[:, :, :4], whole[:, :, :4])
        assert not torch.equal(picture[:, :, 4:], whole[:, :, 4:])
    assert (pictures["kept"][:, :, 4:] == 0).all()  # grey, half way between -1 and 1


def test_large_images_cost_fewer_samples_completions_and_chains(monkeypatch, make_subject):
    of = make_subject(control=False)
    for name in ("FEWEST_SAMPLES", "FEWEST_COMPLETED", "FEWEST_CHAINS"):
        monkeypatch.setattr(f"jem.report.samples.{name}", 20)
    monkeypatch.setattr("jem.report.samples.AFFORDABLE", 0)
    report = measure(of)
    assert report.samples.fresh.samples.num == 30  # ten of each of three classes
    assert report.completions.num_inputs == 20
    assert report.chains.num_chains == 20
