"""The section of a report on out-of-distribution (OOD) inputs."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from jem.data.shifts import make_ood_set, rotations
from jem.data.splits import DataSplits
from jem.evaluation.ood.metrics import ood_metrics
from jem.evaluation.ood.scores import SCORES
from jem.evaluation.statistics import Estimate, estimate_of, share_estimate
from jem.model import JEM, batched_logits
from jem.randomness import named_generator
from jem.report.subject import SHOWN, Pictures, Subject, names_of
from jem.sampling.base_distributions import GaussianBase, UniformBase
from jem.sampling.outliers import column_groups, shuffle_columns
from jem.serving.scorer import Scorer

SET_SIZE = 1000
"""Inputs of an OOD set that is made up."""

NOISE, SHUFFLED = "uniform noise", "shuffled columns"
BEYOND, ONE_BEYOND = "beyond the range", "one column beyond its range"
ROTATED = "rotated by 90 degrees"

NEAR = (SHUFFLED, ROTATED, "rotations", "held out classes")
FAR = (NOISE, "gaussian noise", "constant images", BEYOND, ONE_BEYOND)
"""How far sets lie from the data: near ones share their strokes, textures or scale. Of letters and
photo patches see `distance_of`."""

LIKE_OUTLIERS = (NOISE, "gaussian noise", "constant images", "letters", SHUFFLED)
"""OOD sets of the kinds that made-up outliers are of: letters are strokes of one tone on an even
ground, as some outliers are."""

SINGLE = ("log_density", "max_probability")
"""Scores that are measured alone too, where there are classes."""


@dataclass(frozen=True)
class OODSet:
    """One OOD set against the test part, by the detector's score.

    Attributes:
        name: Of the set.
        kind: "near" or "far" from the data; "given" for a set that the user brought.
        used_in_training: Whether training contrasted such inputs with the data.
        num: Inputs.
        auroc: AUROC; 1 is perfect, 0.5 is chance.
        control_auroc: The same of the control, with a detector of its own.
        single: The AUROC of two scores alone, by name: those that `combined` adds up.
        flagged: Share flagged as OOD; higher is better.
        test_flagged: Share of test inputs flagged by the threshold that flags 95 % of the set;
            lower is better.
        scores: The detector's (N,).
        accepted: Images that are not flagged, the highest score first, and their classes.
    """

    name: str
    kind: str
    used_in_training: bool
    num: int
    auroc: Estimate
    control_auroc: Estimate | None
    single: dict[str, Estimate]
    flagged: Estimate
    test_flagged: Estimate
    scores: Tensor
    accepted: Pictures


@dataclass(frozen=True)
class OODDetection:
    """Figures of the detector that `jem.fit_scorer` makes of the model.

    Attributes:
        num_test: Test inputs.
        num_calibration: Calibration inputs behind the threshold.
        acceptance_rate: Share of in-distribution inputs that the threshold is set to accept.
        score: Name of the score.
        threshold: Inputs scored below it are flagged.
        accepted: Share of test inputs accepted.
        sets: OOD sets.
        scores: Of the test inputs (N,).
        highest: Test inputs of the highest score.
        lowest: Test inputs of the lowest score.
        rejected: Test inputs that are flagged, those nearest to the threshold first.
    """

    num_test: int
    num_calibration: int
    acceptance_rate: float
    score: str
    threshold: float
    accepted: Estimate
    sets: list[OODSet]
    scores: Tensor
    highest: Pictures
    lowest: Pictures
    rejected: Pictures


def make_ood_sets(splits: DataSplits, seed: int = 0) -> dict[str, Tensor]:
    """Made-up OOD sets that need no download, in the network's units.

    Args:
        splits: The data.
        seed: Same seed, same sets.

    Returns:
        Name -> inputs (N, *shape). Uniform noise; for grey and colour images photo patches and
        letters; for tables rows whose every column is another row's (where columns do not depend
        on each other, such rows are in-distribution), rows with one column that is moved beyond
        its range, and rows with all columns moved. One-hot parts stay together as one column.
    """
    shape = splits.input_shape
    if splits.kind != "table":
        # There are no photographs and letters of other channels than grey or colour.
        names = ("uniform_noise", *(("photo_patches", "letters") if shape[0] in (1, 3) else ()))
        return {
            name.replace("_", " "): make_ood_set(name, splits, SET_SIZE, seed=seed)
            for name in names
        }
    low, high = splits.domain
    generator = named_generator(seed, "foreign noise")
    noise = UniformBase(low, high, shape).sample(SET_SIZE, generator=generator)
    x, _ = splits.test[:]
    rows = x[torch.randint(len(x), (SET_SIZE,), generator=generator)]
    up = torch.rand(rows.shape, generator=generator) < 0.5
    beyond = torch.where(up, rows + (high - low), rows - (high - low))
    sets, groups = {NOISE: noise}, column_groups(splits.train[:][0], splits.columns)
    if groups[-1] > 0:  # a single column has no other to depend on
        sets[SHUFFLED] = shuffle_columns(x, SET_SIZE, generator, groups)
        column = torch.randint(int(groups[-1]) + 1, (SET_SIZE, 1), generator=generator)
        sets[ONE_BEYOND] = torch.where(groups == column, beyond, rows)
    return sets | {BEYOND: beyond}


def distance_of(name: str, *, colour: bool) -> Literal["near", "far", "given"]:
    """How far an OOD set lies from the data; "given" if the user brought it.

    Args:
        name: Of the set.
        colour: Whether the data are colour images: photographs, more often than drawings. Letters
            are near to digits, and to other drawings of one sign.
    """
    name = name.replace("_", " ")
    if name in NEAR or name == ("photo patches" if colour else "letters"):
        return "near"
    return "far" if name in (*FAR, "letters", "photo patches") else "given"


def used_in_training(name: str, model: JEM) -> bool:
    """Whether training contrasted inputs of the kind of a made-up OOD set with the data.

    Args:
        name: Of the set; `NOISE`, or a key of `jem.data.OOD_SETS`.
        model: The trained model: its sampler settings say where chains of training began and
            whether there were outliers.
    """
    if model.sampler is None:
        return False
    name = name.replace("_", " ")  # as reports show it
    if model.sampler.trained_on_outliers:
        return name in LIKE_OUTLIERS
    noise = model.sampler.trained_on_noise
    if noise is None:
        noise = not isinstance(model.sampler.init, GaussianBase)
    return bool(noise) and name == NOISE


def ood_section(
    subject: Subject, scorer: Scorer, x: Tensor, logits: Tensor, seed: int
) -> OODDetection:
    """Measure the detector on the test part and on every OOD set.

    Args:
        subject: The model and its data.
        scorer: What `jem.fit_scorer` made of them.
        x: Test inputs, shape (N, *shape).
        logits: Their logits (N, K).
        seed: Decides the made-up sets.
    """
    sets = make_ood_sets(subject.splits, seed)
    if subject.splits.kind == "image" and x.shape[2] == x.shape[3]:
        sets[ROTATED] = rotations(x)
    detector, control = scorer.detector, subject.control_scorer
    colour = x.ndim == 4 and x.shape[1] == 3
    names, y = names_of(subject.splits.classes, logits.shape[1]), subject.splits.test.y

    def shown(rows: Tensor) -> Pictures:
        captions = []
        for i in rows[:SHOWN].tolist():
            true, seen = subject.splits.classes[int(y[i])], names[int(logits[i].argmax())]
            captions.append(true if seen in (true, "") else f"{true}, taken for {seen}")
        return Pictures(x[rows[:SHOWN]], captions)

    scores = detector.score(x, logits).cpu()
    order = scores.argsort(stable=True)
    flagged = detector.verdict(scores).is_ood
    single = {name: SCORES[name].function for name in SINGLE if logits.shape[1] > 1}
    if control is not None:
        control_scores = control.detector.score(x).cpu()

    def measured(name: str, x: Tensor) -> OODSet:
        other_logits = batched_logits(subject.model, x)
        others = detector.score(x, other_logits).cpu()
        metrics, control_auroc = ood_metrics(scores, others), None
        if control is not None:
            compared = ood_metrics(control_scores, control.detector.score(x).cpu())
            control_auroc = estimate_of(compared, "auroc")
        flagged = detector.verdict(others).is_ood
        passed = (~flagged).nonzero().flatten()
        passed = passed[others[passed].argsort(descending=True)][:SHOWN]
        seen = other_logits[passed.to(other_logits.device)].argmax(dim=1).tolist()
        return OODSet(
            name=name,
            kind=distance_of(name, colour=colour),
            used_in_training=not subject.run.as_given and used_in_training(name, subject.model),
            num=len(x),
            auroc=estimate_of(metrics, "auroc"),
            control_auroc=control_auroc,
            single={
                name: estimate_of(ood_metrics(score(logits), score(other_logits.cpu())), "auroc")
                for name, score in single.items()
            },
            flagged=share_estimate(flagged),
            test_flagged=estimate_of(metrics, "fpr95_out_positive"),
            scores=others,
            accepted=Pictures(
                x[passed], [f"taken for {names[k]}" if names[k] else "" for k in seen]
            ),
        )

    assert detector.threshold is not None
    assert detector.acceptance_rate is not None
    return OODDetection(
        num_test=len(x),
        num_calibration=detector.num_calibration,
        acceptance_rate=detector.acceptance_rate,
        score=detector.score_name,
        threshold=detector.threshold,
        accepted=share_estimate(~flagged),
        sets=[measured(name, other) for name, other in (sets | subject.ood_sets).items()],
        scores=scores,
        highest=shown(order.flip(0)),
        lowest=shown(order),
        rejected=shown(order[: int(flagged.sum())].flip(0)),
    )
