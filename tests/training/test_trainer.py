"""The loop: learns, repeats itself, resumes to the same bits, recovers, and loses nothing."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

import jem
from jem import networks
from jem.devices import place
from jem.errors import (
    InputError,
    RunFolderError,
    TrainingInterrupted,
)
from jem.model import JEM
from jem.randomness import derive_seed
from jem.runs.checkpoint import Checkpoints
from jem.sampling import GaussianBase, UniformBase
from jem.training.monitor import read_metrics
from jem.training.optimisation import learning_rate
from jem.training.recipe import Recipe
from jem.training.recipes import RECIPES
from jem.training.setup import domain_of
from jem.training.trainer import Trainer
from jem.training.validation import validate

SMALL = replace(
    RECIPES["fast"], epochs=4, batch_size=16, num_chains=16, buffer_size=32, checkpoint_every=5,
    learning_rate=1e-3, density_weight=0.3,
)  # fmt: skip
"""A small run, whose tests do not depend on how `fast` is tuned."""


def blobs(count=96, seed=0):
    """Two classes in the plane, well apart."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 2
    x = torch.randn(count, 2, generator=generator) * 0.15 + (y[:, None] - 0.5)
    return x.clamp(-1, 1), y


def model_of(seed=0, **kwargs):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return JEM(networks.mlp((2,), 2, width=16, depth=2, head="factored", **kwargs))


def weights(model):
    return {
        name: value.clone()
        for name, value in getattr(model, "network", model).state_dict().items()
    }


def assert_same_bits(first, second):
    assert first.keys() == second.keys()
    for name in first.keys() - {"_extra_state"}:  # settings of a model, not tensors
        assert torch.equal(first[name], second[name]), name


@pytest.fixture
def train():
    return blobs()


@pytest.mark.parametrize("name", sorted(RECIPES.keys() - {"companion", "image_ebm"}))
def test_every_recipe_learns_two_blobs(name, train):
    recipe = replace(
        RECIPES[name], epochs=20, learning_rate=5e-3, batch_size=16, num_chains=16, num_steps=2,
        buffer_size=64,
    )  # fmt: skip
    model = model_of()
    trainer = Trainer(model, recipe, device="cpu")
    result = trainer.fit(train, blobs(seed=1))
    assert result.iterations == 20 * 6
    assert result.epochs[-1]["valid_accuracy"] > 0.97
    assert not model.training
    assert all(p.grad is None for p in model.parameters())


