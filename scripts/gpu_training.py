"""CIFAR-10 (JPEG) end to end on a GPU, for `gpu_check.py`."""

from __future__ import annotations

import functools
import io
import tarfile
from pathlib import Path

import numpy as np
import torch
from gpu_session import SHAPE, Figures, Session, recipe_for
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import roc_auc_score

import jem
from jem.data import shifts
from jem.data.splits import DataSplits
from jem.evaluation.calibration import calibration_report
from jem.model import batched_logits, log_density
from jem.plotting import inputs_figure, save_figure
from jem.training.trainer import Trainer


@functools.cache
def read_data(path: Path) -> DataSplits:
    """Pictures of a tar of `PART/CLASS/NAME.jpg`; a tenth of training is for validation."""
    archive = path / "cifar10-jpeg.tar.gz" if path.is_dir() else path
    with tarfile.open(archive) as tar:
        members = ((m.name, tar.extractfile(m)) for m in tar if m.name.endswith(".jpg"))
        files = sorted((name, file.read()) for name, file in members if file is not None)
    images = np.stack([np.asarray(Image.open(io.BytesIO(content))) for _, content in files])
    parts, names = (np.array([name.split("/")[-k] for name, _ in files]) for k in (3, 2))
    train, test = parts == "train", parts == "test"
    held_out = max(len(np.unique(names)), train.sum() // 10)
    return jem.data.from_arrays(
        images[train], names[train], name="cifar10-jpeg", test=(images[test], names[test]),
        channels="last", counts=(train.sum() - held_out, held_out, 0, 0),
    )  # fmt: skip


def train(session: Session, name: str) -> Figures:
    """Train `plain` and `fast` for thirty epochs each, and measure what came of them."""
    splits = read_data(session.data)
    found: Figures = {}
    models = {}
    for kind in ("plain", "fast"):
        recipe = recipe_for(
            kind, 8 if session.tiny else 512, precision="bfloat16",
            epochs=2 if session.tiny else 30, optimizer="adamw", learning_rate=3e-3,
            weight_decay=0.1, warmup=0.15, label_smoothing=0.1, ema_decay=0.995,
            sample_steps=2 if session.tiny else None,
        )  # fmt: skip
        network = session.network(name, recipe.head, len(splits.classes))
        model = models[kind] = jem.JEM(network, classes=splits.classes, domain=splits.domain)
        if session.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        result = Trainer(model, recipe, device=session.device.type).fit(
            splits.train, splits.validation
        )
        found[kind] = {
            "seconds": result.seconds, "recoveries": result.recoveries,
            "curve": [[m["seconds"], m["valid_accuracy"], m["valid_nll"]] for m in result.epochs],
        } | measured(session, model)  # fmt: skip
        if session.device.type == "cuda":
            found[kind]["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30

    columns, classes = 2 if session.tiny else 8, splits.classes
    labels = torch.arange(len(classes)).repeat_interleave(columns)
    x = jem.sample(models["fast"], labels, seed=0)
    figure = inputs_figure(x, splits.domain, columns=columns, row_names=classes, title=name)
    save_figure(figure, session.out / f"samples-{name}.png")
    judged = models["plain"].predict_proba(x.to(session.device)).argmax(dim=1).cpu()
    found["agreement_of_samples"] = float((judged == labels).float().mean())
    draw_curves(found, session.out / f"curves-{name}.png")
    seconds = found["fast"]["seconds"], found["plain"]["seconds"]
    return {"ratio": round(seconds[0] / seconds[1], 3)} | found


def measured(session: Session, model: jem.JEM) -> Figures:
    """Figures of the test part, before and after a temperature, and AUROC of OOD sets."""
    splits, found = read_data(session.data), {}
    logits, validation = (
        batched_logits(model, part.x, 1000).cpu() for part in (splits.test, splits.validation)
    )
    scaling = jem.TemperatureScaling().fit(validation, splits.validation.y)
    for suffix, values in (("", logits), ("_scaled", scaling.transform(logits.double()))):
        report = calibration_report(values.softmax(dim=1), splits.test.y, num_bootstrap=0)
        found |= {f"nll{suffix}": report.nll, f"ece{suffix}": report.ece}
    found["accuracy"] = report.accuracy
    for make in (shifts.uniform_noise, shifts.photo_patches, shifts.letters):
        other = make(16 if session.tiny else 1000, SHAPE, seed=0)
        others = batched_logits(model, other, 1000).cpu()
        inside = torch.cat([torch.ones(len(logits)), torch.zeros(len(others))])
        scores = log_density(torch.cat([logits, others]))
        found[f"auroc_{make.__name__}"] = float(roc_auc_score(inside, scores))
    return found


def draw_curves(found: Figures, path: Path) -> None:
    """Validation accuracy over seconds."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="seconds", ylabel="validation accuracy")
    for kind in ("plain", "fast"):
        seconds, accuracy, _ = zip(*found[kind]["curve"], strict=True)
        axes.plot(seconds, accuracy, label=kind)
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)
