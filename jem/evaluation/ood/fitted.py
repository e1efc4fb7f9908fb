"""A score with what it compares with, and one score out of several.

Some scores find inputs that are far from the data, others those that lie between classes. Each is
blind to what the other sees. Each becomes a p-value, and the logarithms of the p-values add up.
"""

import math
from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from jem.checks import check_choice, check_finite, refuse
from jem.errors import InputError
from jem.evaluation.ood.features import Reference, features_of, plain_head
from jem.evaluation.ood.scores import REASONS, SCORES, SUMS, Score
from jem.model import JEM, batched_logits, inference

MAX_KNOTS = 256
"""Quantiles of a reference that are kept: what lies below the lowest is continued all the same."""

Option = int | float | None
"""Value of an option of a score."""

Views = dict[str, Tensor]
"""The same rows as scores take them: "inputs", and where they are needed "logits", "features"."""


def terms_of(name: str) -> dict[str, Score]:
    """The scores that a name stands for: one of `SCORES`, or several, written `knn+log_density`.

    Raises:
        InputError: If there is no such score.
    """
    names = SUMS.get(name, name).split("+")
    if len(names) == 1:
        check_choice("score", name, (*SCORES, *SUMS))
    for each in names:
        check_choice(f"summand of the score {name!r}", each, SCORES)
    return {each: SCORES[each] for each in names}