def test_a_density_alone_looks_at_no_label(train):
    x, y = train
    recipe = replace(SMALL, head="density")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        models = [JEM(networks.mlp((2,), 1, width=16)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model, labels in zip(models, (y, 7 - y), strict=True):
        Trainer(model, recipe, device="cpu").fit((x, labels), blobs(seed=1))
    assert_same_bits(*map(weights, models))
    far = torch.tensor([[0.0, 9.0]])
    assert models[0].log_density(x).median() > models[0].log_density(far).item()
    with pytest.raises(InputError, match="one output for the head 'density', got 2"):
        Trainer(JEM(networks.mlp((2,), 2)), recipe, device="cpu").fit(train)
    with pytest.raises(InputError, match="set `head` of the recipe to 'density'"):
        Trainer(JEM(networks.mlp((2,), 1)), SMALL, device="cpu").fit(train)


def test_same_seed_same_bits_and_other_seed_other_bits(train):
    first, second, third = model_of(), model_of(), model_of()
    Trainer(first, SMALL, device="cpu", seed=3).fit(train)
    torch.rand(7)  # what others do with the global generator must not matter
    Trainer(second, SMALL, device="cpu", seed=3).fit(train)
    Trainer(third, SMALL, device="cpu", seed=4).fit(train)
    assert_same_bits(weights(first), weights(second))
    assert not torch.equal(first.network.head.linear.weight, third.network.head.linear.weight)


def test_fit_leaves_the_global_state_of_torch_alone(train):
    before = torch.get_rng_state()
    Trainer(model_of(dropout=0.2), SMALL, device="cpu").fit(train)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        Trainer(model_of(), replace(SMALL, epochs=1), device="cpu").fit(train)
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


class CrashError(Exception):
    """Raised from a callback, as a crash would be."""


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"separate_density_batches": True, "augment_noise": 0.1},
        {"fused": False, "replacement": True, "optimizer": "sgd", "init": "mixed"},
        {"objective": "none"},
        {"adaptive_sam_rho": 0.5, "separate_density_batches": True, "density_batch_size": 11},
        {"outlier_count": 7, "separate_density_batches": True, "adaptive_sam_rho": 0.5},
    ],
)
def test_resumed_run_ends_in_the_same_bits(tmp_path, train, change):
    recipe = replace(SMALL, **change)
    whole = model_of(dropout=0.1)
    Trainer(whole, recipe, run_dir=tmp_path / "whole", device="cpu").fit(train, train)

    def crash(metrics):
        if metrics["epoch"] == 2:
            raise CrashError

    with pytest.raises(CrashError):
        Trainer(model_of(dropout=0.1), recipe, run_dir=tmp_path / "cut", device="cpu").fit(
            train, train, on_epoch=crash
        )
    resumed = model_of(seed=99, dropout=0.1)  # its own first weights must not matter
    Trainer(resumed, recipe, run_dir=tmp_path / "cut", device="cpu").fit(train, train, resume=True)
    assert_same_bits(weights(whole), weights(resumed))
    steps = [
        [
            (r["iteration"], r["loss"])
            for r in read_metrics(tmp_path / name / "metrics.jsonl", "update")
        ]
        for name in ("whole", "cut")
    ]
    assert steps[0] == steps[1]


def test_damaged_checkpoint_is_named_and_the_one_before_used(tmp_path, train):
    whole = model_of()
    run = tmp_path / "run"
    Trainer(whole, SMALL, run_dir=run, device="cpu").fit(train)
    newest = sorted((run / "checkpoints").glob("*.pt"))[-1]
    content = bytearray(newest.read_bytes())
    half = len(content) // 2
    content[half : half + 200] = bytes(200)  # more than what zip files may fill up with
    newest.write_bytes(bytes(content))
    resumed = model_of(seed=5)
    with pytest.warns(UserWarning, match=newest.name):
        Trainer(resumed, SMALL, run_dir=run, device="cpu").fit(train, resume=True)
    assert_same_bits(weights(whole), weights(resumed))


def test_run_folder_explains_itself(tmp_path, train):
    Trainer(model_of(), SMALL, run_dir=tmp_path / "run", device="cpu").fit(train, train)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["network"]["name"] == "mlp"
    step = read_metrics(tmp_path / "run" / "metrics.jsonl", "update")[0]
    for key in ("loss", "gap", "gradient_norm", "share_at_bounds", "chain_age", "energy_data"):
        assert isinstance(step[key], float), key
    epochs = read_metrics(tmp_path / "run" / "metrics.jsonl", "epoch")
    assert [record["epoch"] for record in epochs] == [1, 2, 3, 4]
    assert (tmp_path / "run" / "samples.png").read_bytes().startswith(b"\x89PNG")


# -- divergence -----------------------------------------------------------------------------------

UNSTABLE = replace(
    SMALL, num_steps=1, energy_l2=0.0, density_weight=1.0, head="joint", epochs=25,
    schedule="constant", step_size=1.0, learning_rate=0.2, max_energy_gap=50.0,
    warmup=0.0, checkpoint_every=30,
)  # fmt: skip
"""A real divergence: no regulariser, one move an iteration, and a learning rate far too large."""


class Recorded(Trainer):
    """Keeps recoveries, Langevin steps, learning rate and seed of the chains of each update."""

    def update(self, batch):
        outcome = super().update(batch)
        rate = self.state.optimizer.param_groups[0]["lr"]
        seed = self.state.chains.generator.initial_seed()
        done = self.state.progress.recoveries, outcome.proposed.num_steps, rate, seed
        self.steps = [*getattr(self, "steps", ()), done]
        return outcome


