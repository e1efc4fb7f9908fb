"""The judge: learns, repeats itself, keeps to itself, and says who it is."""

import os

import numpy as np
import pytest
import torch

import jem
from jem.data.splits import DataPart, LazyPart
from jem.errors import InputError
from jem.evaluation.examples import choose_rows, draw_subset
from jem.evaluation.fidelity import reference_classifier as module
from jem.evaluation.fidelity.reference_classifier import JudgeNetwork, train_judge


@pytest.fixture(scope="module")
def digits():
    return jem.data.load("digits")


@pytest.fixture(scope="module")
def judge(digits):
    return train_judge(digits.train.x, digits.train.y, 10, seed=0, data="digits")


def blobs(num=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % 3
    return torch.randn(num, 2, generator=generator) * 0.3 + labels[:, None], labels


def test_it_learns_digits_that_it_has_not_seen(judge, digits):
    right = judge.predict(digits.test.x) == digits.test.y
    assert right.double().mean() > 0.95
    assert judge.name == "digits-cnn-64f-n1237-seed0"
    assert judge.num_train == len(digits.train)


def test_features_are_standardised_on_what_it_learned_from(judge, digits):
    z = judge.features(digits.train.x, batch_size=100)
    assert z.shape == (1237, 64)
    assert z.dtype == torch.float64
    torch.testing.assert_close(z.mean(0), torch.zeros(64).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(64).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(z, judge.features(digits.train.x), atol=1e-4, rtol=1e-4)
    # The head reads the same features, before they were standardised.
    raw = (z * judge.network.scale + judge.network.mean).float()
    said = judge.network.head(raw.relu()).argmax(1)
    assert (said == judge.predict(digits.train.x)).double().mean() > 0.999


def test_same_seed_same_judge_and_nothing_global_moves(global_rng_untouched):
    x, y = blobs()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    first = train_judge(x, y, 3, seed=1)
    torch.rand(5, generator=torch.Generator().manual_seed(9))
    again, other = train_judge(x, y, 3, seed=1), train_judge(x, y, 3, seed=2)
    assert first.checksum == again.checksum != other.checksum
    assert len(first.checksum) == 64
    assert first.features(x).equal(again.features(x))
    np.testing.assert_array_equal(numpy_state, np.random.get_state()[1])  # noqa: NPY002


def test_the_checksum_sees_every_weight():
    x, y = blobs()
    judge = train_judge(x, y, 3, seed=0)
    before = judge.checksum
    judge.network.scale[3] *= 1.0000002
    same_network = module.Judge(judge.network, "copy", (2,), 3, 60)
    assert same_network.checksum != before


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_it_can_be_trained_and_asked_anywhere(context):
    x, y = blobs()
    expected = train_judge(x, y, 3, seed=0)
    with context():
        x, y = blobs()
        judge = train_judge(x, y, 3, seed=0)
        said = judge.predict(x)
    assert judge.checksum == expected.checksum
    assert (said == y).double().mean() > 0.95
    assert not judge.features(x).requires_grad
    assert not judge.network.training
    assert not any(p.requires_grad for p in judge.network.parameters())


def test_a_larger_set_is_sampled_with_its_labels():
    x, y = blobs(300)
    judge = train_judge(x, y, 3, seed=0, limit=90, data="blobs")
    assert judge.name == "blobs-mlp-16f-n90-seed0"
    assert (judge.predict(x) == y).double().mean() > 0.95


@pytest.mark.parametrize(
    ("shape", "features"),
    [((1, 8, 8), 64), ((3, 9, 40), 64), ((1, 100, 33), 64), ((1, 4, 4), 16), ((5,), 16)],
)
def test_any_shape_of_input(shape, features):
    network = JudgeNetwork(shape, 4)
    x = torch.zeros(2, *shape)
    assert network.features(x).shape == (2, features)
    assert network(x).shape == (2, 4)


def test_features_that_never_change_stay_finite():
    judge = train_judge(torch.zeros(40, 2), torch.arange(40) % 2, 2, seed=0)
    assert judge.features(torch.zeros(3, 2)).abs().max() < 1e-3


def test_misuse_gets_one_clear_line(judge):
    x, y = blobs()
    bad = x.clone()
    bad[4, 0] = float("inf")
    for args, match in [
        ((bad, y, 3), "input 4 is not"),
        ((x, y[:-1], 3), "labels: expected 60"),
        ((x, y, 2), r"labels: expected class indices in \[0, 2\)"),
        ((x, y, 1), "at least two classes"),
        ((x, y * 0, 3), "at least two classes"),
        ((x[:0], y[:0], 3), "B >= 1"),
        ((x[:, 0], y, 3), "must be of shape"),
        (("no", y, 3), "real numbers"),
    ]:
        with pytest.raises(InputError, match=match) as error:
            train_judge(*args, seed=0)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="limit"):
        train_judge(x, y, 3, seed=0, limit=0)
    for method in (judge.features, judge.predict):
        with pytest.raises(InputError, match=r"shape \(B, 1, 8, 8\)"):
            method(torch.zeros(2, 1, 9, 9))


@pytest.mark.slow
@pytest.mark.skipif("JEM_DATA" not in os.environ, reason="JEM_DATA names no folder of data sets")
def test_it_learns_clothing_from_a_sample_of_the_training_part():
    data = jem.data.load("fashion_mnist")
    judge = train_judge(data.train.x, data.train.y, 10, seed=0, data="fashion_mnist")
    assert judge.name == "fashion_mnist-cnn-64f-n20000-seed0"
    right = judge.predict(data.test.x) == data.test.y
    assert right.double().mean() > 0.87


def test_subsets_are_read_only_as_far_as_needed():
    read = []

    def open_one(source):
        read.append(source)
        return torch.full((2,), float(source))

    part = LazyPart(list(range(50)), torch.arange(50) % 5, open_one)
    x, y = draw_subset(part, 7, seed=0)
    assert read[0] == 0  # for its size
    assert len(read[1:]) == 7 == len(set(read[1:]))
    assert (x[:, 0].long() % 5).equal(y)
    again, _ = draw_subset(part, 7, seed=0)
    other, _ = draw_subset(part, 7, seed=1)
    assert x.equal(again)
    assert not x.equal(other)
    whole, _ = draw_subset(DataPart(torch.arange(6.0)[:, None], torch.zeros(6)), 9, seed=0)
    assert whole.flatten().tolist() == list(range(6))
    few, _ = draw_subset(part, 7, seed=0, max_entries=9)
    assert few.equal(x[:4])
    assert choose_rows(5, 5, seed=0, name="a").tolist() == list(range(5))
    with pytest.raises(InputError, match="empty"):
        draw_subset(DataPart(torch.zeros(0, 2), torch.zeros(0)), 3, seed=0)
