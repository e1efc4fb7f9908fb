"""What training is given: data sets of anyone's, and mistakes met before anything is written."""

import threading
from dataclasses import replace

import pytest
import torch
from test_trainer import SMALL, blobs, model_of
from torch import nn
from torch.utils.data import Dataset

from jem.data import LazyPart
from jem.errors import InputError
from jem.model import JEM
from jem.training import fitting
from jem.training.probe import seconds_per_update
from jem.training.process import isolated_randomness
from jem.training.trainer import Trainer


class Rows(Dataset):
    """Examples one by one, with attributes of its own that are none of our business."""

    def __init__(self, x, y):
        self.x, self.rows, self.labels = x * 255, x, y

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index], self.labels[index]


def test_a_sorted_data_set_is_known_by_all_of_it(monkeypatch):
    monkeypatch.setattr(fitting, "MOST_EXAMPLES", 60)
    x, y = blobs(240)
    order = y.argsort(stable=True)
    data = Rows(x[order], y[order])
    model = model_of()
    recipe = replace(SMALL, epochs=2, class_weight="balanced")
    trainer = Trainer(model, recipe, device="cpu")
    trainer.fit(data)
    assert trainer.context.cross_entropy.class_weight.min() > 0.5
    assert model.sampler.class_frequencies.min() > 0.3
    low, high = model.domain  # that of the examples, not of the attribute `x`
    assert -2 < low.min() < high.max() < 2


def lazily(x, y):
    return LazyPart(list(range(len(y))), y, lambda index: x[index])


@pytest.mark.parametrize("data_set", [Rows, lazily])
def test_a_class_that_is_rare_in_a_data_set_is_counted_through_all_of_it(monkeypatch, data_set):
    monkeypatch.setattr(fitting, "MOST_EXAMPLES", 8)
    x, _ = blobs(96)
    y = (torch.arange(96) == 95).long()  # those first looked at do not show it
    trainer = Trainer(model_of(), replace(SMALL, epochs=1, class_weight="balanced"), device="cpu")
    trainer.fit(data_set(x, y))
    assert trainer.context.cross_entropy.class_weight.tolist() == pytest.approx([96 / 190, 48.0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"augment_flip": True}, "`x` must have shape"),
        ({"augment_shift": 2}, "`x` must have shape"),
        ({"gradient_blur": 0.8}, "`gradient_blur`"),
    ],
)
def test_what_is_for_images_is_refused_before_anything_is_written(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        Trainer(model_of(), replace(SMALL, **change), run_dir=tmp_path / "run").fit(blobs())
    result = Trainer(model_of(), replace(SMALL, epochs=1), run_dir=tmp_path / "run").fit(blobs())
    assert result.iterations == 6


@pytest.mark.parametrize("data_set", [Rows, lambda x, y: (x, y)])
def test_validation_labels_are_checked_before_training(data_set):
    x, y = blobs()
    wrong = torch.where(torch.arange(96) == 41, 9, y)
    with pytest.raises(InputError, match=r"labels.* 0\.\.1"):
        Trainer(model_of(), SMALL, device="cpu").fit((x, y), data_set(x, wrong))


def test_a_domain_of_another_shape_is_refused():
    model = model_of()
    model.domain = -torch.ones(3), torch.ones(3)
    with pytest.raises(InputError, match="`domain`"):
        Trainer(model, SMALL, device="cpu").fit(blobs())


def test_training_works_where_gradients_are_off():
    with torch.no_grad():
        trainer = Trainer(model_of(), replace(SMALL, epochs=1), device="cpu")
        trainer.fit(blobs())
        assert seconds_per_update(trainer, blobs(), updates=1) > 0
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize(("classes", "labels"), [(["a", "b"], 0), (None, 1)])
def test_one_output_is_a_density_and_no_classifier(classes, labels):
    x, y = blobs()
    body = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1))
    with pytest.raises(InputError, match="2 outputs"):
        Trainer(JEM(body, classes=classes), SMALL, device="cpu").fit((x, labels * y))
    Trainer(JEM(body), replace(SMALL, epochs=1), device="cpu").fit((x, torch.full_like(y, 3)))


