"""What a density is worth: its normalising constant, and what inputs cost under it in bits."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from jem.checks import check_inputs, check_integer, refuse
from jem.evaluation.statistics import Estimate, Interval, mean_estimate, normal_estimate
from jem.generation.samples import Progress
from jem.model import JEM, check_model, check_network, inference, on_model
from jem.randomness import named_generator
from jem.sampling.annealing import BoxGaussians, Bracket, Path, log_z_bracket
from jem.sampling.base_distributions import GaussianBase, UniformBase

REPEATS = 3
"""Independent groups of chains."""
FEWEST = 10
"""Effective sample size of a repeat from which on a log Z is trusted."""
MOST_LEVELS = 1024
"""Images with more different values count as continuous."""
SHOWN = 10
"""Inverse temperatures of `LogPartition.points`, about."""


@dataclass(frozen=True)
class LogPartitionPoint:
    """Figures at one inverse temperature.

    Attributes:
        beta: Inverse temperature: 0 is the base distribution, 1 the model.
        log_z: Estimate of log Z, nats: the middle of the two directions.
        interval: From the lower bound, less its error, to the upper one, plus its error.
        crossed: Whether the lower bound lies above the upper one: then neither is one.
        effective_size: Effective sample size of the weights, of the direction that has less.
        acceptance: Share of Langevin steps that were accepted; NaN at 0.
        trusted: Whether the bounds did not cross, and the effective sample size is at least 10
            for each of three repeats.
        bits_per_dim: Bits a component that test inputs cost, with what the interval of log Z and
            the number of test inputs leave open; None without test inputs.
    """

    beta: float
    log_z: float
    interval: Interval
    crossed: bool
    effective_size: float
    acceptance: float
    trusted: bool
    bits_per_dim: Estimate | None


@dataclass(frozen=True)
class LogPartition:
    """Result of `log_partition`.

    Attributes:
        points: About ten inverse temperatures, from the base distribution on.
        at_one: The model as it is. None where the steps did not lead so far.
        chosen: The inverse temperature at which validation inputs cost least, among those that
            are trusted. None without validation inputs.
        doubt: Why log Z of the model as it is cannot be trusted; empty where it can.
        largest_saving: Bits a component that the model as it is can save at most, against the
            base distribution; None without test inputs.
        base: "uniform noise" or "class Gaussians".
        temperature: T: log p(x) = log_density(x) / T - log_z. 1 but for vectors whose chains have
            another temperature.
        levels: Different values of a pixel, for images; None where inputs are continuous.
        num_test: Test inputs.
        num_chains: Chains, of all repeats together.
        num_steps: Temperatures after the first.
    """

    points: list[LogPartitionPoint]
    at_one: LogPartitionPoint | None
    chosen: LogPartitionPoint | None
    doubt: str
    largest_saving: Estimate | None
    base: str
    temperature: float
    levels: int | None
    num_test: int
    num_chains: int
    num_steps: int

    @property
    def log_z(self) -> float:
        """Estimate of log Z of the model as it is, nats; NaN where it was not reached."""
        return math.nan if self.at_one is None else self.at_one.log_z

    @property
    def interval(self) -> Interval:
        """Between which bounds it lies; see `LogPartitionPoint`."""
        return Interval(math.nan, math.nan) if self.at_one is None else self.at_one.interval

    @property
    def bits_per_dim(self) -> Estimate | None:
        """Bits a component of test inputs at the chosen temperature, or else of the model."""
        point = self.chosen or self.at_one
        return None if point is None else point.bits_per_dim

    @property
    def shown(self) -> list[LogPartitionPoint]:
        """All of these points, by their inverse temperatures."""
        more = [point for point in (self.at_one, self.chosen) if point not in (None, *self.points)]
        return sorted([*self.points, *more], key=lambda point: point.beta)  # type: ignore[list-item]

    @property
    def base_bits(self) -> Estimate | None:
        """The same of the base distribution alone."""
        return self.points[0].bits_per_dim


def log_partition(
    model: JEM,
    *,
    seed: int,
    test: Tensor | None = None,
    validation: Tensor | None = None,
    num_chains: int = 64,
    num_steps: int = 400,
    progress: Progress | None = None,
) -> LogPartition:
    r"""Estimate log Z, and with it what test inputs cost in bits.

    .. math:: \log Z = \log \int e^{\mathtt{log\_density}(x)} \, dx, \qquad
              p_\beta(x) = q(x)^{1 - \beta} e^{\beta\,\mathtt{log\_density}(x)} / Z_\beta

    Chains begin at exact draws of a base distribution q, and follow the densities p_beta: from q
    (beta = 0) to the model (beta = 1), and on while validation inputs become more likely. Their
    weights give a lower bound of log Z on average. Chains that run back give an upper bound, which
    is approximate, as they begin where the others ended. q is uniform in the model's domain. For
    models whose samples begin at class Gaussians and move at temperature 1, as those of `dsm`, it
    is these Gaussians without correlations, cut off at the faces of the domain. For vectors with a
    base density it is that, on the whole space, and `log_density` above is divided by its
    temperature. Every step is a Langevin step with a Metropolis correction that bounces off
    the faces of the domain (`jem.sampling.mala_step`).

    With q uniform, p_beta is the model at the temperature 1 / beta. A model that chains trained
    far below temperature 1 is at 1 often little more than q: look at `largest_saving` first.

    Bits of images are those of their pixel values: test and validation images get noise within
    their level. Bits of other inputs are those of a density, in the network's units: they may be
    negative, and only differences count.

    Args:
        model: The model, with a domain.
        seed: Decides all random numbers.
        test: Test inputs in the network's units, shape (N, *shape).
        validation: Other inputs, by which beta is chosen, shape (M, *shape).
        num_chains: Chains of each of three repeats, and those that look for step sizes first; at
            least 16.
        num_steps: Temperatures, with one step of each chain at each, at least 10.
        progress: Called with steps done and steps in all.

    Returns:
        log Z with its bracket, and bits a component.

    Raises:
        InputError: If the model has no domain, or inputs do not fit.

    References:
        Neal (2001), arXiv:physics/9803008. Grosse et al. (2015), arXiv:1511.02543, for brackets.
        Theis et al. (2016), arXiv:1511.01844, for bits of images with noise.

    Example:
        >>> model = JEM(torch.nn.Linear(2, 1), input_shape=(2,), domain=(-1.0, 1.0))
        >>> found = log_partition(model, seed=0, num_steps=20)
        >>> w, b = (p.detach()[0] for p in model.network.parameters())
        >>> exact = b + (2 * torch.sinh(w) / w).log().sum()
        >>> abs(found.log_z - float(exact)) < 0.05
        True
    """
    check_model(model)
    check_integer("num_chains", num_chains, 16)
    check_integer("num_steps", num_steps, 10)
    if model.input_shape is None:
        refuse("model", "know its `input_shape`", None, "set it, or train the model")
    for name, given in (("test", test), ("validation", validation)):
        if given is not None:
            check_inputs(name, given, model.input_shape)
    path, base, temperature = _path_of(model)
    generator = named_generator(seed, "log partition", device=model.device)
    check_network(model, path.sample(2, generator))
    levels = _levels(test, path) if test is not None and test.ndim == 4 else None

    def costs(given: Tensor | None) -> _Costs | None:
        if given is None:
            return None
        x = on_model(model, given)
        return _Costs(path, x if levels is None else _spread(x, levels, path, generator), levels)

    with inference(model):
        of_test, of_validation = costs(test), costs(validation)
        of_base = _Costs(path, path.sample(REPEATS * num_chains, generator))
        least = -math.inf if of_validation is None else float(of_validation.terms[-1].mean())
        bracket = log_z_bracket(
            path,
            num_chains=num_chains,
            num_steps=num_steps,
            repeats=REPEATS,
            generator=generator,
            far_enough=lambda mean: mean >= least,
            progress=progress or (lambda *_: None),
        )
    points = [_point(bracket, at, of_test) for at in range(num_steps + 1)]
    at_one = next((point for point in points if point.beta == 1), None)
    chosen = None
    if of_validation is not None:  # the upper end of log Z, so that no estimate is too good
        trusted = [point for point in points if point.trusted]
        chosen = min(trusted, key=lambda p: of_validation.bits(p.beta, p.interval.high).value)
    return LogPartition(
        points=points[:: max(1, num_steps // SHOWN)],
        at_one=at_one,
        chosen=chosen,
        doubt=_doubt(at_one, points[-1].beta),
        largest_saving=None if of_test is None else of_test.saving(of_base),
        base=base,
        temperature=temperature,
        levels=levels,
        num_test=0 if test is None else len(test),
        num_chains=REPEATS * num_chains,
        num_steps=num_steps,
    )


def _path_of(model: JEM) -> tuple[Path, str, float]:
    """The path from a base distribution to a model, the name of the base, and a temperature."""
    density, bounds = model.density_model, model.bounds()
    if (base := density.base) is not None:
        known, temperature = base, float(base.temperature)

        def terms(x: Tensor) -> tuple[Tensor, Tensor]:
            log_q = known.log_q(x)
            return log_q, density.log_density(x) / temperature - log_q

        return Path(terms, base.sample, base.log_z), "class Gaussians", temperature
    if bounds is None:
        refuse("model", "have a domain or a base density", None, "set `model.domain`")
    uniform = UniformBase(*bounds, model.input_shape)
    faces = uniform.low.to(model.device), uniform.high.to(model.device)
    sampler = model.sampler
    if sampler and isinstance(sampler.init, GaussianBase) and sampler.step.temperature >= 0.99:
        gaussians = BoxGaussians(sampler.init, *faces)

        def from_gaussians(x: Tensor) -> tuple[Tensor, Tensor]:
            log_q = gaussians.log_prob(x)
            return log_q, density.log_density(x) - log_q

        return Path(from_gaussians, gaussians.sample, 0.0, faces), "class Gaussians", 1.0
    log_volume = float((uniform.high - uniform.low).double().log().sum())
    path = Path(
        lambda x: (density.log_density(x),),
        lambda count, generator: uniform.sample(count, generator=generator),
        log_volume,
        faces,
    )
    return path, "uniform noise", 1.0


def _levels(x: Tensor, path: Path) -> int | None:
    """How many values a pixel can have, if they are evenly spaced over the domain."""
    if path.bounds is None:
        return None
    low, high = path.bounds
    shares = ((x.to(low) - low) / (high - low)).double().unique()
    if len(shares) > MOST_LEVELS:
        return None
    steps = torch.arange(1, MOST_LEVELS)[:, None] * shares.cpu()
    fits = ((steps - steps.round()).abs() < 5e-4).all(dim=1).nonzero()
    return int(fits[0]) + 2 if len(fits) else None


def _spread(x: Tensor, levels: int, path: Path, generator: torch.Generator) -> Tensor:
    """Noise within the level of each pixel: levels divide the domain into equal parts."""
    assert path.bounds is not None, "levels are of a domain"
    low, high = path.bounds
    level = ((x - low) / (high - low) * (levels - 1)).round()
    noise = torch.empty_like(x).uniform_(generator=generator)
    return low + (level + noise) / levels * (high - low)


class _Costs:
    """What inputs cost under the densities of a path."""

    def __init__(self, path: Path, x: Tensor, levels: int | None = None) -> None:
        with torch.no_grad():
            parts = [torch.stack(list(path.terms(rows))).cpu().double() for rows in x.split(256)]
        self.terms = torch.cat(parts, dim=1)  # (n, N)
        self.size = x[0].numel()
        self.shift = 0.0  # bits a component, from a density to the probability of a level
        if path.bounds is not None:
            low, high = path.bounds
            outside = ((x < low) | (x > high)).flatten(1).any(dim=1).cpu()
            self.terms[:, outside] = -math.inf
            if levels is not None:
                self.shift = -math.log2(float((high - low).max()) / levels)

    def bits(self, beta: float, log_z: float) -> Estimate:
        """Bits a component, given log Z."""
        log_density = self.terms[:-1].sum(dim=0) + (beta * self.terms[-1] if beta else 0.0)
        nats = log_z - log_density
        return mean_estimate(nats / (self.size * math.log(2)) + self.shift)

    def saving(self, base: "_Costs") -> Estimate:
        """Most that the model can save, against the base, by Jensen's inequality."""
        here, there = (mean_estimate(c.terms[-1]) for c in (self, base))
        unit = self.size * math.log(2)
        error = math.hypot(here.std_error, there.std_error)
        return normal_estimate((here.value - there.value) / unit, error / unit)


