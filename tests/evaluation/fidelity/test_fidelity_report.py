"""The fidelity report: every way for samples to be bad shows in its own figure."""

import math

import pytest
import torch

from jem.data.splits import DataPart, LazyPart
from jem.errors import InputError
from jem.evaluation.fidelity import reference_classifier
from jem.evaluation.fidelity.reference_classifier import train_reference_classifier
from jem.evaluation.fidelity.report import fidelity

CENTRES = torch.tensor([[0.0, 0.0, 2.0], [2.0, 0.0, 0.0], [0.0, 2.0, 0.0]])


def blobs(num, seed, spread=0.4):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % 3
    return CENTRES[labels] + spread * torch.randn(num, 3, generator=generator), labels


@pytest.fixture(scope="module", autouse=True)
def _few_updates():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_classifier, "FEWEST_UPDATES", 120)
        yield


@pytest.fixture(scope="module")
def parts():
    return {"train": DataPart(*blobs(300, 1)), "test": DataPart(*blobs(150, 2))}


@pytest.fixture(scope="module")
def reference(parts):
    return train_reference_classifier(parts["train"].x, parts["train"].y, 3, seed=0, data="blobs")


@pytest.fixture(scope="module")
def measure(parts, reference):
    def run(samples, labels, **options):
        settings = {"num_bootstrap": 20, "seed": 0, **parts, "reference": reference, **options}
        return fidelity(samples, labels, **settings)

    return run


@pytest.fixture(scope="module")
def honest(measure):
    """Samples of the law of the data itself."""
    return measure(*blobs(150, 3))


def test_perfect_samples_are_as_good_as_real_inputs(honest):
    samples, real = honest.samples, honest.real
    for name in ("precision", "recall", "agreement", "diversity"):
        ours, theirs = getattr(samples, name), getattr(real, name)
        assert ours.value == pytest.approx(theirs.value, abs=0.12), name
        assert ours.value > 0.85, name
    assert samples.frechet.value < 1
    assert samples.classification_accuracy.value > 0.9
    assert 0.4 < honest.nearer.value < 0.6


def test_copies_are_recognised(measure, parts):
    x, y = parts["train"][:150]
    found = measure(x, y)
    assert found.nearer.value == 1


def test_samples_that_all_look_alike(measure, honest):
    x, y = blobs(150, 3, spread=0.02)
    found = measure(x, y).samples
    assert found.agreement.value == 1  # sees nothing of it
    assert found.precision.value == 1
    assert found.diversity.value < 0.15
    assert found.recall.value < 0.5 * honest.samples.recall.value
    assert found.frechet.value > 2 * honest.samples.frechet.value


def test_samples_of_the_wrong_class(measure, honest):
    x, y = blobs(150, 3)
    found = measure(x, (y + 1) % 3).samples
    assert found.agreement.value < 0.1
    assert found.classification_accuracy.value < 0.1
    assert found.frechet.value == pytest.approx(honest.samples.frechet.value)
    half = torch.where(torch.arange(150) < 75, y, (y + 1) % 3)
    found = measure(x, half).samples
    share = found.agreement
    assert share.value == pytest.approx(0.5, abs=0.05)
    assert share.std_error == pytest.approx(math.sqrt(0.25 / 150), rel=0.02)
    assert share.low < share.value < share.high


def test_both_rows_are_of_equal_size_whatever_is_given(measure):
    found = measure(*blobs(400, 3))
    assert found.samples.num == found.real.num == 150
    small = measure(*blobs(30, 3))
    assert small.samples.num == small.real.num == 30
    assert math.isfinite(small.samples.frechet.value)
    # With no more inputs than features there is no covariance to speak of.
    tiny = measure(*blobs(16, 3))
    assert math.isnan(tiny.samples.frechet.value)


def test_same_seed_same_report_and_nothing_global_moves(measure, honest, global_rng_untouched):
    assert measure(*blobs(150, 3)) == honest
    with torch.inference_mode():
        assert measure(*blobs(150, 3)) == honest


def test_training_data_on_disk_are_read_once_for_neighbours(parts, measure, honest):
    reads = []

    def read(index):
        reads.append(index)
        return parts["train"].x[index]

    lazy = LazyPart(list(range(300)), parts["train"].y, read)
    assert measure(*blobs(150, 3), train=lazy) == honest
    # Once for the reference, once to search all of it, and twice the first for its size.
    assert len(reads) == 602


def test_too_few_inputs_are_refused(measure):
    x, y = blobs(60, 3)
    empty = DataPart(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    for samples, options in ((3, {}), (60, {"test": empty}), (60, {"train": empty})):
        with pytest.raises(InputError, match="number of samples, test and training inputs"):
            measure(x[:samples], y[:samples], **options)
