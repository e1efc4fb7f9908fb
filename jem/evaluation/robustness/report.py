"""Robust accuracy: what attacks leave of a classifier, and what its detector says of them."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from jem.attacks import apgd, pgd, square
from jem.attacks.threat import LogitsFunction, Norm
from jem.checks import as_labels, check_choice, check_inputs, check_integer, check_number
from jem.errors import InputError
from jem.evaluation.ood.detector import OODDetector
from jem.evaluation.statistics import UNKNOWN, Estimate, mean_estimate, share_estimate
from jem.generation.samples import Progress, sampler_of
from jem.model import JEM, batched_logits, check_model, evaluation_mode, log_density, on_model
from jem.randomness import named_generator

IMAGE_EPS = tuple(levels / 255 for levels in (1, 2, 4, 8, 16, 32))
"""Sizes of attacks on images, of the range of a pixel."""
OTHER_EPS = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Sizes of attacks on other inputs, in their units: standard deviations for tables."""

IMAGE_UNIT, OTHER_UNIT = "the range of a pixel", "the units of the network"

BATCH_SIZE = 128
TARGETS = 3
"""Wrong classes that `apgd` aims at, the likeliest ones."""
NUM_QUERIES = 500
"""Of the random search."""
REFINED, REFINED_STEPS, DRAWS = 50, 20, 4
"""Inputs, steps of the attack, and chains of each input, where inputs are refined by chains."""
TOLERATED = 0.002
"""Share of inputs that attacks without gradients may find alone."""


@dataclass(frozen=True)
class RobustnessPoint:
    """Figures at one size of attack; 0 is the inputs as they are.

    Attributes:
        eps: Largest change, in the report's unit.
        accuracy: Share of inputs that get their class under each attack.
        plain_accuracy: The same of the plain model, attacked itself.
        transfer_accuracy: Share that gets its class where the attack was found on the plain model.
        refined_accuracy: Share of the refined inputs that get their class.
        rejected: Share of the inputs that attacks turned wrong, which the detector rejects.
        log_density_change: Mean log-density of these, minus that of the inputs that they were.
    """

    eps: float
    accuracy: Estimate
    plain_accuracy: Estimate | None
    transfer_accuracy: Estimate | None
    refined_accuracy: Estimate | None
    rejected: Estimate
    log_density_change: Estimate


@dataclass(frozen=True)
class RobustnessReport:
    """What attacks leave of a classifier.

    Attributes:
        norm: "linf" or "l2".
        unit: What eps counts: the range of a pixel, or the network's units.
        num: Inputs.
        points: By size of attack, 0 first.
        found_by: Share of inputs by the attack that first turned them wrong, in the order in
            which they were tried.
        gradients_mislead: Whether transfer and random search found more than 0.2 % of inputs that
            gradients did not: then the accuracy is not to be believed.
        clean_rejected: Share of the inputs as they are that the detector rejects.
        refine_steps: Langevin steps before an input is classified, for `refined_accuracy`.
        num_refined: Inputs behind it.
    """

    norm: Norm
    unit: str
    num: int
    points: list[RobustnessPoint]
    found_by: dict[str, float]
    gradients_mislead: bool
    clean_rejected: Estimate
    refine_steps: int
    num_refined: int

    @property
    def component(self) -> str:
        """What a change is a change of."""
        return "pixel" if self.unit == IMAGE_UNIT else "number"

    def size_name(self, eps: float) -> str:
        """A size as readers know it: 255ths of the range of a pixel, for images and "linf"."""
        in_levels = self.unit == IMAGE_UNIT and self.norm == "linf" and eps
        return f"{255 * eps:.4g}/255" if in_levels else f"{eps:g}"

    @property
    def size_names(self) -> list[str]:
        """Names of the sizes, 0 first."""
        return [self.size_name(point.eps) for point in self.points]

    @property
    def lines(self) -> dict[str, list[tuple[float, float, float]]]:
        """What a figure shows: name -> (share, lower end, upper end) by size."""
        found: dict[str, list[Estimate | None]] = {
            "model": [point.accuracy for point in self.points],
            "plain classifier": [point.plain_accuracy for point in self.points],
            "model, attacks on the plain one": [p.transfer_accuracy for p in self.points],
            f"model after {self.refine_steps} steps": [p.refined_accuracy for p in self.points],
        }
        return {
            name: [(e.value, e.low, e.high) for e in estimates if e is not None]
            for name, estimates in found.items()
            if None not in estimates
        }