def _point(bracket: Bracket, at: int, of_test: _Costs | None) -> LogPartitionPoint:
    names = ("forward", "forward_error", "backward", "backward_error", "effective_size")
    up, up_error, down, down_error, size = (float(getattr(bracket, name)[at]) for name in names)
    beta, crossed = float(bracket.betas[at]), bool(bracket.crossed[at])
    ends = sorted((normal_estimate(up, up_error).low, normal_estimate(down, down_error).high))
    interval, log_z = Interval(*ends), (up + down) / 2
    bits = None
    if of_test is not None:
        low, middle, high = (of_test.bits(beta, each) for each in (ends[0], log_z, ends[1]))
        bits = Estimate(middle.value, middle.std_error, low.low, high.high)
    return LogPartitionPoint(
        beta=beta,
        log_z=log_z,
        interval=interval,
        crossed=crossed,
        effective_size=size,
        acceptance=float(bracket.acceptance[at]),
        trusted=not crossed and size >= FEWEST * REPEATS,
        bits_per_dim=bits,
    )


def _doubt(at_one: LogPartitionPoint | None, furthest: float) -> str:
    if at_one is None:
        return (
            f"the steps led only to the inverse temperature {furthest:.3g}, and not to the model "
            "(1); raise `num_steps`"
        )
    if at_one.crossed:
        return (
            "the bracket crossed: the lower bound lies above the upper one, so the chains do not "
            "follow the density, and neither bound holds"
        )
    if not at_one.trusted:
        return (
            f"the chains are worth {at_one.effective_size:.1f} independent ones, and "
            f"{REPEATS * FEWEST} are needed; raise `num_steps`"
        )
    return ""
