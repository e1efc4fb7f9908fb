"""Several processes make the run that one would make; what they keep, and how they end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import distributed_job
import pytest
import torch
from test_trainer import SMALL, assert_same_bits, blobs, model_of

from jem.errors import InputError, RunFolderError
from jem.runs.checkpoint import Checkpoints
from jem.training.monitor import read_metrics
from jem.training.process import Processes, one_for_all
from jem.training.trainer import Trainer

HERE = Path(__file__).parent


def torchrun(folder, *scenarios, **options):
    """Run `distributed_job.py` in several processes."""
    return launch(str(HERE / "distributed_job.py"), str(folder), *scenarios, **options)


def launch(*program, count=2, restarts=0):
    """Run a program in `count` processes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count),
        "--max-restarts", str(restarts), "--rdzv-backend", "c10d", "--rdzv-endpoint",
        "localhost:0", *program,
    ]  # fmt: skip
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


# -- one process ----------------------------------------------------------------------------------


def test_each_process_has_its_own_rows_and_seed():
    rows = torch.arange(7)
    parts = [Processes(rank, 3).part(rows).tolist() for rank in range(3)]
    assert parts == [[0, 3, 6], [1, 4], [2, 5]]
    assert len({Processes(rank, 3).seed(5) for rank in range(3)}) == 3
    assert [Processes(rank, 3).first for rank in range(3)] == [True, False, False]


def test_what_cannot_be_divided_is_refused():
    assert Processes(0, 4).share(64, "batch_size") == 16
    with pytest.raises(InputError, match=r"`num_chains` must be a multiple of .*\(4\), got 63"):
        Processes(0, 4).share(63, "num_chains")


@pytest.fixture
def sigterm():
    """Puts the handler of SIGTERM back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("sigterm")
def test_only_a_lost_connection_is_blamed_on_another_process():
    said = pytest.raises(RunFolderError, match=r"another process of this job of 2 ended.*--resume")
    with said, one_for_all(Processes(0, 2)):
        raise RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer")
    with pytest.raises(RuntimeError, match="shapes"), one_for_all(Processes(0, 2)):
        raise RuntimeError("shapes do not fit")
    with pytest.raises(RuntimeError, match="by peer"), one_for_all(Processes(0, 1)):
        raise RuntimeError("Connection closed by peer")
    with pytest.raises(InputError, match="peer"), one_for_all(Processes(0, 2)):
        raise InputError("peer")


def test_a_run_of_two_processes_is_not_resumed_by_one(tmp_path):
    run = tmp_path / "run"
    trainer = Trainer(model_of(), SMALL, run_dir=run, device="cpu")
    trainer.fit(blobs())
    state = trainer.state.state_dict()
    state["generators"] *= 2
    with pytest.raises(RunFolderError, match=r"made by 2 process.*--nproc-per-node 2.*now .* 1"):
        trainer.state.load_state_dict(state)


# -- two processes --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    """Every scenario, once, in one job of two processes."""
    folder = tmp_path_factory.mktemp("job")
    done = torchrun(folder, *distributed_job.EQUAL)
    assert done.returncode == 0, done.stderr
    warned = [line for line in done.stderr.splitlines() if "Warning" in line]
    assert all("hardly tells" in line for line in warned), warned  # after a few updates
    return {name: torch.load(folder / f"{name}.pt") for name in distributed_job.EQUAL}


@pytest.mark.parametrize("name", distributed_job.EQUAL)
def test_two_processes_end_where_one_with_joined_batch_and_chains_does(name, joined):
    two = joined[name]
    try:
        one = distributed_job.equal(name, given=two["first_chains"])
    finally:
        torch.set_default_dtype(torch.float32)
    for mine, reference in zip(two["parameters"], one["parameters"], strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-11)
    if name != "plain":
        torch.testing.assert_close(
            two["chains"]["chains"], one["chains"]["chains"], rtol=1e-8, atol=1e-10
        )
        assert torch.equal(two["chains"]["ages"], one["chains"]["ages"])
        halves = two["first_chains"].chunk(2)
        assert not torch.equal(*halves)  # each process began with chains of its own
    for mine, reference in zip(two["epochs"], one["epochs"], strict=True):
        assert mine == pytest.approx(reference, rel=1e-9)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two processes that nothing disturbs."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    done = torchrun(folder, "whole")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_a_cut_run_resumes_to_the_same_bits_on_as_many_processes(tmp_path, whole):
    cut = tmp_path / "cut"
    assert torchrun(cut, "stop:2").returncode == 0
    refused = torchrun(cut, "resume", count=1)
    assert refused.returncode != 0
    assert "made by 2 process(es) and resumes with as many" in refused.stderr
    resumed = torchrun(cut, "resume")
    assert resumed.returncode == 0, resumed.stderr
    check_same_run(whole, cut)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_job_clearly_and_torchrun_may_start_it_again(tmp_path, whole):
    cut, again = tmp_path / "cut", tmp_path / "again"
    dead = torchrun(cut, "die:10")
    assert dead.returncode != 0
    assert "rank 0: RunFolderError: another process of this job of 2 ended" in dead.stderr
    assert "--resume" in dead.stderr
    resumed = torchrun(cut, "resume")
    assert resumed.returncode == 0, resumed.stderr
    check_same_run(whole, cut)
    restarted = torchrun(again, "die:10", restarts=1)
    assert restarted.returncode == 0, restarted.stderr
    check_same_run(whole, again)


@pytest.mark.slow
def test_two_processes_recover_from_a_divergence_together(tmp_path):
    done = torchrun(tmp_path / "run", "unstable")
    assert done.returncode == 0, done.stderr
    recoveries = read_metrics(tmp_path / "run" / "metrics.jsonl", "recovery")
    assert recoveries
    assert all(r["back_to"] % 10 == 0 for r in recoveries)
    (end,) = read_metrics(tmp_path / "run" / "metrics.jsonl", "end")
    assert (end["iteration"], end["recoveries"]) == (60, len(recoveries))


@pytest.mark.slow
def test_the_command_trains_in_all_processes_and_measures_in_the_first(tmp_path):
    run = tmp_path / "run"
    words = ["-m", "jem", "train", "--out", str(run), "--epochs", "1", "--control"]
    done = launch(*words, "--no-report", "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder:") == 1
    assert (run / "control" / "model.pt").exists()
    for folder in (run, run / "control"):
        assert len(Checkpoints(folder / "checkpoints").load_latest()[1]["generators"]) == 2


def check_same_run(first, second):
    states = [Checkpoints(folder / "checkpoints").load_latest() for folder in (first, second)]
    (iteration, one), (other, two) = states
    assert iteration == other == 24
    for module in ("model", "average"):
        assert_same_bits(one["modules"][module], two["modules"][module])
    assert torch.equal(one["chains"]["chains"], two["chains"]["chains"])
    for mine, theirs in zip(one["generators"], two["generators"], strict=True):
        assert_same_bits(mine, theirs)
    kept = ("iteration", "loss", "valid_nll", "gap")
    records = [
        [{k: r[k] for k in kept if k in r} for r in read_metrics(folder / "metrics.jsonl")]
        for folder in (first, second)
    ]
    assert records[0] == records[1]
