"""Exported files against the model itself: the same figures from another engine."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import jem
from jem.data import from_arrays
from jem.data.columns import Column, encode
from jem.data.scaling import Scaling
from jem.errors import InputError, RunFolderError
from jem.evaluation.ood import REASONS
from jem.networks import mlp, small_cnn
from jem.serving.export import export_onnx

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

BATCH_SIZES = (1, 7)
CLOSE = {"rtol": 0, "atol": 1e-4}


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def run_onnx(path, raw):
    """Outputs by name, as tensors."""
    loaded = session(path)
    names = [output.name for output in loaded.get_outputs()]
    outputs = loaded.run(None, {"inputs": raw})
    return {name: torch.from_numpy(out) for name, out in zip(names, outputs, strict=True)}


def images(count, channels, seed=0):
    shape = (count, 8, 8, channels)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


@pytest.fixture(scope="module")
def image_model():
    """RGB images with channels last, as files hold them; the logits are spread out."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = small_cnn((3, 8, 8), 5, width=4, head="factored")
        with torch.no_grad():
            network.head.linear.weight.mul_(30)
    scaling = Scaling.of_bytes((3, 8, 8), "channels_last")
    return jem.JEM(network, classes=tuple("abcde"), scaling=scaling, input_shape=(3, 8, 8))


@pytest.fixture(scope="module")
def detector(image_model):
    return jem.OODDetector(image_model).fit(
        image_model.preprocess(images(40, 3, 1)), acceptance_rate=0.7
    )


@pytest.fixture(scope="module")
def temperature():
    logits = torch.randn(100, 5, generator=torch.Generator().manual_seed(0))
    fitted = jem.TemperatureScaling().fit(30 * logits, logits.argmax(dim=1).roll(1, 0) % 5)
    assert fitted.temperature > 2
    return fitted


@pytest.fixture(scope="module")
def files(image_model, detector, temperature, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    path = folder / "model.onnx"
    export_onnx(image_model, path, detector=detector, temperature=temperature)
    return folder


def expected(model, raw, detector=None, temperature=1.0):
    x = model.preprocess(raw)
    with torch.no_grad():
        outputs = {
            "logits": model.logits(x),
            "energy": model.energy(x),
            "log_density": model.log_density(x),
            "class_index": model.logits(x).argmax(dim=1),
            "probabilities": (model.logits(x) / temperature).softmax(dim=1),
        }
    if detector is None:
        return outputs
    reasons = torch.tensor([REASONS.index(why) for why in detector.reason(x)])
    verdicts = {"p_value": detector.p_value(x), "is_ood": detector.is_ood(x), "reason": reasons}
    return outputs | verdicts


def assert_same(got, wanted):
    assert list(got) == list(wanted)
    for name, value in wanted.items():
        assert got[name].dtype == value.dtype, name
        torch.testing.assert_close(got[name], value, **CLOSE)


@pytest.mark.parametrize("size", BATCH_SIZES)
def test_onnx_gives_what_the_model_gives_from_raw_images(
    files, image_model, detector, temperature, size
):
    raw = images(size, 3, seed=2)
    got = run_onnx(files / "model.onnx", raw.astype(np.float32))
    assert_same(got, expected(image_model, raw, detector, temperature.temperature))


@pytest.mark.parametrize(
    ("score", "options"),
    [("max_logit", {}), ("max_probability", {}), ("entropy", {}),
     ("gen", {"gamma": 0.3, "num_classes": 3})],
)  # fmt: skip
def test_every_score_of_the_logits_gives_its_verdicts(image_model, tmp_path, score, options):
    detector = jem.OODDetector(image_model, score, **options)
    detector.fit(image_model.preprocess(images(40, 3, 1)), acceptance_rate=0.7)
    about = export_onnx(image_model, tmp_path / "model.onnx", detector=detector)
    assert about["score"] == score
    raw = images(60, 3, seed=2)
    got = run_onnx(tmp_path / "model.onnx", raw.astype(np.float32))
    assert_same(got, expected(image_model, raw, detector))
    assert 0 < int(got["is_ood"].sum()) < 60
    alone = run_onnx(tmp_path / "model.onnx", raw[:1].astype(np.float32))
    assert alone["is_ood"] == got["is_ood"][0]


def test_an_input_that_is_no_number_is_flagged(files):
    raw = images(2, 3).astype(np.float32)
    raw[1, 3, 3, 0] = np.nan
    got = run_onnx(files / "model.onnx", raw)
    assert got["is_ood"][1]
    assert got["energy"][1].isnan()
    assert got["energy"][0].isfinite()


def test_of_a_table_with_text_the_file_says_how_it_becomes_numbers(tmp_path):
    table = pd.DataFrame({"plan": ["a", "b", "a", "b"] * 20, "age": [*range(79), None]})
    data = from_arrays(table, [0, 1] * 40)
    network = mlp(data.input_shape, 2)
    model = jem.JEM(network, input_shape=data.input_shape, scaling=data.scaling).eval()
    about = export_onnx(model, tmp_path / "model.onnx")
    numbers = encode([Column.of(values) for values in about["columns"]], table)
    got = run_onnx(tmp_path / "model.onnx", numbers)
    torch.testing.assert_close(got["logits"], model(model.preprocess(table)).detach(), **CLOSE)


def test_the_file_is_valid_and_says_what_it_holds(files, detector, temperature):
    proto = onnx.load(files / "model.onnx")
    onnx.checker.check_model(proto, full_check=True)
    (batch, *shape) = proto.graph.input[0].type.tensor_type.shape.dim
    assert batch.dim_param == "batch"
    assert [dim.dim_value for dim in shape] == [8, 8, 3]
    about = {entry.key: json.loads(entry.value) for entry in proto.metadata_props}
    assert about == {
        "jem_version": jem.__version__, "input_shape": [8, 8, 3], "layout": "channels_last",
        "classes": list("abcde"), "score": "combined", "threshold": detector.threshold,
        "reasons": list(REASONS),
        "acceptance_rate": 0.7, "temperature": temperature.temperature,
    }  # fmt: skip
    # Nothing of this machine is in the file.
    folder = jem.__file__.removesuffix("__init__.py").encode()
    assert folder not in (files / "model.onnx").read_bytes()


def test_a_table_keeps_the_differences_of_large_columns(tmp_path):
    """Seconds since 1970 differ by less than single precision can say."""
    raw = np.random.default_rng(0).normal(size=(50, 3)) * [1, 30, 0.01] + [0, 1.7e9, 5]
    torch.manual_seed(0)
    model = jem.JEM(mlp((3,), 2, width=8), scaling=Scaling.of_table(raw))
    export_onnx(model, tmp_path / "table.onnx")
    got = run_onnx(tmp_path / "table.onnx", raw[:7])
    assert_same(got, expected(model, raw[:7]))
    assert got["logits"].std(dim=0).min() > 1e-3


@pytest.mark.parametrize("columns", [3, 40])  # 40 are too many to judge relations between them
def test_rows_far_away_are_scored_as_the_model_scores_them(tmp_path, columns):
    raw = np.random.default_rng(0).normal(size=(80, columns))
    classifier = jem.JEMClassifier(epochs=3, random_state=0).fit(raw, raw[:, 0] > 0)
    model, detector = classifier.model_, classifier.detector_
    export_onnx(model, tmp_path / "table.onnx", detector=detector)
    raw = np.concatenate([raw[:5], 30 * raw[:5], 1e6 * raw[:5]])
    got, wanted = run_onnx(tmp_path / "table.onnx", raw), expected(model, raw, detector)
    assert got["is_ood"].tolist() == wanted["is_ood"].tolist()
    assert got["is_ood"][5:].all()
    for name in ("logits", "log_density"):
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-6, atol=1e-4)


