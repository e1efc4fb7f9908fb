"""Base distributions: samples against moments, completions against dense Gaussians, files."""

import io

import pytest
import torch
from torch.distributions import MultivariateNormal

from jem.errors import InputError
from jem.sampling import (
    ContrastBase,
    GaussianBase,
    LangevinStep,
    MixtureBase,
    SamplerSettings,
    UniformBase,
    base_from_state,
)
from jem.sampling.outliers import Outliers

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

KNOWN = torch.tensor([True, False, True, False])


def fresh(seed=0):
    return torch.Generator().manual_seed(seed)


def correlated(count, seed=1):
    """Rows of two classes with known, different, correlated Gaussians in three dimensions."""
    mixing = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [-0.3, 0.5, 0.4]])
    labels = torch.arange(count) % 3 % 2  # two thirds of class 0
    x = torch.randn(count, 3, generator=fresh(seed)) @ mixing.T
    return x * (1 + labels[:, None]) + 3 * labels[:, None], labels


def gaussian(rank=3, bounds=None):
    return GaussianBase.fit(*correlated(600), 2, rank=rank, bounds=bounds)


def bases():
    low, high = torch.tensor([-1.0, 0.0, 2.0]), torch.tensor([1.0, 0.5, 5.0])
    uniform, contrast = UniformBase(low, high), ContrastBase(low, high)
    nested = MixtureBase([MixtureBase([uniform, contrast, gaussian()]), gaussian(rank=0)])
    return {"uniform": uniform, "contrast": contrast, "gaussian": gaussian(), "nested": nested}


# -- boxes


@pytest.mark.parametrize("kind", [UniformBase, ContrastBase])
def test_samples_fill_the_box_with_the_moments_of_the_formula(kind):
    with pytest.raises(InputError, match="`low`"):
        kind(1.0, 1.0, (2,))
    low, high = torch.tensor([-1.0, 2.0]), torch.tensor([1.0, 8.0])
    x = kind(low, high).sample(40_000, generator=fresh())
    assert ((x >= low) & (x <= high)).all()
    half, least = (high - low) / 2, 0.05
    square = 1.0 if kind is UniformBase else (1 - least**3) / (3 * (1 - least))  # E[s^2]
    torch.testing.assert_close(x.mean(dim=0) / half, (low + high) / 2 / half, rtol=0, atol=0.02)
    torch.testing.assert_close(
        x.var(dim=0) / half**2, torch.full((2,), square / 3), rtol=0.04, atol=0
    )


# -- class Gaussians


def covariance(base, k):
    return base.factors[k] @ base.factors[k].T + base.variances[k].diag()


@pytest.mark.parametrize("rank", [3, 5])
def test_full_rank_moments_are_the_empirical_ones(rank):
    x, labels = correlated(600)
    base = gaussian(rank)
    for k in range(2):
        rows = x[labels == k]
        torch.testing.assert_close(base.means[k], rows.mean(dim=0))
        # the diagonal keeps a floor of 1e-4
        torch.testing.assert_close(covariance(base, k), rows.T.cov(), rtol=1e-4, atol=2e-4)
    torch.testing.assert_close(base.frequencies, torch.tensor([2 / 3, 1 / 3]))


def test_low_rank_keeps_every_variance_and_the_largest_direction():
    x, labels = correlated(600)
    base = gaussian(rank=1)
    for k in range(2):
        cov = x[labels == k].T.cov()
        torch.testing.assert_close(covariance(base, k).diag(), cov.diag(), rtol=1e-4, atol=1e-4)
        values, vectors = torch.linalg.eigh(cov)
        top = values[-1] * torch.outer(vectors[:, -1], vectors[:, -1])
        torch.testing.assert_close(base.factors[k] @ base.factors[k].T, top, rtol=1e-3, atol=1e-3)


def test_classes_with_fewer_than_two_examples_get_the_moments_of_all_data():
    x, _ = correlated(50)
    labels = torch.zeros(50, dtype=torch.int64)
    labels[0] = 2  # one example of class 2, none of class 1
    base = GaussianBase.fit(x, labels, 3, rank=3)
    for k in (1, 2):
        torch.testing.assert_close(base.means[k], x.mean(dim=0))
        torch.testing.assert_close(covariance(base, k), x.T.cov(), rtol=1e-4, atol=2e-4)
    torch.testing.assert_close(base.frequencies, torch.tensor([0.98, 0.0, 0.02]))


@pytest.mark.parametrize("rank", [0, 2])
def test_gaussian_samples_follow_their_class(rank):
    base = gaussian(rank)
    labels = torch.arange(60_000) % 2
    x = base.sample(60_000, labels, generator=fresh())
    for k in range(2):
        rows = x[labels == k]
        torch.testing.assert_close(rows.mean(dim=0), base.means[k], rtol=0, atol=0.06)
        torch.testing.assert_close(rows.T.cov(), covariance(base, k), rtol=0.05, atol=0.05)


# -- completing: the unknown given the known


def two_classes(rank=2, bounds=None):
    """Two classes in four dimensions, strongly correlated."""
    factors = torch.randn(2, 4, rank, generator=fresh(3))
    means = torch.tensor([[0.0, 1.0, 2.0, 3.0], [-2.0, 0.5, -1.0, 0.0]])
    variances = torch.tensor([[0.3, 0.2, 0.5, 0.1], [0.1, 0.4, 0.2, 0.3]])
    return GaussianBase(means, factors, variances, torch.tensor([0.3, 0.7]), bounds)