def robustness_report(
    model: JEM,
    x: Tensor,
    y: Tensor | ArrayLike,
    *,
    eps: Sequence[float] | None = None,
    norm: Norm = "linf",
    plain: JEM | None = None,
    detector: OODDetector | None = None,
    num_steps: int = 40,
    restarts: int = 1,
    refine_steps: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> RobustnessReport:
    """Attack a classifier with growing strength, and measure what is left of its accuracy.

    At each size the inputs that still get their class are attacked by `jem.attacks.pgd`, then by
    `apgd` towards the three likeliest wrong classes, then by what fools the plain model, then by
    random search. An input that is fooled at one size counts as fooled at all larger ones. All
    figures are what these attacks found: upper bounds of the accuracy under the worst attack.

    The detector is not attacked: an attacker who knows it can look for inputs that it accepts.
    So the share that it rejects describes these attacks, and is no defence.

    Args:
        model: A model of two classes or more, whose classifier has gradients.
        x: Inputs in the network's units, shape (N, *shape), seen by nothing else.
        y: Class indices, shape (N,).
        eps: Sizes of attacks. For images with a domain they count the range of a pixel, as in the
            literature on images in [0, 1] ("l2": Euclidean lengths in that range); for other
            inputs they are in the network's units, standard deviations for tables. None takes
            1/255 to 32/255 for images, 0.01 to 1 for others.
        norm: "linf" or "l2".
        plain: A classifier to compare with, trained on the same data by cross-entropy alone.
        detector: Fitted on calibration inputs, to say which attacked inputs it would reject.
        num_steps: Steps of `pgd` and `apgd`.
        restarts: Restarts of `pgd`.
        refine_steps: k > 0 also measures the classifier that first moves an input by k Langevin
            steps, on up to 50 inputs. Its gradients go through the steps, and average over their
            noise (expectation over transformation); a stronger attack may leave less.
        seed: Decides all random numbers.
        progress: Called with attacks done and attacks in all.

    Returns:
        Figures by size, with 95 % intervals over inputs.

    Raises:
        InputError: If the model has no classes or no gradients, or an argument does not fit.

    References:
        Croce and Hein (2020), arXiv:2003.01690. Athalye et al. (2018), arXiv:1802.00420, for
        gradients that mislead, and expectation over transformation. Hill et al. (2021),
        arXiv:2005.13525, for refining by Langevin steps.
    """
    for each in (model, plain):
        if each is not None:
            _check_attackable(each, x)
    check_choice("norm", norm, ("linf", "l2"))
    check_integer("refine_steps", refine_steps, 0)
    x, bounds = on_model(model, x), model.bounds()
    y = as_labels("y", y, len(x)).to(x.device)
    images = x.ndim == 4 and bounds is not None
    width = float((bounds[1] - bounds[0]).max()) if images and bounds is not None else 1.0
    eps = sorted((IMAGE_EPS if images else OTHER_EPS) if eps is None else eps)
    for size in eps or (0.0,):
        check_number("eps", size, "(0, inf)")
    generator = named_generator(seed, "attacks", device=x.device)
    rounds = 1 + 2 * (plain is not None) + bool(refine_steps)
    attack = _Attack(
        eps=[width * size for size in eps],
        how={"norm": norm, "bounds": bounds, "generator": generator},
        num_steps=num_steps,
        restarts=restarts,
        count=_counter(rounds * len(eps), progress),
    )
    plains, transferred, transfer = None, None, None
    with torch.inference_mode(False), evaluation_mode(model):
        if plain is not None:
            with evaluation_mode(plain):
                transferred = attack.transfers(plain.logits, x, y)
                plains = attack.curve(plain.logits, x, y)
            transfer = [_right(model.logits, moved, y) for moved in (x, *transferred)]
        own = attack.curve(model.logits, x, y, transferred)
        refined = attack.refined(model, refine_steps, x, y, own.x) if refine_steps else None
    found_by = {
        name: own.found_by.count(name) / len(x)
        for name in ("none needed", "pgd", "apgd", "transfer", "square")
    }
    verdicts = _Verdicts(model, detector, x)
    points = [
        RobustnessPoint(
            eps=size,
            accuracy=share_estimate(own.right[at]),
            plain_accuracy=None if plains is None else share_estimate(plains.right[at]),
            transfer_accuracy=None if transfer is None else share_estimate(transfer[at]),
            refined_accuracy=None if refined is None else share_estimate(refined[at]),
            **verdicts.of(own.x[at], own.right[0] & ~own.right[at]),
        )
        for at, size in enumerate((0.0, *eps))
    ]
    return RobustnessReport(
        norm=norm,
        unit=IMAGE_UNIT if images else OTHER_UNIT,
        num=len(x),
        points=points,
        found_by=found_by,
        gradients_mislead=found_by["transfer"] + found_by["square"] > TOLERATED,
        clean_rejected=verdicts.clean_rejected,
        refine_steps=refine_steps,
        num_refined=min(REFINED, len(x)) if refine_steps else 0,
    )


@dataclass(frozen=True)
class _Curve:
    """What was found at each size, 0 first."""

    x: list[Tensor]  # (N, *shape) each
    right: list[Tensor]  # (N,) booleans
    found_by: list[str]  # of each input that is wrong at the last size


@dataclass(frozen=True)
class _Attack:
    """Attacks of growing size, in the network's units."""

    eps: list[float]
    how: dict[str, Any]
    num_steps: int
    restarts: int
    count: Callable[[], None]

    def curve(
        self,
        logits_fn: LogitsFunction,
        x: Tensor,
        y: Tensor,
        transferred: list[Tensor] | None = None,
    ) -> _Curve:
        """Attack at every size the inputs that are right so far, by each attack in turn."""
        right, moved = _right(logits_fn, x, y), x.clone()
        found_by = ["none needed" if wrong else "" for wrong in (~right).tolist()]
        xs, rights = [x.clone()], [right.clone()]
        for at, eps in enumerate(self.eps):
            given = None if transferred is None else transferred[at]
            for name, attacked in self._attacks(logits_fn, eps, given):
                for rows in right.nonzero().flatten().split(BATCH_SIZE):
                    if not len(rows):  # none is left
                        continue
                    tried = attacked(rows, x[rows], y[rows])
                    wrong = rows[~_right(logits_fn, tried, y[rows])]
                    moved[rows] = tried
                    right[wrong] = False
                    for row in wrong.tolist():
                        found_by[row] = name
            xs.append(moved.clone())
            rights.append(right.clone())
            self.count()
        return _Curve(xs, rights, found_by)

    def _attacks(
        self, logits_fn: LogitsFunction, eps: float, transferred: Tensor | None
    ) -> Iterator[tuple[str, Callable[[Tensor, Tensor, Tensor], Tensor]]]:
        how = {"eps": eps, **self.how}
        some, steps = self.restarts, self.num_steps
        aimed: dict[str, Any] = {"loss": "targeted_dlr", "restarts": TARGETS}
        yield "pgd", lambda _, x, y: pgd(logits_fn, x, y, num_steps=steps, restarts=some, **how)
        yield "apgd", lambda _, x, y: apgd(logits_fn, x, y, num_steps=steps, **aimed, **how)
        if transferred is not None:
            yield "transfer", lambda rows, *_: transferred[rows]
        yield "square", lambda _, x, y: square(logits_fn, x, y, num_queries=NUM_QUERIES, **how)

    def transfers(self, logits_fn: LogitsFunction, x: Tensor, y: Tensor) -> list[Tensor]:
        """What fools another classifier most, at each size."""
        how = {"num_steps": self.num_steps, "stop_when_fooled": False, **self.how}
        found = []
        for eps in self.eps:
            parts = zip(x.split(BATCH_SIZE), y.split(BATCH_SIZE), strict=True)
            found.append(torch.cat([pgd(logits_fn, *part, eps=eps, **how) for part in parts]))
            self.count()
        return found

    def refined(
        self, model: JEM, refine_steps: int, x: Tensor, y: Tensor, direct: list[Tensor]
    ) -> list[Tensor]:
        """Whether inputs get their class after Langevin steps, at each size, 0 first.

        Also under what was found without the steps, `direct`; with noise that no attack has seen.
        """
        logits_fn = _refined(model, refine_steps, self.how["generator"])
        x, y = x[:REFINED], y[:REFINED]
        right = [_right(logits_fn, x, y)]
        for eps, given in zip(self.eps, direct[1:], strict=True):
            tried = pgd(logits_fn, x, y, eps=eps, num_steps=REFINED_STEPS, **self.how)
            right.append(_right(logits_fn, tried, y) & _right(logits_fn, given[:REFINED], y))
            self.count()
        return right


def _refined(model: JEM, refine_steps: int, generator: torch.Generator) -> LogitsFunction:
    """A classifier that moves inputs by Langevin steps first, and averages its probabilities."""
    step, bounds = sampler_of(model).step, model.bounds()

    def logits_fn(x: Tensor) -> Tensor:
        through = x.requires_grad
        with torch.enable_grad():
            z = x.repeat_interleave(DRAWS, dim=0)
            z = z if through else z.detach().requires_grad_()
            for _ in range(refine_steps):
                energy = model.energy(z).sum()
                (grad,) = torch.autograd.grad(energy, z, create_graph=through)
                z = step(z, grad, generator=generator, bounds=bounds)
        drawn = model.logits(z).log_softmax(dim=1).view(len(x), DRAWS, -1)
        return drawn.logsumexp(dim=1) - math.log(DRAWS)

    return logits_fn


class _Verdicts:
    """Log-densities and verdicts of attacked inputs, beside those of the inputs as they are."""

    def __init__(self, model: JEM, detector: OODDetector | None, x: Tensor) -> None:
        self.model, self.detector = model, detector
        self.clean = self._log_density(x)
        self.clean_rejected = self._rejected(x)

    def of(self, x: Tensor, turned: Tensor) -> dict[str, Estimate]:
        """Figures of the inputs that attacks turned wrong."""
        if not bool(turned.any()):
            return {"rejected": UNKNOWN, "log_density_change": UNKNOWN}
        change = self._log_density(x[turned]) - self.clean[turned]
        return {
            "rejected": self._rejected(x[turned]),
            "log_density_change": mean_estimate(change),
        }

    def _log_density(self, x: Tensor) -> Tensor:
        return log_density(batched_logits(self.model.density_model, x))

    def _rejected(self, x: Tensor) -> Estimate:
        return UNKNOWN if self.detector is None else share_estimate(self.detector.is_ood(x))


def _right(logits_fn: LogitsFunction, x: Tensor, y: Tensor) -> Tensor:
    """Whether inputs get their class, shape (B,)."""
    with torch.no_grad():
        parts = zip(x.split(BATCH_SIZE), y.split(BATCH_SIZE), strict=True)
        return torch.cat([logits_fn(part).argmax(dim=1) == own for part, own in parts])


def _check_attackable(model: JEM, x: Tensor) -> None:
    check_model(model)
    check_inputs("x", x, model.input_shape)
    if not getattr(model.network, "has_class_gradients", True):
        raise InputError("attacks need a classifier with gradients; `jem.attacks.square` does not")


def _counter(total: int, progress: Progress | None) -> Callable[[], None]:
    """Tells `progress` of one more part that is done, each time it is called."""
    done = count(1)
    return lambda: progress(next(done), total) if progress is not None else None