@pytest.fixture(scope="module")
def diverged(tmp_path_factory):
    """A run that diverges and recovers: trainer, what it did, folder."""
    run = tmp_path_factory.mktemp("diverged") / "run"
    trainer = Recorded(model_of(), UNSTABLE, seed=3, run_dir=run, device="cpu")
    return trainer, trainer.fit(blobs(), blobs()), run


def test_divergence_recovers_and_finishes(diverged):
    trainer, result, run = diverged
    assert result.recoveries >= 2
    assert result.iterations == 25 * 6
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    recoveries = read_metrics(run / "metrics.jsonl", "recovery")
    assert len(recoveries) == result.recoveries
    for record in recoveries:
        assert record["back_to"] <= record["iteration"]
        assert record["back_to"] % UNSTABLE.checkpoint_every == 0


def test_a_recovery_brings_another_move_half_the_rate_and_other_noise(diverged):
    trainer, result, _ = diverged
    for recoveries in range(result.recoveries + 1):
        seed = derive_seed(3, "chains", recoveries)
        assert {step[1:] for step in trainer.steps if step[0] == recoveries} <= {
            (1 + recoveries, 0.2 * 0.5**recoveries, seed)
        }
    assert len({step[0] for step in trainer.steps}) >= 2


def test_divergence_recovers_to_the_same_bits_without_a_folder_and_when_it_is_cut(
    tmp_path, train, diverged
):
    expected = weights(diverged[0].model)
    in_memory, resumed, calls = model_of(), model_of(seed=8), []
    Trainer(in_memory, UNSTABLE, seed=3, device="cpu").fit(train, train)
    assert_same_bits(expected, weights(in_memory))

    def crash(metrics):
        calls.append(metrics)
        if metrics["recoveries"] and len(calls) > 3:
            raise CrashError

    words = {"run_dir": tmp_path / "cut", "seed": 3, "device": "cpu"}
    with pytest.raises(CrashError):
        Trainer(model_of(), UNSTABLE, **words).fit(train, train, on_epoch=crash)
    Trainer(resumed, UNSTABLE, **words).fit(train, train, resume=True)
    assert_same_bits(expected, weights(resumed))


# -- signals, kills and other people --------------------------------------------------------------


def test_sigint_saves_and_resume_ends_in_the_same_bits(tmp_path, train):
    whole = model_of()
    Trainer(whole, SMALL, device="cpu").fit(train)

    def interrupt(metrics):
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    trainer = Trainer(model_of(), SMALL, run_dir=tmp_path / "run", device="cpu")
    with pytest.raises(TrainingInterrupted, match="stopped at update 6 of 24"):
        trainer.fit(train, on_epoch=interrupt)
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(TrainingInterrupted, match="stopped at update 12 of 24"):
        Trainer(model_of(), SMALL, run_dir=tmp_path / "run", device="cpu").fit(
            train, resume=True, on_epoch=interrupt
        )
    resumed = model_of(seed=9)
    Trainer(resumed, SMALL, run_dir=tmp_path / "run", device="cpu").fit(train, resume=True)
    assert_same_bits(weights(whole), weights(resumed))


def test_training_works_outside_the_main_thread(train):
    results = []
    thread = threading.Thread(
        target=lambda: results.append(Trainer(model_of(), SMALL, device="cpu").fit(train))
    )
    thread.start()
    thread.join()
    assert results[0].iterations == 24


KILLED = """
import sys, torch, jem
from copy import deepcopy
from dataclasses import replace
sys.path.insert(0, {tests!r})
from test_trainer import SMALL, blobs, model_of
from jem.training.trainer import Trainer
torch.set_num_threads(1)
recipe = replace(SMALL, epochs=60)
folder = {folder!r}
Trainer(model_of(dropout=0.1), recipe, run_dir=folder, device="cpu").fit(blobs(), resume={resume})
"""


