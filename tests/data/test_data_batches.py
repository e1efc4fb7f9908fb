import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    TensorDataset,
    WeightedRandomSampler,
)

from jem.data import BatchStream, DataPart
from jem.data.batches import as_part, augment
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
    assert (len(stream()), len(stream(drop_last=False))) == (4, 5)
    assert [len(y) for _, y in batches] == [5, 5, 5, 5, 3]
    assert sorted(torch.cat([y for _, y in batches]).tolist()) == list(range(23))
    for x, y in batches:
        assert torch.equal(x[:, 0], 2.0 * y)


@pytest.mark.parametrize("dataset", [DataPart(X, Y), OnDisk()])
@pytest.mark.usefixtures("global_rng_untouched")
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
    loader = DataLoader(OnDisk(), num_workers=num_workers)
    got = list(stream(as_part(loader)).epoch(1, start=1))
    for (x, y), (x_expected, y_expected) in zip(got, expected, strict=True):
        assert torch.equal(x, x_expected)
        assert torch.equal(y, y_expected)
        assert y.dtype == torch.int64


def test_what_gives_no_batches_is_refused():
    with pytest.raises(InputError, match="`batch_size` must be a whole number"):
        stream(batch_size=0)
    with pytest.raises(InputError, match="`dataset` must hold examples"):
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
        (X.numpy().astype(np.float64), Y.numpy().astype(np.uint8)),
        (X.numpy().astype(">f4"), Y.numpy().astype(">i8")),
        (X.clone().requires_grad_() * 1, Y),
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


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((X.byte(), Y), "`x` must be float, got torch.uint8"),
        ((X / 0, Y), "`x` must be finite, got .* row 0"),
        ((X, Y.float()), "`y` .*got torch.float32"),
        ((X, Y - 1), "`y` must be at least 0, got -1"),
        ((X, Y[:9]), r"`y` must have .*shape \(23,\), got \(9,\)"),
        (Endless(), "`data` .*got Endless"),
        (OnDisk(size=0), "`data` .*empty"),
        (OnDisk(X[0]), "`data` must give pairs"),
        (OnDisk(("image", 0)), "`x` must be a float tensor, got str"),
        (OnDisk((X[0], "cat")), "`y` must be a class index, got str"),
        (
            OnDisk({"pixels": X[0], "label": 1}),
            "'pixel_values' and 'label', got list of 2 in item 0",
        ),
        ((X.relu().to_sparse(), Y), "`x` must be dense, .*: x.to_dense"),
        (DataLoader(Endless()), "`data` .*got Endless"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(data, message):
    with pytest.raises(InputError, match=message):
        as_part(data)


class Items:
    """Items by index, of no class of torch's, as the data sets of Hugging Face are."""

    def __init__(self, make):
        self.make = make

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return self.make(index)


@pytest.mark.parametrize(
    "make",
    [
        lambda i: (X[i].double(), Y[i]),
        lambda i: [X[i].numpy(), np.int64(Y[i])],
        lambda i: {"idx": i, "pixel_values": X[i].double(), "label": int(Y[i])},
        lambda i: {"x": X[i].tolist(), "y": Y[i]},
    ],
)
def test_items_of_any_form_train_as_pairs_do(make):
    for data in (Items(make), DataLoader(Items(make), batch_size=3, shuffle=True)):
        got, expected = list(stream(as_part(data)).epoch(0)), list(stream().epoch(0))
        assert [labels.tolist() for _, labels in got] == [y.tolist() for _, y in expected]
        assert torch.equal(torch.cat([x for x, _ in got]), torch.cat([x for x, _ in expected]))


def test_a_loader_keeps_its_collate_function_and_drops_its_sampler():
    def collate(items):
        x, y = zip(*items, strict=True)
        return {"pixel_values": torch.stack(x) / 2, "labels": torch.stack(y)}

    loader = DataLoader(DataPart(X, Y), collate_fn=collate)
    assert torch.equal(as_part(loader)[3][0], X[3] / 2)
    sampler = WeightedRandomSampler(torch.ones(23), 23)
    with pytest.warns(UserWarning, match="WeightedRandomSampler, is ignored: .* `class_weight`"):
        as_part(DataLoader(OnDisk(), sampler=sampler))


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (None, r"give pairs \(x, y\).*, got None in item 7"),
        ((X[0] / 0, 0), "`x` must be finite, got NaN or infinity in item 7"),
        ((torch.zeros(2, 2), 0), r"shape .* of item 0, got \(2, 2\) in item 7"),
    ],
)
def test_an_odd_item_is_named_where_it_stands(odd, message, num_workers):
    items = Items(lambda i: odd if i == 7 else (X[i], Y[i]))
    part = as_part(DataLoader(items, num_workers=num_workers))
    with pytest.raises(InputError, match=message) as caught:
        list(stream(part).epoch(0))
    assert "\n" not in str(caught.value)


# -- augmentation ---------------------------------------------------------------------------------


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count=64, size=9):
    return torch.rand(count, 2, size, size, dtype=torch.float64, generator=generator(1)) * 2 - 1


def apply(x, shift=0, flip=False, noise_std=0.0, seed=0):
    return augment(x, shift=shift, flip=flip, noise_std=noise_std, generator=generator(seed))


def test_nothing_to_do_returns_the_input_itself_and_draws_nothing():
    x, source = images(), generator()
    before = source.get_state()
    assert augment(x, shift=0, flip=False, noise_std=0.0, generator=source) is x
    assert torch.equal(source.get_state(), before)


def test_each_image_is_one_of_the_possible_shifts():
    x = images()
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2), mode="replicate")
    windows = torch.stack(
        [padded[:, :, i : i + 9, j : j + 9] for i in range(5) for j in range(5)], 1
    )
    matches = (windows == apply(x, shift=2)[:, None]).flatten(2).all(2)
    assert matches.sum(1).tolist() == [1] * 64
    assert matches.any(0).sum() > 15  # shifts vary from image to image


def test_flip_mirrors_about_half_of_the_images():
    x = images(400)
    out = apply(x, flip=True)
    kept = (out == x).flatten(1).all(1)
    mirrored = (out == x.flip(3)).flatten(1).all(1)
    assert (kept ^ mirrored).all()
    assert 150 < kept.sum() < 250


def test_noise_has_its_standard_deviation_and_is_not_clipped():
    x = torch.ones(500, 1, 8, 8)
    noise = apply(x, noise_std=0.1) - x
    assert noise.std().item() == pytest.approx(0.1, rel=0.02)
    assert noise.mean().item() == pytest.approx(0, abs=2e-3)
    assert noise.max() > 0


def test_same_seed_same_result_and_global_generator_untouched():
    x, before = images(), torch.get_rng_state()
    options = {"shift": 2, "flip": True, "noise_std": 0.1}
    out, copy = apply(x, **options), x.clone()
    assert torch.equal(out, apply(x, **options))
    assert torch.equal(x, copy)
    assert (out.shape, out.dtype) == (x.shape, x.dtype)
    assert not torch.equal(apply(x, **options), apply(x, **options, seed=1))
    assert torch.equal(before, torch.get_rng_state())


def test_rows_of_a_table_take_noise_but_no_shift():
    x = torch.zeros(6, 3)
    assert apply(x, noise_std=0.1).shape == (6, 3)
    for options in ({"shift": 1}, {"flip": True}):
        with pytest.raises(InputError, match=r"`x` .*to shift or flip, got \(6, 3\)"):
            apply(x, **options)
