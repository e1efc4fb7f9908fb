"""Where time goes: phases add up to all of it."""

from dataclasses import replace
from itertools import count, pairwise
from types import SimpleNamespace

import pytest
from contexts import KINDS
from test_trainer import SMALL, blobs, model_of

from jem.training import process as module
from jem.training.monitor import read_metrics
from jem.training.process import PhaseClock
from jem.training.trainer import Trainer

PHASES = ("data", "chains", "update", "other")


@pytest.fixture
def now(monkeypatch):
    """Time that passes only when a test says so."""
    clock = SimpleNamespace(time=100.0)
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock.time)
    return clock


def test_each_phase_is_given_the_time_until_the_next_begins(now):
    clock = PhaseClock()
    now.time += 1
    for phase, seconds in (("data", 2), ("chains", 4), ("update", 8), ("data", 16), ("other", 32)):
        clock.enter(phase)
        now.time += seconds
    assert clock.lap() == {
        "seconds_data": 18, "seconds_chains": 4, "seconds_update": 8, "seconds_other": 33
    }  # fmt: skip
    now.time += 0.5  # the phase went on
    assert clock.lap() == {
        "seconds_data": 0, "seconds_chains": 0, "seconds_update": 0, "seconds_other": 0.5
    }  # fmt: skip


@pytest.mark.parametrize("step", list(KINDS))
def test_records_of_a_run_say_where_all_its_time_went(tmp_path, monkeypatch, step):
    """By a clock that goes on by 1 each time it is read: no machine is too busy for it."""
    readings = SimpleNamespace(perf_counter=count().__next__)
    monkeypatch.setattr(module, "time", readings)
    recipe = replace(SMALL, **KINDS[step], log_every=5, num_steps=4)
    run = tmp_path / "run"
    Trainer(model_of(), recipe, run_dir=run, device="cpu").fit(blobs(), blobs(seed=1))
    records = read_metrics(run / "metrics.jsonl", "step")
    assert len(records) == 5
    for before, record in pairwise(records):
        spent = [record[f"seconds_{phase}"] for phase in PHASES]
        between = record["seconds"] - before["seconds"]
        assert between > 15  # three phases a step
        assert sum(spent) == pytest.approx(between, abs=2)  # readings between a tick and a lap
        assert record["images_per_second"] == pytest.approx(5 * 16 / sum(spent), rel=1e-3)
        assert record["seconds_update"] > 0
        assert record["seconds_data"] > 0
        assert record["seconds_other"] > 0  # a snapshot every five iterations
        assert (record["seconds_chains"] > 0) == (step != "plain")