def run_killed(folder, resume, delay=None):
    """Run a training in a process of its own and, after `delay` seconds of training, kill it."""
    code = KILLED.format(tests=os.path.dirname(__file__), folder=str(folder), resume=resume)
    process = subprocess.Popen([sys.executable, "-c", code])
    if delay is None:
        assert process.wait(timeout=120) == 0
        return
    while not list((folder / "checkpoints").glob("*.pt")) and process.poll() is None:
        time.sleep(0.01)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_three_sigkills_end_in_the_same_bits(tmp_path):
    run_killed(tmp_path / "whole", resume=False)
    random = torch.Generator().manual_seed(int(time.time()))
    delays = (torch.rand(3, generator=random) * 1.0).tolist()
    for attempt, delay in enumerate(delays):
        run_killed(tmp_path / "cut", resume=attempt > 0, delay=delay)
    run_killed(tmp_path / "cut", resume=True)
    states = [
        Checkpoints(tmp_path / name / "checkpoints").load_latest() for name in ("whole", "cut")
    ]
    assert states[0][0] == states[1][0] == 360
    for module in ("model", "average"):
        assert_same_bits(states[0][1]["modules"][module], states[1][1]["modules"][module])
    assert torch.equal(states[0][1]["chains"]["chains"], states[1][1]["chains"]["chains"]), delays


def test_full_disk_keeps_what_was_there_and_resumes(tmp_path, train, monkeypatch):
    whole = model_of()
    Trainer(whole, SMALL, device="cpu").fit(train)
    import jem.runs.checkpoint as module

    write, count = module.write_atomically, []

    def full(path, content):
        count.append(path)
        if len(count) > 4:
            raise RunFolderError(f"cannot write {path}: No space left on device")
        write(path, content)

    monkeypatch.setattr(module, "write_atomically", full)
    with pytest.raises(RunFolderError, match="No space left"):
        Trainer(model_of(), SMALL, run_dir=tmp_path / "run", device="cpu").fit(train)
    monkeypatch.setattr(module, "write_atomically", write)
    resumed = model_of(seed=2)
    Trainer(resumed, SMALL, run_dir=tmp_path / "run", device="cpu").fit(train, resume=True)
    assert_same_bits(weights(whole), weights(resumed))


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(8, 3), torch.zeros(8).long(), "does not take inputs of shape"),
        (torch.zeros(8, 2), torch.full((8,), 2), r"labels.* must lie in 0\.\.1"),
        (torch.full((8, 2), float("nan")), torch.zeros(8).long(), "finite"),
        (torch.zeros(8, 2), torch.zeros(7).long(), "7"),
    ],
)
def test_data_that_do_not_fit_get_a_clear_error(x, y, message):
    with pytest.raises(InputError, match=message):
        Trainer(model_of(), SMALL, device="cpu").fit((x, y))


def test_a_network_that_does_not_fit_what_is_said_of_it_is_refused(train):
    def refused(model, message, data=train, valid=None):
        with pytest.raises(InputError, match=message):
            Trainer(model, SMALL, device="cpu").fit(data, valid)

    three = JEM(networks.mlp((2,), 2), classes=("a", "b", "c"))
    refused(three, "`network` must have 3 outputs, one for each class, got 2")
    refused(JEM(networks.mlp((2,), 2), input_shape=(3,)), r"have shape \(B, 3\)")
    refused(model_of(), "`valid`", valid=(torch.rand(4, 3), train[1][:4]))
    frozen = model_of()
    frozen.requires_grad_(False)
    refused(frozen, "no parameter to train")


