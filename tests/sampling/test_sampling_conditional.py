import pytest
import torch

from jem.sampling.base_distributions import GaussianBase, UniformBase
from jem.sampling.conditional import complete_from

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

KNOWN = torch.tensor([True, False, True, False])


def fresh(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussians(rank=2, bounds=None):
    """Two classes in four dimensions, strongly correlated."""
    factors = torch.randn(2, 4, rank, generator=fresh(3))
    means = torch.tensor([[0.0, 1.0, 2.0, 3.0], [-2.0, 0.5, -1.0, 0.0]])
    variances = torch.tensor([[0.3, 0.2, 0.5, 0.1], [0.1, 0.4, 0.2, 0.3]])
    return GaussianBase(means, factors, variances, torch.tensor([0.3, 0.7]), bounds)


def by_hand(start, k, x):
    """Moments of the unknown components given the known ones, by Schur's complement."""
    cov = start.factors[k] @ start.factors[k].T + start.variances[k].diag()
    gain = cov[~KNOWN][:, KNOWN] @ torch.linalg.inv(cov[KNOWN][:, KNOWN])
    mean = start.means[k][~KNOWN] + gain @ (x[KNOWN] - start.means[k][KNOWN])
    return mean, cov[~KNOWN][:, ~KNOWN] - gain @ cov[KNOWN][:, ~KNOWN]


@pytest.mark.parametrize("rank", [0, 1, 2, 6])
@pytest.mark.parametrize("k", [0, 1])
def test_the_unknown_is_drawn_from_the_conditional_gaussian(rank, k):
    start, x = gaussians(rank), torch.tensor([0.7, torch.nan, 1.2, torch.nan])
    count = 20_000
    labels = torch.full((count,), k)
    drawn = complete_from(
        start, x.expand(count, 4), KNOWN.expand(count, 4), labels, generator=fresh()
    )
    assert torch.equal(drawn[:, KNOWN], x[KNOWN].expand(count, 2))
    mean, cov = by_hand(start, k, x)
    scale = cov.diagonal().sqrt()
    assert torch.allclose(drawn[:, ~KNOWN].mean(dim=0), mean, atol=4 * float(scale.max()) / 140)
    assert torch.allclose(drawn[:, ~KNOWN].T.cov(), cov, atol=0.05 * float(cov.max()))


def test_without_labels_the_class_is_drawn_given_what_is_known():
    start, count = gaussians(), 4000
    x = torch.tensor([-0.7, 0.0, 0.3, 0.0])
    log_p = torch.stack(
        [
            torch.distributions.MultivariateNormal(
                start.means[k][KNOWN],
                (start.factors[k] @ start.factors[k].T + start.variances[k].diag())[KNOWN][
                    :, KNOWN
                ],
            ).log_prob(x[KNOWN])
            for k in range(2)
        ]
    )
    share = (log_p + start.frequencies.log()).softmax(dim=0)
    means = torch.stack([by_hand(start, k, x)[0] for k in range(2)])
    drawn = complete_from(start, x.expand(count, 4), KNOWN.expand(count, 4), generator=fresh())
    expected = share @ means
    assert 0.05 < float(share[0]) < 0.95  # else the test says little
    assert torch.allclose(drawn[:, ~KNOWN].mean(dim=0), expected, atol=0.1)


def test_all_or_nothing_known_and_the_bounds():
    bounds = torch.tensor(-0.5), torch.tensor(0.5)
    start, x = gaussians(bounds=bounds), torch.full((50, 4), 3.0)
    everything = torch.ones(50, 4, dtype=torch.bool)
    assert torch.equal(complete_from(start, x, everything, generator=fresh()), x)
    free = complete_from(start, x, ~everything, generator=fresh())
    assert -0.5 <= free.min() < free.max() <= 0.5
    labels = torch.zeros(9000, dtype=torch.long)
    free = complete_from(
        gaussians(), torch.zeros(9000, 4), torch.zeros(9000, 4) > 0, labels, generator=fresh()
    )
    assert torch.allclose(free.mean(dim=0), gaussians().means[0], atol=0.1)


def test_a_row_does_not_depend_on_the_others():
    start, x = gaussians(), torch.randn(16, 4, generator=fresh(7))
    known = KNOWN.expand(16, 4)
    drawn = complete_from(start, x, known, generator=fresh())
    other = torch.cat([x[:3], x[3:] + 5])
    again = complete_from(start, other, known, generator=fresh())
    assert torch.equal(drawn[:3], again[:3])


def test_other_starts_draw_the_unknown_as_they_begin_chains():
    start, x = UniformBase(-1.0, 1.0, (4,)), torch.full((6, 4), 0.25)
    drawn = complete_from(start, x, KNOWN.expand(6, 4), generator=fresh())
    begun = start.sample(6, generator=fresh())
    assert torch.equal(drawn, torch.where(KNOWN, x, begun))
