"""`jem export`: the file gives what `jem score` gives, and what is refused."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

import jem
from jem.evaluation.ood import REASONS

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.mark.parametrize(("source", "rate"), [("", None), ("model.pt", 0.5)])
def test_the_file_gives_what_the_scorer_gives_for_batches_of_any_size(
    run, digits_run, tmp_path, capsys, source, rate
):
    words = [] if rate is None else ["--acceptance-rate", rate]
    assert run("export", digits_run / source, tmp_path / "model.onnx", *words) == 0
    assert "(B, 1, 8, 8)" in capsys.readouterr().out
    scorer = jem.load_scorer(digits_run)
    if rate is not None:
        scorer.detector.set_acceptance_rate(rate)
    data = jem.data.load("digits")
    x = torch.cat([data.test.x, jem.data.make_ood_set("letters", data, 60, seed=0)])
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    names = ["class_index", "probabilities", "log_density", "p_value", "is_ood", "reason"]
    for part in (x[:1], x):
        raw = data.scaling.invert(part)
        found = dict(zip(names, session.run(names, {"inputs": raw.numpy()}), strict=True))
        wanted = scorer.predict(part)
        assert np.array_equal(found["class_index"], wanted.class_index)
        assert np.array_equal(found["is_ood"], wanted.is_ood)
        assert [REASONS[k] for k in found["reason"]] == wanted.reason
        for name, value in (
            ("probabilities", wanted.calibrated_probabilities),
            ("log_density", wanted.log_density),
            ("p_value", wanted.p_value),
        ):
            np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-4)
    assert 0 < wanted.is_ood.sum() < len(x)


def test_the_service_of_the_example_answers_as_the_scorer(run, train, tmp_path, monkeypatch):
    testclient = pytest.importorskip("fastapi.testclient")
    folder = train(tmp_path / "wine", "wine", data="wine")
    assert run("export", folder, tmp_path / "model.onnx") == 0
    monkeypatch.setenv("MODEL", str(tmp_path / "model.onnx"))
    monkeypatch.syspath_prepend(Path(jem.__file__).parents[1] / "scripts")
    client = testclient.TestClient(importlib.import_module("serve_onnx").app)
    scorer, wine = jem.load_scorer(folder), jem.data.load("wine")
    raw = [*wine.scaling.invert(wine.test.x[:5]).tolist(), [1e6] * 13]
    wanted = scorer.predict(scorer.model.preprocess(np.array(raw)))
    answers = client.post("/predict", json=raw).json()
    assert [a["class"] for a in answers] == [scorer.model.classes[k] for k in wanted.class_index]
    assert [a["is_ood"] for a in answers] == wanted.is_ood.tolist()
    assert [a["reason"] for a in answers] == wanted.reason
    assert answers[-1]["is_ood"]
    assert [a["probability"] for a in answers] == pytest.approx(
        wanted.calibrated_probability.tolist(), abs=1e-4
    )
    for wrong in ([[1.0, 2.0]], [[1.0] * 13, [2.0]], [], [["much"] * 13]):
        refused = client.post("/predict", json=wrong)
        assert refused.status_code == 422
        assert "shape (B, 13)" in refused.json()["detail"]


def test_a_file_for_a_hub_is_scored_like_the_run(run, digits_run, raw_digits, tmp_path):
    file = tmp_path / "model.safetensors"
    assert run("export", digits_run, file) == 0
    np.save(tmp_path / "x.npy", raw_digits[:50])
    for source, out in ((digits_run, "a.csv"), (file, "b.csv")):
        words = ("score", source, tmp_path / "x.npy", "--out", tmp_path / out, "--quiet")
        assert run(*words) == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_what_cannot_be_exported_is_one_line_and_no_file(refused, digits_run, train, tmp_path):
    out = tmp_path / "model.onnx"
    out.write_text("mine")
    assert "is there already" in refused("export", digits_run, out)
    assert "is read" in refused("export", digits_run, digits_run / "model.pt", "--force")
    bare = train(tmp_path / "bare", "wine", "plain", detector=False)
    assert "holds no detector" in refused("export", bare, tmp_path / "bare.onnx")
    assert out.read_text() == "mine"
    assert not (tmp_path / "bare.onnx").exists()