@pytest.mark.parametrize("channels", [None, 4])
def test_rows_that_interact_are_refused(channels, train):
    """With batch statistics the energy of a chain depends on the chains beside it."""
    x, y = train
    norm = torch.nn.BatchNorm1d(2, track_running_stats=False)
    network = torch.nn.Sequential(norm, torch.nn.Linear(2, 2))
    message = "does not take inputs"  # one row has no variance
    if channels is not None:
        x = x[:, :, None].expand(-1, -1, channels).contiguous() + torch.arange(channels) / 10
        network = torch.nn.Sequential(norm, torch.nn.Flatten(), torch.nn.Linear(2 * channels, 2))
        message = "depend on the other inputs"
    with pytest.raises(InputError, match=message):
        Trainer(JEM(network), SMALL, device="cpu").fit((x, y))


def test_a_run_is_resumed_in_its_folder_with_its_settings_and_network_alone(tmp_path, train):
    run = tmp_path / "run"
    Trainer(model_of(), SMALL, run_dir=run, device="cpu").fit(train)

    def refused(message, model, recipe=SMALL, run_dir=run, resume=True, error=RunFolderError):
        with pytest.raises(error, match=message):
            Trainer(model, recipe, run_dir=run_dir, device="cpu").fit(train, resume=resume)

    refused("already holds a run", model_of(), resume=False)
    refused("learning_rate", model_of(), replace(SMALL, learning_rate=0.5))
    refused("no run to resume", model_of(), run_dir=tmp_path / "none")
    refused("run_dir", model_of(), run_dir=None, error=InputError)
    wider = JEM(networks.mlp((2,), 2, width=24, depth=2, head="factored"))
    refused("another network.*size mismatch", wider)


@pytest.mark.parametrize("name", ["plain", "fast"])
def test_one_example_at_a_time_is_refused_where_the_network_cannot_take_it(name):
    def train(network, **changes):
        recipe = replace(RECIPES[name], epochs=1, batch_size=1, **changes)
        Trainer(JEM(network), recipe, device="cpu").fit((torch.randn(5, 2), torch.arange(5) % 2))

    def network():
        return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))

    with pytest.raises(InputError, match="`batch_size`"):
        train(network())
    train(network(), freeze_norm_and_dropout=True)
    train(nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Linear(4, 2)))


def test_inputs_outside_the_domain_are_refused():
    x = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    model = JEM(network, domain=(0.0, 1.0))
    with pytest.raises(InputError, match="`domain`"):
        Trainer(model, SMALL, device="cpu").fit((x, torch.arange(8) % 2))


def test_an_unknown_device_is_named():
    with pytest.raises(InputError, match="device 'tpu' cannot be used: expected cpu, cuda"):
        Trainer(model_of(), SMALL, device="tpu")


# -- other shapes of problem ----------------------------------------------------------------------


def test_single_output_trains_without_labels_and_samples(train):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = JEM(networks.mlp((2,), 1, width=16, head="joint"))
    recipe = replace(
        SMALL, epochs=40, learning_rate=5e-3, warmup=0.0, density_weight=1.0, energy_l2=1e-3,
        step_size=0.1, noise_std=0.1,
    )  # fmt: skip
    Trainer(model, recipe, device="cpu").fit((train[0], torch.zeros(len(train[0])).long()))
    assert model.log_density(train[0]).mean() > model.log_density(torch.tensor([[-0.9, 0.9]]))
    assert jem.sample(model, count=5).shape == (5, 2)
    with pytest.raises(InputError, match="no classes"):
        model.predict_proba(train[0])


def test_lazy_dataset_gives_the_bits_of_the_tensors(train):
    class Lazy(torch.utils.data.Dataset):
        def __len__(self):
            return len(train[0])

        def __getitem__(self, index):
            return train[0][index], int(train[1][index])

    held, lazy = model_of(), model_of()
    Trainer(held, SMALL, device="cpu").fit(train)
    Trainer(lazy, SMALL, device="cpu").fit(Lazy())
    assert_same_bits(weights(held), weights(lazy))


