import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from jem.data import BatchStream, DataPart, as_part
from jem.errors import InputError

X, Y = torch.arange(46.0).reshape(23, 2), torch.arange(23)


class OnDisk(Dataset):
    """Stands for a set that is read example by example."""

    def __init__(self, example=None, size=23):
        self.example = example
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return (X[index], int(Y[index])) if self.example is None else self.example


class Endless(IterableDataset):
    def __iter__(self):
        yield X[0], 0


def stream(dataset=None, **options):
    options = {"batch_size": 5, "seed": 3, "name": "batches"} | options
    return BatchStream(DataPart(X, Y) if dataset is None else dataset, **options)


def labels(batches):
    return [y.tolist() for _, y in batches]


def test_an_epoch_visits_each_example_once_with_its_own_label():
    batches = list(stream(drop_last=False).epoch(0))
    assert [len(y) for _, y in batches] == [5, 5, 5, 5, 3]
    assert sorted(torch.cat([y for _, y in batches]).tolist()) == list(range(23))
    for x, y in batches:
        assert torch.equal(x[:, 0], 2.0 * y)


@pytest.mark.parametrize(
    ("size", "drop_last", "length"), [(5, True, 4), (5, False, 5), (23, True, 1), (100, True, 1)]
)
def test_length_counts_the_batches(size, drop_last, length):
    batches = stream(batch_size=size, drop_last=drop_last)
    assert len(batches) == length
    assert len(list(batches.epoch(0))) == length


def test_set_smaller_than_a_batch_gives_one_smaller_batch():
    assert [len(y) for _, y in stream(batch_size=100).epoch(0)] == [23]


@pytest.mark.parametrize("dataset", [DataPart(X, Y), OnDisk()])
def test_resuming_within_an_epoch_equals_going_on(dataset):
    whole = labels(stream(dataset).epoch(4))
    for start in range(5):
        assert labels(stream(dataset).epoch(4, start=start)) == whole[start:]


def test_order_depends_on_seed_name_and_epoch_alone():
    reference = labels(stream().epoch(1))
    used = stream()
    list(used.epoch(0))
    torch.manual_seed(99)
    assert labels(used.epoch(1)) == reference
    assert labels(stream().epoch(2)) != reference
    assert labels(stream(seed=4).epoch(1)) != reference
    assert labels(stream(name="other").epoch(1)) != reference


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_and_memory_give_the_same_batches(num_workers):
    expected = list(stream().epoch(1, start=1))
    got = list(stream(OnDisk(), num_workers=num_workers).epoch(1, start=1))
    for (x, y), (x_expected, y_expected) in zip(got, expected, strict=True):
        assert torch.equal(x, x_expected)
        assert torch.equal(y, y_expected)
        assert y.dtype == torch.int64


def test_tensor_dataset_is_used_in_memory():
    assert labels(stream(TensorDataset(X, Y)).epoch(0)) == labels(stream().epoch(0))
    assert stream(TensorDataset(X, Y))._in_memory is not None


@pytest.mark.parametrize("dataset", [DataPart(X, Y), OnDisk()])
def test_global_generator_is_left_alone(dataset):
    before = torch.get_rng_state()
    list(stream(dataset).epoch(0))
    assert torch.equal(before, torch.get_rng_state())


def test_wrong_batch_sizes_and_starts():
    with pytest.raises(InputError, match="batch size of at least 1, got 0"):
        stream(batch_size=0)
    with pytest.raises(InputError, match="from 0 to 4, got 5"):
        stream().epoch(0, start=5)
    with pytest.raises(InputError, match="empty"):
        stream(DataPart(X[:0], Y[:0]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dataset", [DataPart(X, Y), OnDisk()])
def test_batches_on_cuda_equal_those_on_cpu(dataset):
    for (x, y), (x_cpu, y_cpu) in zip(
        stream(dataset, device="cuda").epoch(0), stream(dataset).epoch(0), strict=True
    ):
        assert x.is_cuda
        assert torch.equal(x.cpu(), x_cpu)
        assert torch.equal(y.cpu(), y_cpu)


@pytest.mark.parametrize(
    "data",
    [
        (X, Y),
        [X.double(), Y.int()],
        (X.numpy(), Y.numpy()),
        (X.numpy().astype(np.float64), Y.numpy().astype(np.uint8)),
        (X.flip(0).numpy()[::-1], Y.numpy().astype(np.uint16)),
        (X.numpy().astype(">f4"), Y.numpy().astype(">i8")),
        (X, Y.to(torch.uint16)),
        (X.clone().requires_grad_() * 1, Y),
        DataPart(X, Y),
        TensorDataset(X, Y),
    ],
)
def test_pairs_and_sets_in_memory_become_a_part(data):
    part = as_part(data)
    assert isinstance(part, DataPart)
    assert torch.equal(part.x, X)
    assert part.x.dtype == torch.float32
    assert not part.x.requires_grad
    assert part.y.dtype == torch.int64


def test_other_sets_come_back_as_they_are():
    dataset = OnDisk()
    assert as_part(dataset) is dataset


def infinite():
    x = X.clone()
    x[4, 1] = torch.inf
    return x


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((X.byte(), Y), r"float, got torch.uint8: scale it to \[-1, 1\].*from_arrays"),
        ((infinite(), Y), "nan or infinity in example 4"),
        ((X, Y.float()), r"torch.float32: use y.long\(\)"),
        ((X, Y > 3), "torch.bool"),
        ((X, Y - 1), "from 0 up in y, got -1"),
        ((X, Y[:9]), r"each of the 23 inputs, shape \(23,\), got \(9,\)"),
        ((X, Y[:, None]), r"got \(23, 1\)"),
        ((X[:0], Y[:0]), r"N > 0, got \(0, 2\)"),
        ((X[:, 0], Y), r"got \(23,\)"),
        ((X.tolist(), Y), "tensors or arrays, got list"),
        (DataPart(X.byte(), Y), "torch.uint8"),
        (TensorDataset(X, Y.float()), "class indices"),
        (TensorDataset(X), "pairs"),
        ("digits", r"a pair \(x, y\) .*got str"),
        ((X, Y, Y), "got tuple"),
        (Endless(), "length and an index, got Endless"),
        (OnDisk(size=0), "empty"),
        (OnDisk(X[0]), r"pairs \(x, y\), got Tensor"),
        (OnDisk(("image", 0)), "float tensor, got str.*transform"),
        (OnDisk((X[0].byte(), 0)), "torch.uint8"),
        (OnDisk((X[0] * torch.nan, 0)), "nan or infinity in example 0"),
        (OnDisk((X[0], torch.eye(3)[0])), r"one class index, got shape \(3,\)"),
        (OnDisk((X[0], 0.5)), "class indices"),
        (OnDisk((X[0], -1)), "got -1"),
        (OnDisk((X[0], "cat")), "class index"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(data, message):
    with pytest.raises(InputError, match=message):
        as_part(data)
