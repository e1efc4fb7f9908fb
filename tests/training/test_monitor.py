import errno
import json
import math
import os
from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_trainer import SMALL, blobs, model_of

from jem.errors import RunFolderError
from jem.training import monitor, state
from jem.training.monitor import MetricsLog, RunMonitor, read_metrics
from jem.training.trainer import Trainer


@pytest.fixture
def log(tmp_path):
    return MetricsLog(tmp_path / "metrics.jsonl")


def test_records_come_back_in_order_and_by_kind(log):
    log.write("update", iteration=1, loss=0.5)
    log.write("epoch", epoch=1, names=["a", "b"], best=None)
    log.write("update", iteration=2, loss=0.25)
    assert read_metrics(log.path, "update") == [
        {"kind": "update", "iteration": 1, "loss": 0.5},
        {"kind": "update", "iteration": 2, "loss": 0.25},
    ]
    assert [r["kind"] for r in read_metrics(log.path)] == ["update", "epoch", "update"]
    assert read_metrics(log.path, "epoch")[0]["names"] == ["a", "b"]
    assert read_metrics(log.path, "end") == []


def test_every_line_is_strict_json_with_null_for_what_is_not_finite(log):
    bad = [math.nan, math.inf, -math.inf]
    log.write("update", a=math.nan, b={"c": math.inf}, d=bad, e=(1.0, math.nan))

    def refuse(constant):
        raise AssertionError(constant)

    (line,) = log.path.read_text().splitlines()
    record = json.loads(line, parse_constant=refuse)
    assert record == {
        "kind": "update", "a": None, "b": {"c": None}, "d": [None] * 3, "e": [1.0, None]
    }  # fmt: skip


def test_floats_keep_six_digits_and_whole_numbers_all(log):
    log.write("update", x=1 / 3, tiny=1.23456789e-12, count=123456789)
    (record,) = read_metrics(log.path)
    assert record == {"kind": "update", "x": 0.333333, "tiny": 1.23457e-12, "count": 123456789}


def test_truncating_to_a_position_forgets_what_came_after(log):
    assert log.position() == 0
    log.write("update", iteration=1)
    position = log.position()
    assert position == log.path.stat().st_size
    log.write("update", iteration=2)
    log.truncate(position)
    log.write("update", iteration=3)
    assert [r["iteration"] for r in read_metrics(log.path)] == [1, 3]


def test_a_file_that_lost_its_end_is_not_filled_with_zeros(log):
    for iteration in range(4):
        log.write("update", iteration=iteration)
    position = log.position()
    log.path.write_bytes(log.path.read_bytes()[:-5])  # a power cut: within the last record
    log.truncate(position)
    log.write("update", iteration=9)
    assert [r["iteration"] for r in read_metrics(log.path)] == [0, 1, 2, 9]


def test_a_last_line_that_is_not_finished_is_left_out(log):
    log.write("update", iteration=1)
    with log.path.open("a") as file:
        file.write('{"kind": "update", "itera')
    assert [r["iteration"] for r in read_metrics(log.path)] == [1]


@pytest.mark.parametrize("content", ['{"kind": \n', "[1]\n", '{"iteration": 1}\n', "\0\0\0\n"])
def test_a_damaged_file_is_named(log, content):
    log.path.write_text(content)
    with pytest.raises(RunFolderError, match=r"cannot read .*metrics.jsonl"):
        read_metrics(log.path, "update")


def test_a_full_disk_is_reported_with_the_remedy(log, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(RunFolderError, match=r"No space left on device.*--resume"):
            log.write("update", iteration=1)


# -- what the user sees; standard error is no terminal in tests


def test_without_a_terminal_a_tenth_of_the_epochs_is_printed_on_standard_error(capsys):
    monitor = RunMonitor(quiet=False)
    with monitor.open(None, 300):
        for epoch in range(1, 31):
            monitor.epoch({"valid_nll": 0.5, "epoch": epoch}, 30, None)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 10
    assert lines[0] == "training epoch 3/30  valid_nll 0.5"


def test_a_quiet_monitor_is_silent(capsys):
    monitor = RunMonitor(quiet=True)
    with monitor.open(None, 300):
        monitor.epoch({"valid_nll": 0.5, "epoch": 10}, 10, None)
    assert capsys.readouterr() == ("", "")


def test_records_say_how_long_training_took_and_how_many_examples_a_second(tmp_path, monkeypatch):
    """By a clock that goes on by 1 each time it is read: twice a record, and once a checkpoint."""
    clock = SimpleNamespace(perf_counter=count().__next__)
    monkeypatch.setattr(monitor, "time", clock)
    monkeypatch.setattr(state, "time", clock)
    recipe = replace(SMALL, epochs=1, log_every=1, checkpoint_every=1000)
    result = Trainer(model_of(), recipe, run_dir=tmp_path, device="cpu").fit(blobs())
    records = read_metrics(tmp_path / "metrics.jsonl", "update")
    assert {record["images_per_second"] for record in records[1:]} == {16 / 2}
    times = [record["seconds"] for record in records]
    assert {late - early for early, late in pairwise(times)} == {2}
    assert result.seconds == times[-1] + 3  # the clock at the end of the epoch, and of the run
