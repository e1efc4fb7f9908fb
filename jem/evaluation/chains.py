"""Chain health: are persistent chains as likely under the model as data, and do they stay so?

Contrastive training assumes that its chains are samples of the model. If their mean energy is far
from that of the data, or drifts once the model stands still, that assumption fails.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from jem.checks import check_integer
from jem.errors import InputError
from jem.evaluation.statistics import Estimate, mean_estimate, normal_estimate
from jem.generation.samples import check_correctable, guided_energy, sampler_of, stable_step
from jem.model import JEM, batched_logits, energy_of, inference, on_model
from jem.randomness import named_generator
from jem.sampling.langevin import run_chains
from jem.sampling.mala import run_corrected_chains

CLOSED_GAP = 0.5
"""A gap below this many standard deviations of the data's energy counts as closed."""

GapVerdict = Literal["level", "lag", "landscape", "overshoot"]

MEANINGS: dict[GapVerdict, str] = {
    "level": "the chains have the energy of the data, and keep it when they continue under the "
    "finished model",
    "lag": "the chains do not have the energy of the data yet, but reach it, or at least half of "
    "the way, when they continue under the finished model: training is too fast for them",
    "landscape": "the chains end above the data in energy when they continue under the "
    "finished model: the energy landscape holds them there, and more steps will not help",
    "overshoot": "the chains end below the data in energy when they continue under the "
    "finished model: they find minima, as chains far below temperature 1 do, so samples depend on "
    "the number of steps",
}
"""What each verdict says, in words."""


@dataclass(frozen=True)
class ChainHealth:
    """Result of `chain_health`. Energies are E(x) in nats, whose scale is nominal.

    Attributes:
        num_data: Real inputs compared with.
        num_chains: Chains that were run on.
        num_steps: Langevin steps that each made.
        gap_start: Mean energy of the chains as given minus that of the data; near 0 is good.
        gap_end: The same after the steps, the model unchanged.
        tolerance: A gap of at most this size counts as closed: half a standard deviation of the
            data's energy, or two standard errors of a gap if that is more.
        verdict: A key of `MEANINGS`, by `gap_verdict`.
    """

    num_data: int
    num_chains: int
    num_steps: int
    gap_start: Estimate
    gap_end: Estimate
    tolerance: float
    verdict: GapVerdict

    @property
    def meaning(self) -> str:
        """What the verdict says, in words."""
        return MEANINGS[self.verdict]


def chain_health(
    model: JEM,
    x_data: Tensor,
    chains: Tensor,
    *,
    num_steps: int = 400,
    max_chains: int = 64,
    seed: int,
) -> ChainHealth:
    """Compare the energy of chains with that of data, and run the chains on.

    Steps are those of `model.sampler`, inside the domain. The model's mode, parameters and
    gradients stay as they are.

    Args:
        model: A model with sampler settings.
        x_data: Real inputs in the network's units, shape (N, *shape), N >= 2.
        chains: Chains of a buffer, or fresh samples, shape (M, *shape), M >= 2.
        num_steps: Langevin steps, at least 1.
        max_chains: Run at most this many chains, chosen at random; at least 2.
        seed: Decides the noise and the choice of chains.

    Returns:
        Gaps and verdict.

    Raises:
        InputError: If the model has no sampler settings, or chains leave the finite numbers.

    References:
        Nijkamp et al. (2020), arXiv:1903.12370, on chains that have the data's energy only at
        the step where training stops them.
    """
    settings = sampler_of(model)
    if len(chains) > max_chains:
        generator = named_generator(seed, "rows", "chains")
        rows = torch.randperm(len(chains), generator=generator)[:max_chains]
        chains = chains[rows]

    data = energy_of(batched_logits(model, x_data)).double().cpu()
    generator = named_generator(seed, "chain health", device=model.device)
    traces: list[Tensor] = []
    with inference(model):
        x = on_model(model, chains)

        def energy(x: Tensor) -> Tensor:
            found = model.energy(x)
            traces.append(found.detach())
            return found

        steps = [settings.step] * num_steps
        energy(run_chains(x, energy, steps, generator=generator, bounds=model.bounds()))
    energies = torch.stack(traces).cpu().double()  # (num_steps + 1, M)
    finite = energies.isfinite().all(dim=1)
    if not bool(finite.all()):
        raise InputError(
            f"chains left the finite numbers at step {int((~finite).nonzero()[0])}: "
            "lower `model.sampler.step.step_size`, or set `model.domain`"
        )
    level = mean_estimate(data)
    start, end = (_gap(mean_estimate(energies[row]), level) for row in (0, -1))
    errors = [2 * gap.std_error for gap in (start, end) if not math.isnan(gap.std_error)]
    tolerance = max([CLOSED_GAP * float(data.std()), *errors])
    return ChainHealth(
        num_data=len(x_data),
        num_chains=len(chains),
        num_steps=num_steps,
        gap_start=start,
        gap_end=end,
        tolerance=tolerance,
        verdict=gap_verdict(start.value, end.value, tolerance),
    )


def _gap(chains: Estimate, data: Estimate) -> Estimate:
    error = math.hypot(chains.std_error, data.std_error)
    return normal_estimate(chains.value - data.value, error)