class FittedScore:
    r"""A score, or a sum of several, of a model, with what was fitted for it.

    A sum is Fisher's combination of p-values, low where one of them is:

    .. math:: s(x) = \sum_t \log p_t(s_t(x))

    Args:
        model: The model.
        name: As `terms_of` takes it.
        options: Passed to the scores that have them.

    Attributes:
        terms: The scores that add up, by name.
        references: What they compare with, by name; under "maps" that of `p_value_maps`.

    References:
        Fisher (1925), Statistical Methods for Research Workers, section 21.1.
    """

    def __init__(self, model: JEM, name: str, options: Mapping[str, Option]) -> None:
        self.model, self.name, self.options = model, name, dict(options)
        self.terms = terms_of(name)
        known = [option for term in self.terms.values() for option in term.options]
        for option in options:
            check_choice(f"option of {name}", option, known)
        self.references: dict[str, Reference] = {}

    @property
    def adds_up(self) -> bool:
        """Whether there are several terms, whose p-values need maps."""
        return len(self.terms) > 1

    @property
    def compares(self) -> bool:
        """Whether a term compares with training inputs."""
        return any(term.fit is not None for term in self.terms.values())

    @property
    def uses_density(self) -> bool:
        """Whether the density counts."""
        return any(term.uses_density for term in self.terms.values())

    @property
    def needs_classes(self) -> bool:
        """Whether it says nothing where there is one output (K = 1)."""
        return all(t.takes == "logits" and not t.uses_density for t in self.terms.values())

    @property
    def roundings(self) -> float:
        """How many roundings of what it is made from the score may show."""
        return float(self.references.get("maps", {}).get("roundings", 1.0))

    def takes(self, view: str) -> bool:
        """Whether a term takes "inputs", "logits" or "features"."""
        return any(term.takes == view for term in self.terms.values())

    def fit(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Fit what the terms compare with, on training inputs (B, *shape) and class indices (B,).

        Raises:
            InputError: If there is no input, or a feature is not finite.
        """
        fits = {name: term.fit for name, term in self.terms.items() if term.fit is not None}
        if not fits:
            return
        with inference(self.model):
            pairs = [(self._views_to_fit(x), y) for x, y in batches if len(x)]
            if not pairs:
                refuse("reference", "hold inputs", "none")
            labels = torch.cat([y for _, y in pairs])
            for name, fit in fits.items():
                takes = self.terms[name].takes
                values = torch.cat([views[takes] for views, _ in pairs])
                check_finite(f"{takes} of the reference", values)
                head = self.terms[name].fit_takes_head
                given = plain_head(self.model, values.shape[1]) if head else labels
                self.references[name] = fit(values, given)

    def _views_to_fit(self, x: Tensor) -> Views:
        """What the terms that compare take of rows, and no more: it is kept for all of them."""
        needed = {term.takes for term in self.terms.values() if term.fit is not None}
        return {name: view for name, view in self.views(x).items() if name in needed}

    def fit_maps(self, batches: Iterable[Tensor]) -> None:
        """Fit the p-values of a sum, on inputs (B, *shape) that training has not seen."""
        found = []
        with inference(self.model):
            for x in batches:
                values = self._values(views := self.views(x))
                sizes = [
                    views["logits"].abs().amax(dim=1) if term.takes == "logits" else column.abs()
                    for term, column in zip(self.terms.values(), values.unbind(dim=1), strict=True)
                ]
                found.append((values, torch.stack([size.to(values) for size in sizes], dim=1)))
        if not found:
            refuse("validation", "hold inputs", "none")
        self.references["maps"] = p_value_maps(*(torch.cat(p) for p in zip(*found, strict=True)))

    def views(self, x: Tensor, logits: Tensor | None = None) -> Views:
        """Rows (B, *shape) as the terms take them.

        Args:
            x: Inputs.
            logits: f(x), shape (B, K), where they are at hand; those of tables lose the misfit of
                their row here (`BaseDensity.misfit`).
        """
        views = {"inputs": x}
        if self.takes("logits"):
            logits = batched_logits(self.model, x, len(x)) if logits is None else logits
            base = self.model.base
            if base is not None:
                lost = base.misfit(x.to(self.model.device))
                logits = logits - lost[:, None].to(logits.device)
            views["logits"] = logits
        if self.takes("features"):
            views["features"] = features_of(self.model, x)
        return views

    def score(self, views: Views) -> Tensor:
        """Terms (B, T) that add up to the score, without checks: logarithms of the p-values.

        One term is the score itself.

        Raises:
            InputError: If what the terms compare with is missing.
        """
        values = self._values(views)
        if not self.adds_up:
            return values
        if "maps" not in self.references:
            raise InputError(
                f"the score {self.name!r} needs inputs for its p-values: pass validation=x"
            )
        return log_p_values(values, self.references["maps"])

    def reasons(self, terms: Tensor, is_ood: Tensor, threshold: float) -> Tensor:
        """Indices of `REASONS` (B,) from `score` (B, T) and verdicts (B,), without checks."""
        # Of T that add up to less than the threshold one is below a T-th of it. NaN is low.
        low = ~(terms >= threshold / len(self.terms)) | (terms <= terms.amin(dim=1, keepdim=True))
        found = {reason: torch.zeros_like(is_ood) for reason in REASONS[1:3]}
        for index, term in enumerate(self.terms.values()):
            found[term.reason] = found[term.reason] | low[:, index]
        unlike, between = (flags.long() for flags in found.values())
        return is_ood.long() * (unlike + 2 * between)

    def _values(self, views: Views) -> Tensor:
        """What each score gives by itself, shape (B, T); in a sum without ties."""
        columns = []
        for name, term in self.terms.items():
            function = (self.adds_up and term.without_ties) or term.function
            options = {key: self.options[key] for key in term.options if key in self.options}
            given: list[Any] = [self.model] if term.takes == "inputs" else []
            given.append(views[term.takes])
            if term.fit is not None:
                if name not in self.references:
                    raise InputError(
                        f"the score {name!r} needs reference data: pass reference=(x, y), the "
                        "training part"
                    )
                given.append(self.references[name])
            columns.append(function(*given, **options))
        dtype = reduce(torch.promote_types, (column.dtype for column in columns))
        return torch.stack([column.to(dtype) for column in columns], dim=1)


def p_value_maps(scores: Tensor, sizes: Tensor) -> Reference:
    """What `log_p_values` compares with: quantiles and scales of scores on a reference.

    Args:
        scores: Of inputs like the data, shape (n, T), n >= 1: best those of a validation part.
            Scores of training inputs are too high, which makes later ones look worse than they
            are; a threshold fitted on other inputs makes up for that.
        sizes: Of the numbers that the scores were made from, shape (n, T), for their rounding.

    Returns:
        `knots` (m, T), m = min(n, 256); `scales` (T,), log 10 of which lie between the median and
        the 5 % quantile; and `roundings`, how many roundings of these numbers a sum may show.
    """
    ordered = scores.double().nan_to_num(posinf=1e30, neginf=-1e30).sort(dim=0).values
    ranks = torch.arange(0.5, min(len(ordered), MAX_KNOTS)) / min(len(ordered), MAX_KNOTS)
    knots = ordered[(ranks * len(ordered)).long()]
    low, middle = torch.quantile(ordered, torch.tensor([0.05, 0.5]).to(ordered), dim=0)
    size = sizes.double().median(dim=0).values.clamp(min=1.0)
    scales = torch.maximum((middle - low) / math.log(10), 1e-4 * size)
    gain = 2 * torch.where(middle > low, size / scales, 0.0).sum()
    return {"knots": knots.to(scores), "scales": scales.to(scores), "roundings": gain.to(scores)}


def log_p_values(scores: Tensor, maps: Reference) -> Tensor:
    r"""Logarithms of the p-values of scores.

    .. math:: p(s) = \frac{1}{m} \sum_{i=1}^m \frac{1}{1 + \exp((s_i - s) / h)}

    This is the share of reference scores below s, smoothed. It rises strictly with s, and below
    all s_i its logarithm goes on falling with slope 1 / h: an empirical p-value stops at
    1 / (n + 1), where an input far from everything would pass if it were only confident.

    Args:
        scores: Shape (B, T).
        maps: Of `p_value_maps`, with s_i and h of each score.

    Returns:
        Shape (B, T), nats, at most 0.
    """
    knots, scales = maps["knots"].to(scores), maps["scales"].to(scores)
    steps = F.logsigmoid((scores[:, None] - knots) / scales)  # (B, m, T)
    return steps.logsumexp(dim=1) - math.log(len(knots))