def test_average_is_what_validation_and_the_model_end_with(train):
    recipe = replace(SMALL, ema_decay=0.9)
    trainer = Trainer(model_of(), recipe, device="cpu")
    raw = []
    step = trainer.update

    def spy(batch):
        outcome = step(batch)
        raw.append(weights(trainer.model))
        return outcome

    trainer.update = spy
    trainer.fit(train)
    expected = None
    for n, state in enumerate(raw):
        decay = min(0.9, (1 + n) / (10 + n))
        if expected is None:
            expected = {k: v.double() for k, v in state.items()}
        else:
            expected = {k: decay * expected[k] + (1 - decay) * v for k, v in state.items()}
    for name, value in weights(trainer.model).items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-4, atol=1e-6)


# -- pieces ---------------------------------------------------------------------------------------


def test_learning_rate_schedules():
    recipe = Recipe(learning_rate=2.0, warmup=0.1, schedule="constant")
    assert learning_rate(recipe, 0, 100) == 0
    assert learning_rate(recipe, 5, 100) == pytest.approx(1.0)
    assert learning_rate(recipe, 99, 100) == 2.0
    assert learning_rate(recipe, 0, 4) == 2.0  # a warm-up that rounds to nothing
    cosine = replace(recipe, warmup=0.0, schedule="cosine")
    assert learning_rate(cosine, 0, 100) == 2.0
    assert learning_rate(cosine, 50, 100) == pytest.approx(1.0)
    assert learning_rate(cosine, 100, 100) == pytest.approx(0.0)
    step = replace(recipe, warmup=0.0, schedule="step")
    assert [learning_rate(step, i, 100) for i in (79, 80, 90)] == pytest.approx([2, 0.6, 0.18])


def test_domain_of_images_and_tables():
    low, high = domain_of(torch.rand(5, 1, 2, 2) - 0.5)  # however little of it the data fill
    assert (float(low), float(high)) == (-1.0, 1.0)
    low, high = domain_of(torch.rand(5, 1, 2, 2))
    assert (float(low), float(high)) == (0.0, 1.0)
    low, high = domain_of(torch.tensor([[0.0, 5.0], [10.0, 5.0]]))
    torch.testing.assert_close(low, torch.tensor([-1.0, 5.0 - 5e-6]))
    torch.testing.assert_close(high, torch.tensor([11.0, 5.0 + 5e-6]))


def test_convolutions_are_laid_out_for_speed_and_mean_the_same(tmp_path):
    torch.manual_seed(0)
    model = JEM(networks.small_cnn((1, 8, 8), 3, width=8).double())
    x, y = torch.rand(32, 1, 8, 8) * 2 - 1, torch.arange(32) % 3
    before, logits = weights(model), model(x.double())
    place(model, torch.device("cpu"))
    assert_same_bits(before, weights(model))
    torch.testing.assert_close(model(x.double()), logits, atol=1e-12, rtol=1e-12)
    Trainer(model.float(), replace(SMALL, epochs=1), run_dir=tmp_path / "run").fit((x, y))
    loaded = jem.load(tmp_path / "run", device="auto")
    for placed in (model, loaded):
        kernels = [m.weight for m in placed.modules() if isinstance(m, torch.nn.Conv2d)]
        assert len(kernels) > 2
        assert all(w.is_contiguous(memory_format=torch.channels_last) for w in kernels)
    assert torch.equal(model(x), loaded(x))


@pytest.mark.parametrize("changes", [{"objective": "none"}, {"fused": False}, {}])
def test_lowered_precision_is_that_of_the_body_alone_and_learns_as_well(changes, train):
    model = model_of()
    seen = set()
    body = model.network.body[1]
    body.register_forward_hook(
        lambda _, inputs, output: (
            seen.add((torch.is_grad_enabled(), output.dtype)) if len(output) > 2 else None
        )
    )  # the first look at the network sees two rows
    recipe = replace(SMALL, epochs=20, learning_rate=5e-3, **changes, precision="bfloat16")
    trainer = Trainer(model, recipe, device="cpu")
    result = trainer.fit(train, blobs(seed=1))
    assert {dtype for learns, dtype in seen if learns} == {torch.bfloat16}
    assert (False, torch.float32) in seen, "validated in single precision"
    assert not torch.is_autocast_enabled("cpu")
    assert result.epochs[-1]["valid_accuracy"] > 0.97
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    if trainer.context.trains_density:
        assert trainer.state.chains.buffer.chains.dtype == torch.float32
        assert jem.sample(model, [0, 1]).dtype == torch.float32