def gap_verdict(start: float, end: float, tolerance: float) -> GapVerdict:
    """Say what it means that a gap was `start`, and is `end` after the chains ran on.

    Args:
        start: Gap of the chains as they were.
        end: Gap after they ran on, the model unchanged.
        tolerance: A gap between -tolerance and tolerance counts as closed.

    Returns:
        `"level"` if it is closed at both ends; `"lag"` if it was open and closes, or at least
        halves; else, by the sign at the end, `"landscape"` above and `"overshoot"` below.

    Example:
        >>> gap_verdict(8.0, 0.2, 1.0), gap_verdict(8.0, 6.0, 1.0), gap_verdict(0.1, -9.0, 1.0)
        ('lag', 'landscape', 'overshoot')
    """
    was_open, is_open = abs(start) > tolerance, abs(end) > tolerance
    halved = start * end > 0 and abs(end) <= abs(start) / 2
    if was_open and (halved or not is_open):
        return "lag"
    if not is_open:
        return "level"
    return "landscape" if end > 0 else "overshoot"


class Mixing(NamedTuple):
    """Whether corrected chains have forgotten where they began: see `mixing`."""

    r_hat: float  # near 1 where chains agree; the largest of all components and the energy
    effective_size: float  # independent draws that the chains are worth, the least of the same
    acceptance: float  # share of accepted steps


def mixing(
    model: JEM,
    label: int | None = None,
    *,
    num_chains: int = 16,
    num_steps: int = 500,
    seed: int,
) -> Mixing:
    """Run the chains of `jem.sample(metropolis=True)`, and say whether they agree.

    Chains that were run for long enough give the same answer, wherever they began: R-hat below
    1.01, and an effective sample size above 100 for each thing that you want to know. The first
    half of the steps is left out.

    Args:
        model: A model of vectors with sampler settings.
        label: Class of all chains; None leaves the class out of their energy.
        num_chains: Chains, at least 2.
        num_steps: Corrected Langevin steps of each, at least 40.
        seed: Decides all random numbers.

    Returns:
        Figures of the second half.

    Raises:
        InputError: If the model has no sampler settings, or its steps cannot be corrected.

    References:
        Vehtari et al. (2021), arXiv:1903.08008, equations 1 to 4 (split R-hat without ranks) and
        10 to 13.
    """
    settings = sampler_of(model)
    check_integer("num_chains", num_chains, 2)
    check_integer("num_steps", num_steps, 40)
    check_correctable(model, settings.step)
    generator = named_generator(seed, "mixing", device=model.device)
    y = None if label is None else torch.full((num_chains,), label, device=model.device)
    energy = guided_energy(model, y, 1.0)
    traces: list[Tensor] = []
    with inference(model):
        x = settings.init.sample(num_chains, y, generator=generator)
        step = stable_step(settings.step, x, energy, model.bounds())
        bounds = model.bounds()

        def keep(x: Tensor) -> None:
            traces.append(torch.cat([x, energy(x)[:, None].to(x)], dim=1).cpu().double())

        steps = [step] * num_steps
        run_corrected_chains(x, energy, steps, generator=generator, bounds=bounds, after_step=keep)
    path = torch.stack(traces[num_steps // 2 :], dim=1)  # (M, n, D + 1)
    moved = (path.diff(dim=1) != 0).any(dim=2)
    figures = [r_hat_and_size(path[..., at]) for at in range(path.shape[2])]
    return Mixing(
        r_hat=max(r_hat for r_hat, _ in figures),
        effective_size=min(size for _, size in figures),
        acceptance=float(moved.double().mean()),
    )


def r_hat_and_size(traces: Tensor) -> tuple[float, float]:
    r"""Split R-hat and effective sample size of a quantity along chains.

    .. math:: \hat R = \sqrt{V / W}, \quad V = \tfrac{n - 1}{n} W + \tfrac{B}{n}, \qquad
              \mathrm{ESS} = M n / \tau, \quad
              \tau = -1 + 2 \sum_{k=0}^{K} (\rho_{2k} + \rho_{2k+1}), \quad
              \rho_t = 1 - (W - \bar\gamma_t) / V

    W is the mean variance within chains, gamma_t the mean autocovariance at lag t, B / n the
    variance of the chains' means. Chains are first cut into halves, so that one that drifts
    disagrees with itself. The sum ends before the first pair that is not positive, and pairs are
    made to decrease (Geyer's initial monotone sequence).

    Args:
        traces: The quantity at each step, shape (M, n), n >= 8, double precision.

    Returns:
        R-hat and the effective sample size; infinity and 0 where no chain ever moves.

    References:
        Geyer (1992), Statistical Science 7. Vehtari et al. (2021), arXiv:1903.08008.

    Example:
        >>> white = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0)).double()
        >>> r_hat, size = r_hat_and_size(white)
        >>> r_hat < 1.01, 3300 < size < 5000
        (True, True)
    """
    half = traces.shape[1] // 2
    halves = torch.cat([traces[:, :half], traces[:, -half:]])
    within = float(halves.var(dim=1).mean())
    overall = within * (half - 1) / half + float(halves.mean(dim=1).var())
    if within <= 1e-24 * float(halves.abs().max()) ** 2:  # all that rounding leaves of a constant
        return math.inf, 0.0
    # Autocovariances by the Fourier transform, padded so that nothing wraps round.
    spectrum = torch.fft.rfft(halves - halves.mean(dim=1, keepdim=True), n=2 * half)
    covariances = torch.fft.irfft(spectrum.abs() ** 2, n=2 * half)[:, :half].mean(dim=0) / half
    rho = 1 - (within - covariances) / overall
    rho[0] = 1
    pairs = rho[: half // 2 * 2].view(-1, 2).sum(dim=1)
    kept = pairs[(pairs > 0).cumprod(dim=0).bool()]
    total = float(-1 + 2 * kept.cummin(dim=0).values.sum()) if len(kept) else 0.0
    tau = max(total, 1 / math.log10(halves.numel()))  # below 1 where chains move to and fro
    return math.sqrt(overall / within), halves.numel() / tau
