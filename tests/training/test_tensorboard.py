"""Event files hold what `metrics.jsonl` holds, and the chains; the run is the same to the bit."""

import sys
from dataclasses import replace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_trainer import SMALL, blobs, model_of

from jem.errors import InputError
from jem.training.monitor import read_metrics
from jem.training.tensorboard import TensorBoardMonitor
from jem.training.trainer import Trainer

RECIPE = replace(SMALL, log_every=2)


def test_figures_of_a_resumed_run_are_those_of_its_records_and_chains_are_drawn(tmp_path):
    def crash(metrics):
        if metrics["epoch"] == 2:
            raise KeyError

    def trainer():
        monitor = TensorBoardMonitor()
        return Trainer(model_of(), RECIPE, run_dir=tmp_path / "run", device="cpu", monitor=monitor)

    with pytest.raises(KeyError):
        trainer().fit(blobs(), blobs(), on_epoch=crash)
    trainer().fit(blobs(), blobs(), resume=True)
    Trainer(model_of(), RECIPE, run_dir=tmp_path / "plain", device="cpu").fit(blobs(), blobs())

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    for kind, name in (("update", "gap"), ("epoch", "valid_nll")):
        found = [(event.step, event.value) for event in events.Scalars(f"{kind}/{name}")]
        wanted = [(r["iteration"], r[name]) for r in records if r["kind"] == kind]
        assert [step for step, _ in found] == [step for step, _ in wanted]
        assert [v for _, v in found] == pytest.approx([v for _, v in wanted], rel=1e-5)
        same = read_metrics(tmp_path / "plain" / "metrics.jsonl", kind)
        assert wanted == [(r["iteration"], r[name]) for r in same]
    assert [image.step for image in events.Images("chains")] == [6, 12, 18, 24]


def test_what_it_needs_is_named(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="TensorBoard needs a run folder"):
        Trainer(model_of(), RECIPE, device="cpu", monitor=TensorBoardMonitor()).fit(blobs())
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"pip install 'jem-classifier\[tensorboard\]'"):
        TensorBoardMonitor()