class OwnNetwork(nn.Module):
    """Batch norm and dropout, and logits so large that their exponentials overflow."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5)
        )
        self.head = nn.Linear(4 * 36, 3)

    def forward(self, x):
        return 500 * self.head(self.body(x))


def test_a_network_of_the_users_is_exported_in_evaluation_mode_and_left_as_it_was(tmp_path):
    torch.manual_seed(0)
    model = jem.JEM(OwnNetwork(), input_shape=(1, 8, 8))
    model(torch.randn(16, 1, 8, 8))  # running statistics that are not those of a new layer
    model.network.head.eval()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.network.state_dict().items()}
    export_onnx(model, tmp_path / "own.onnx")
    assert [module.training for module in model.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(
        torch.equal(value, state[name]) for name, value in model.network.state_dict().items()
    )

    x = torch.randn(7, 1, 8, 8)
    got = run_onnx(tmp_path / "own.onnx", x.numpy())
    with torch.no_grad():
        wanted = model.eval().logits(x)
    assert wanted.abs().max() > 100
    torch.testing.assert_close(got["logits"], wanted, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(got["energy"], -wanted.logsumexp(dim=1), rtol=1e-5, atol=1e-4)


def test_what_a_network_checks_at_its_first_call_is_not_exported(tmp_path):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(144, 3))
    model = jem.JEM(jem.networks.factored(body), input_shape=(1, 8, 8))
    export_onnx(model, tmp_path / "own.onnx")  # nobody has called it before
    x = torch.randn(5, 1, 8, 8)
    got = run_onnx(tmp_path / "own.onnx", x.numpy())
    torch.testing.assert_close(
        got["logits"], model.eval().logits(x).detach(), rtol=1e-5, atol=1e-5
    )


def test_a_density_without_classes_is_exported(tmp_path):
    model = jem.JEM(mlp((2,), 1, width=8), input_shape=(2,))
    detector = jem.OODDetector(model).fit(torch.randn(40, 2))
    export_onnx(model, tmp_path / "one.onnx", detector=detector)
    x = torch.randn(7, 2)
    got = run_onnx(tmp_path / "one.onnx", x.numpy())
    torch.testing.assert_close(got["log_density"], model.logits(x)[:, 0].detach())
    assert torch.equal(got["is_ood"], detector.is_ood(x))


# -- what cannot be exported ----------------------------------------------------------------------


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    image_model, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match=r"'onnxscript': pip install 'jem-classifier\[onnx\]'"):
        export_onnx(image_model, tmp_path / "model.onnx")


def test_a_score_that_needs_gradients_has_no_verdict_in_a_graph(image_model, tmp_path):
    detector = jem.OODDetector(image_model, "odin")
    with pytest.raises(InputError, match=r"`detector` must .* no gradient .*got 'odin'"):
        export_onnx(image_model, tmp_path / "model.onnx", detector=detector)


class Convolutional(nn.Sequential):
    """A network without a method `features`: they go into its last linear layer."""

    def __init__(self, num_classes):
        super().__init__(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
            nn.Linear(144, 6), nn.ReLU(), nn.Linear(6, num_classes),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("score", "companion"),
    [("knn+max_probability", True), ("mahalanobis+gen", False), ("vim+react+scale", False)],
)
def test_scores_of_features_give_their_verdicts_from_a_file_and_from_a_graph(
    tmp_path, score, companion
):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Convolutional(5)
        if companion:
            network = jem.companion(network, input_shape=(3, 8, 8), num_classes=5)
    scaling = Scaling.of_bytes((3, 8, 8), "channels_last")
    model = jem.JEM(network, classes=tuple("abcde"), scaling=scaling, input_shape=(3, 8, 8)).eval()
    train, validation, calibration = (model.preprocess(images(60, 3, k)) for k in (1, 2, 3))
    detector = jem.OODDetector(model, score, (train, torch.arange(60) % 5), validation=validation)
    detector.fit(calibration, acceptance_rate=0.5)
    export_onnx(model, tmp_path / "model.onnx", detector=detector)
    jem.save(model, tmp_path / "model.pt", detector=detector)
    again = jem.load_scorer(tmp_path / "model.pt", network=Convolutional(5))
    raw = images(40, 3, seed=4)
    found = again.predict(again.model.preprocess(raw))
    assert 0 < found.is_ood.sum() < 40
    got = run_onnx(tmp_path / "model.onnx", raw.astype(np.float32))
    wanted = expected(model, raw, detector)
    for name in ("p_value", "is_ood", "reason"):
        torch.testing.assert_close(got[name], wanted[name])
    assert found.reason == detector.reason(model.preprocess(raw))
    if not score.endswith("scale"):
        assert {"unlike the data", "between classes"} <= set(found.reason)


def test_a_detector_must_be_fitted_and_of_the_same_model(image_model, point_model, tmp_path):
    with pytest.raises(InputError, match="be fitted"):
        export_onnx(image_model, tmp_path / "m.onnx", detector=jem.OODDetector(image_model))
    other = jem.OODDetector(point_model).fit(torch.randn(40, 2))
    with pytest.raises(InputError, match="of another model"):
        export_onnx(image_model, tmp_path / "m.onnx", detector=other)


class Branching(nn.Linear):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_of_any_precision_is_exported_to_one_that_engines_take(dtype, tmp_path):
    model = jem.JEM(mlp((2,), 3, width=8).to(dtype), input_shape=(2,)).eval()
    x = torch.randn(7, 2)
    export_onnx(model, tmp_path / "model.onnx")
    logits = run_onnx(tmp_path / "model.onnx", x.numpy())["logits"]
    assert logits.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    coarse = {"rtol": 0, "atol": 20 * torch.finfo(dtype).eps}
    torch.testing.assert_close(logits, model.logits(x).detach(), **coarse, check_dtype=False)
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_a_file_that_the_engine_does_not_take_is_not_written(point_model, tmp_path, monkeypatch):
    def refuse(content):
        raise NotImplementedError("no implementation for Gemm(13)")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(InputError, match=r"does not take the exported network: .* Gemm\(13\)"):
        export_onnx(point_model, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


class FixedSize(nn.Linear):
    def forward(self, x):
        return super().forward(x.view(2, 2))


@pytest.mark.parametrize("network", [Branching(2, 3), FixedSize(2, 3)])
def test_a_network_that_cannot_be_traced_is_refused_in_one_line(network, tmp_path):
    target = tmp_path / "model.onnx"
    target.write_bytes(b"an older file")
    with pytest.raises(InputError, match=r"cannot be traced: .*branch on values") as caught:
        export_onnx(jem.JEM(network, input_shape=(2,)), target)
    assert "\n" not in str(caught.value)
    assert target.read_bytes() == b"an older file"


@pytest.mark.parametrize(
    ("model", "path", "error", "named"),
    [
        (nn.Linear(2, 3), "m.onnx", InputError, r"be a jem\.JEM, got Linear: wrap it"),
        (jem.JEM(nn.Linear(2, 3)), "m.onnx", InputError, r"`model\.input_shape` must"),
        (jem.JEM(nn.Linear(2, 3), input_shape=(2,)), "no/m.onnx", RunFolderError, "no/m"),
    ],
)
def test_what_cannot_be_exported_or_written_is_named(model, path, error, named, tmp_path):
    with pytest.raises(error, match=named):
        export_onnx(model, tmp_path / path)