def test_a_network_alone_is_refused():
    with pytest.raises(InputError, match=r"be a jem\.JEM, got Linear: wrap"):
        Trainer(nn.Linear(2, 2), SMALL, device="cpu")


def test_a_data_set_that_is_read_is_finite():
    x, y = blobs()
    x[37, 1] = torch.nan
    with pytest.raises(InputError, match="item 37"):
        Trainer(model_of(), SMALL, device="cpu").fit(Rows(x, y))


def test_one_thread_at_a_time_is_where_randomness_is_isolated():
    entered, leave = threading.Event(), threading.Event()

    def first():
        with isolated_randomness(torch.device("cpu")):
            entered.set()
            leave.wait(10)

    inside = []

    def second():
        entered.wait(10)
        with isolated_randomness(torch.device("cpu")):
            inside.append(leave.is_set())

    threads = [threading.Thread(target=target) for target in (first, second)]
    for thread in threads:
        thread.start()
    entered.wait(10)
    threads[1].join(0.2)
    leave.set()
    for thread in threads:
        thread.join(10)
    assert inside == [True]
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), TypeError("no font for this name")]
)
def test_a_picture_that_cannot_be_written_does_not_end_a_run(tmp_path, monkeypatch, error):
    def fails(figure, path):
        raise error

    monkeypatch.setattr("jem.plotting.save_figure", fails)
    folder = tmp_path / "run"
    with pytest.warns(UserWarning, match=rf"cannot write .*samples.png: .*{error.args[-1]}"):
        result = Trainer(model_of(), SMALL, run_dir=folder, device="cpu").fit(blobs())
    assert result.kept_epoch == 4
    assert (folder / "metrics.jsonl").read_text().count('"kind": "end"') == 1


class Unpools(nn.Module):
    """Holds an operation that torch has no deterministic form of."""

    def __init__(self):
        super().__init__()
        self.pool, self.unpool = nn.MaxPool1d(2, return_indices=True), nn.MaxUnpool1d(2)
        self.last = nn.Linear(2, 2)

    def forward(self, x):
        return self.last(self.unpool(*self.pool(x[:, None])).flatten(1))


def test_an_operation_that_is_not_deterministic_is_allowed_and_told():
    recipe = replace(SMALL, epochs=1)
    with pytest.warns(UserWarning, match="unpooling.* in the network is not deterministic"):
        Trainer(JEM(Unpools()), recipe, device="cpu").fit(blobs())
    torch.use_deterministic_algorithms(True)
    try:  # unless it is the user who forbids it
        with pytest.raises(InputError, match="does not have a deterministic implementation"):
            Trainer(JEM(Unpools()), recipe, device="cpu").fit(blobs())
    finally:
        torch.use_deterministic_algorithms(False)


class Blind(nn.Linear):
    """A network whose body is computed without gradients."""

    def forward(self, x):
        with torch.no_grad():
            x = x.tanh()
        return super().forward(x)


class InPlace(nn.Linear):
    """A network that changes what it is given."""

    def forward(self, x):
        return super().forward(x.mul_(2))


@pytest.mark.parametrize("network", [Blind, InPlace])
def test_a_network_that_chains_cannot_move_by_is_refused(network, tmp_path):
    with pytest.raises(InputError, match="has no gradient with respect to the inputs"):
        Trainer(JEM(network(2, 2)), SMALL, run_dir=tmp_path / "run", device="cpu").fit(blobs())
    plain = replace(SMALL, objective="none", epochs=1)
    if network is Blind:  # a classifier it may be
        assert Trainer(JEM(network(2, 2)), plain, device="cpu").fit(blobs()).iterations == 6


def test_validation_sets_of_anyones_may_have_attributes_of_their_own():
    x, y = blobs()
    valid = Rows(x, y)
    valid.y = y + 1
    result = Trainer(model_of(), replace(SMALL, epochs=1), device="cpu").fit((x, y), valid)
    assert "valid_accuracy" in result.epochs[0]


def test_a_network_without_gradients_may_be_measured_as_it_is():
    trainer = Trainer(JEM(Blind(2, 2)), replace(SMALL, epochs=0), device="cpu")
    assert trainer.fit(blobs()).as_given == "0 updates were made"