def test_a_trained_network_learns_in_evaluation_mode(train):
    network = torch.nn.Sequential(
        torch.nn.Linear(2, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5),
        torch.nn.Linear(8, 2),
    )  # fmt: skip
    model = JEM(network)
    seen, mean = set(), network[1].running_mean.clone()
    network[2].register_forward_hook(lambda module, *_: seen.add(module.training))
    before = network[0].weight.detach().clone()
    Trainer(model, replace(SMALL, freeze_norm_and_dropout=True), device="cpu").fit(train)
    assert seen == {False}
    assert torch.equal(network[1].running_mean, mean)
    assert not torch.equal(network[0].weight, before)


def test_fresh_samples_begin_elsewhere_than_chains_of_training(train):
    kinds = {"uniform": UniformBase, "gaussian": GaussianBase}
    for start, sample_init in (("uniform", "gaussian"), ("gaussian", "uniform")):
        model = model_of()
        recipe = replace(SMALL, epochs=1, init=start, sample_init=sample_init)
        trainer = Trainer(model, recipe, device="cpu")
        trainer.fit(train)
        assert type(trainer.state.chains.init) is kinds[start]
        assert type(model.sampler.init) is kinds[sample_init]
        assert model.sampler.trained_on_noise is (start == "uniform")


def test_validate_agrees_with_hand_computation_and_restores_the_mode(train):
    model = model_of(dropout=0.5).train()
    examples = torch.utils.data.TensorDataset(*train)
    figures = validate(model, examples, 10)
    assert model.training
    model.eval()
    logits = model(train[0])
    assert figures["valid_accuracy"] == pytest.approx(
        float((logits.argmax(1) == train[1]).double().mean())
    )
    nll = torch.nn.functional.cross_entropy(logits, train[1])
    assert figures["valid_nll"] == pytest.approx(nll.item(), rel=1e-5)
    assert figures["valid_energy"] == pytest.approx(model.energy(train[0]).mean().item(), rel=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_trains_and_recovers(train):
    model = model_of()
    assert (
        Trainer(model, SMALL, device="cuda").fit(train, train).epochs[-1]["valid_accuracy"] > 0.9
    )
    assert Trainer(model_of(), UNSTABLE, device="cuda").fit(train).recoveries >= 1


def test_a_network_for_both_is_told_of_two_towers(train, capsys):
    body = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.SiLU(), torch.nn.Linear(8, 2))
    factored = networks.factored(body)
    for network, epochs, advised in ((body, 1, True), (factored, 1, False), (body, 0, False)):
        recipe = replace(SMALL, epochs=epochs)
        Trainer(JEM(network), recipe, device="cpu", progress=True).fit(train)
        assert ("jem.networks.towers" in capsys.readouterr().err) is advised


def test_two_towers_train_the_classifier_of_plain_on_images_that_are_changed_at_random():
    x = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    examples = torch.utils.data.TensorDataset(x, torch.arange(64) % 2)
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
    changes = {"epochs": 2, "batch_size": 16, "augment_shift": 2, "outlier_count": 4}
    both = networks.towers(deepcopy(body), input_shape=(3, 8, 8), num_classes=2)
    logits = []
    for network, recipe in ((body, "plain"), (both, "fast")):
        model = JEM(network, domain=(-1, 1))
        recipe = replace(RECIPES[recipe], **changes)
        Trainer(model, recipe, seed=0, device="cpu").fit(examples)
        logits.append(model.logits(x).log_softmax(dim=1))
    torch.testing.assert_close(logits[0], logits[1])