def given_known(base, k, x):
    """Moments of the unknown components given the known ones, by Schur's complement."""
    cov = covariance(base, k)
    gain = cov[~KNOWN][:, KNOWN] @ torch.linalg.inv(cov[KNOWN][:, KNOWN])
    mean = base.means[k][~KNOWN] + gain @ (x[KNOWN] - base.means[k][KNOWN])
    return mean, cov[~KNOWN][:, ~KNOWN] - gain @ cov[KNOWN][:, ~KNOWN]


@pytest.mark.parametrize("rank", [0, 1, 2, 6])
@pytest.mark.parametrize("k", [0, 1])
def test_the_unknown_is_drawn_from_the_conditional_gaussian(rank, k):
    base, x, count = two_classes(rank), torch.tensor([0.7, torch.nan, 1.2, torch.nan]), 20_000
    drawn = base.complete(
        x.expand(count, 4), KNOWN.expand(count, 4), torch.full((count,), k), generator=fresh()
    )
    assert torch.equal(drawn[:, KNOWN], x[KNOWN].expand(count, 2))
    mean, cov = given_known(base, k, x)
    error = 4 * float(cov.diagonal().sqrt().max()) / 140
    assert torch.allclose(drawn[:, ~KNOWN].mean(dim=0), mean, atol=error)
    assert torch.allclose(drawn[:, ~KNOWN].T.cov(), cov, atol=0.05 * float(cov.max()))


def test_without_labels_the_class_is_drawn_given_what_is_known():
    base, count, x = two_classes(), 4000, torch.tensor([-0.7, 0.0, 0.3, 0.0])
    seen = [
        MultivariateNormal(base.means[k][KNOWN], covariance(base, k)[KNOWN][:, KNOWN])
        for k in range(2)
    ]
    log_p = torch.stack([normal.log_prob(x[KNOWN]) for normal in seen])
    share = (log_p + base.frequencies.log()).softmax(dim=0)
    assert 0.05 < float(share[0]) < 0.95  # else the test says little
    expected = share @ torch.stack([given_known(base, k, x)[0] for k in range(2)])
    drawn = base.complete(x.expand(count, 4), KNOWN.expand(count, 4), generator=fresh())
    assert torch.allclose(drawn[:, ~KNOWN].mean(dim=0), expected, atol=0.1)


def test_all_or_nothing_may_be_known_and_what_is_drawn_stays_in_bounds():
    base, x = two_classes(bounds=(torch.tensor(-0.5), torch.tensor(0.5))), torch.full((50, 4), 3.0)
    everything = torch.ones(50, 4, dtype=torch.bool)
    assert torch.equal(base.complete(x, everything, generator=fresh()), x)
    free = base.complete(x, ~everything, generator=fresh())
    assert -0.5 <= free.min() < free.max() <= 0.5


def test_a_completed_row_does_not_depend_on_the_others():
    base, x = two_classes(), torch.randn(16, 4, generator=fresh(7))
    known = KNOWN.expand(16, 4)
    other = torch.cat([x[:3], x[3:] + 5])
    drawn, again = (base.complete(rows, known, generator=fresh()) for rows in (x, other))
    assert torch.equal(drawn[:3], again[:3])


def test_other_distributions_complete_with_what_they_draw():
    base, x = UniformBase(-1.0, 1.0, (4,)), torch.full((6, 4), 0.25)
    drawn = base.complete(x, KNOWN.expand(6, 4), generator=fresh())
    assert torch.equal(drawn, torch.where(KNOWN, x, base.sample(6, generator=fresh())))


# -- mixtures


def test_a_mixture_draws_each_part_as_often():
    parts = [UniformBase(float(i), i + 0.5, (1,)) for i in range(3)]
    x = MixtureBase(parts).sample(8000, generator=fresh())
    shares = torch.bincount(x.floor().long().flatten()) / 8000
    torch.testing.assert_close(shares, torch.full((3,), 1 / 3), rtol=0, atol=0.025)


def test_everything_that_draws_need_moves_to_a_device_at_once():
    x = torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    bounds, labels = (torch.tensor(0.0), torch.tensor(1.0)), torch.arange(20) % 2
    gaussian = GaussianBase.fit(x, labels, 2, bounds=bounds)
    outliers = Outliers(bounds, [gaussian], torch.ones(2) / 2, x).to("meta")
    mixture = MixtureBase([UniformBase(*bounds, (3, 8, 8))]).to("meta")
    for module in (outliers, mixture):
        held = [
            v for m in module.modules() for v in vars(m).values() if isinstance(v, torch.Tensor)
        ]
        assert held == []  # all tensors are buffers
        assert {buffer.device.type for buffer in module.buffers()} == {"meta"}
    assert outliers.bases[0].bounds[0].device.type == "meta"


# -- through a file of tensors and plain values


@pytest.mark.parametrize("name", bases())
def test_sampler_settings_come_back_equal(name):
    step, frequencies = LangevinStep(0.1, 0.01, None, 0.8), torch.tensor([0.25, 0.75])
    settings, file = SamplerSettings(bases()[name], 7, step, frequencies, True), io.BytesIO()
    torch.save(settings.state_dict(), file)
    file.seek(0)
    again = SamplerSettings.from_state(torch.load(file, weights_only=True))
    values, others = ({**vars(s)} for s in (settings, again))
    x, y = (v.pop("init").sample(20, generator=fresh(2)) for v in (values, others))
    assert torch.equal(x, y)
    assert torch.equal(values.pop("class_frequencies"), others.pop("class_frequencies"))
    assert values == others


def test_an_unknown_kind_of_base_distribution_is_refused():
    with pytest.raises(InputError, match="'beta'"):
        base_from_state({"kind": "beta"})
