import io
import math
import pickle

import pytest
import torch
from scipy.integrate import quad
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

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


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


def starts():
    low, high = torch.tensor([-1.0, 0.0, 2.0]), torch.tensor([1.0, 0.5, 5.0])
    uniform, contrast = UniformBase(low, high, (3,)), ContrastBase(low, high, (3,), 0.1)
    bounded = gaussian(rank=1, bounds=(torch.full((3,), -2.0), torch.full((3,), 2.0)))
    mixture = MixtureBase([uniform, contrast, gaussian()], [1.0, 2.0, 1.0])
    nested = MixtureBase([mixture, bounded], [0.5, 0.5])
    return {
        "uniform": uniform, "contrast": contrast, "gaussian": gaussian(), "bounded": bounded,
        "diagonal": gaussian(rank=0), "mixture": mixture, "nested": nested,
    }  # fmt: skip


def grid(low, high, points, dim):
    """Midpoints of a grid over a box, shape (points^dim, dim), and the volume of a cell."""
    width = (high - low) / points
    line = low + width * (torch.arange(points, dtype=torch.float64) + 0.5)
    return torch.cartesian_prod(*[line] * dim).view(-1, dim), width**dim


# -- what holds for every start


@pytest.mark.parametrize("name", starts())
def test_state_goes_through_a_file_of_tensors_and_plain_values(name):
    start, file = starts()[name], io.BytesIO()
    torch.save(start.state_dict(), file)
    file.seek(0)
    again = base_from_state(torch.load(file, weights_only=True))
    x = start.sample(20, generator=fresh())
    assert type(again) is type(start)
    assert torch.equal(again.sample(20, generator=fresh()), x)
    assert torch.equal(again.log_prob(x), start.log_prob(x))


@pytest.mark.parametrize("name", starts())
def test_samples_have_their_shape_and_a_density(name):
    start = starts()[name]
    x = start.sample(50, generator=fresh())
    assert x.shape == (50, 3)
    assert start.log_prob(x).shape == (50,)
    assert start.log_prob(x).isfinite().all()
    assert not torch.equal(x, start.sample(50, generator=fresh(1)))


def test_settings_of_a_model_go_through_a_file_too():
    settings = SamplerSettings(
        starts()["nested"], 7, LangevinStep(0.1, 0.01, None, 0.5, 0.8),
        torch.tensor([0.25, 0.75]), class_conditional_chains=True, trained_on_outliers=True,
    )  # fmt: skip
    file = io.BytesIO()
    torch.save(settings.state_dict(), file)
    file.seek(0)
    again = SamplerSettings.from_state(torch.load(file, weights_only=True))
    assert again.step == settings.step
    assert (again.num_steps, again.class_conditional_chains) == (7, True)
    assert (again.trained_on_outliers, again.trained_on_noise) == (True, None)
    assert torch.equal(again.class_frequencies, settings.class_frequencies)
    x = settings.init.sample(4, generator=fresh())
    assert torch.equal(again.init.sample(4, generator=fresh()), x)


def test_an_unknown_kind_is_refused():
    with pytest.raises(InputError, match="unknown kind of start 'beta'"):
        base_from_state({"kind": "beta"})


# -- boxes


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("kind", [UniformBase, ContrastBase])
def test_density_in_a_box_integrates_to_one(kind, dim):
    start = kind(-0.5, 2.0, (dim,))
    x, cell = grid(-1.0, 2.5, 1400, dim)
    assert (start.log_prob(x).exp().sum() * cell) == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize("dim", [1, 2, 5, 48])
def test_density_of_random_contrast_is_the_integral_over_the_contrast(dim):
    low, high, least = -1.0, 3.0, 0.1
    start = ContrastBase(low, high, (dim,), least)
    middle, half = (low + high) / 2, (high - low) / 2
    for largest in (0.02, 0.1, 0.3, 0.7, 0.999):
        x = torch.full((1, dim), middle, dtype=torch.float64)
        x[0, -1] += largest * half  # the density depends on the largest offset alone

        def integrand(contrast):
            return (2 * contrast * half) ** -dim / (1 - least)

        expected, _ = quad(integrand, max(largest, least), 1.0, epsrel=1e-12)
        assert start.log_prob(x).item() == pytest.approx(math.log(expected), rel=1e-7, abs=1e-6)


def test_density_of_random_contrast_stays_finite_in_many_dimensions():
    start = ContrastBase(-1.0, 1.0, (3, 32, 32))
    x = start.sample(8, generator=fresh())
    assert start.log_prob(x).isfinite().all()
    assert start.log_prob(0 * x).isfinite().all()


def test_there_is_no_density_outside_the_box():
    outside = torch.tensor([[1.5, 0.0], [0.0, -1.0001], [math.nan, 0.0]])
    for kind in (UniformBase, ContrastBase):
        assert (kind(-1.0, 1.0, (2,)).log_prob(outside) == -math.inf).all()


def test_points_on_the_faces_of_the_box_are_inside():
    low = torch.randn(100, generator=fresh()) * 10
    high = low + torch.rand(100, generator=fresh(1)) * 3 + 0.01
    start = UniformBase(low, high, (100,))
    faces = torch.stack([low, high])
    torch.testing.assert_close(
        start.log_prob(faces), -(high - low).log().sum().expand(2), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("kind", [UniformBase, ContrastBase])
def test_samples_fill_the_box_with_the_moments_of_the_formula(kind):
    low, high = torch.tensor([-1.0, 2.0]), torch.tensor([1.0, 8.0])
    x = kind(low, high, (2,)).sample(40_000, generator=fresh())
    assert (x >= low).all()
    assert (x <= high).all()
    half, least = (high - low) / 2, 0.05
    square = 1.0 if kind is UniformBase else (1 - least**3) / (3 * (1 - least))  # E[s^2]
    torch.testing.assert_close(x.mean(dim=0) / half, (low + high) / 2 / half, rtol=0, atol=0.02)
    torch.testing.assert_close(
        x.var(dim=0) / half**2, torch.full((2,), square / 3), rtol=0.04, atol=0
    )


@pytest.mark.parametrize("kind", [UniformBase, ContrastBase])
def test_samples_follow_log_prob(kind):
    start = kind(-1.0, 1.0, (3,))
    x = start.sample(40_000, generator=fresh()).double()
    inner = (
        x.abs().amax(dim=1) <= 0.5
    ).double()  # E_p[q / p] = 1 for q uniform in a half-size box
    ratio = inner * (-start.log_prob(x)).exp()
    assert ratio.mean() == pytest.approx(1.0, abs=5 * float(ratio.std()) / 200)


def test_contrast_is_shared_by_the_components_of_one_input():
    x = ContrastBase(-1.0, 1.0, (64,)).sample(2000, generator=fresh())
    spread = x.std(dim=1) * math.sqrt(3)  # nearly the contrast itself
    assert spread.min() < 0.1
    assert spread.max() > 0.9
    assert spread.mean() == pytest.approx(0.525, abs=0.03)


def test_boxes_check_their_arguments():
    with pytest.raises(InputError, match="`low` below `high`"):
        UniformBase(1.0, 1.0, (2,))
    for wrong in (0.0, 1.0, -0.5):
        with pytest.raises(InputError, match="`min_contrast` must be in"):
            ContrastBase(-1.0, 1.0, (2,), wrong)


# -- class Gaussians


def empirical(x, labels, k):
    rows = x[labels == k]
    return rows.mean(dim=0), torch.cov(rows.T)


def covariance(start, k):
    return start.factors[k] @ start.factors[k].T + torch.diag(start.variances[k])


@pytest.mark.parametrize("rank", [3, 5])
def test_full_rank_moments_are_the_empirical_ones(rank):
    x, labels = correlated(600)
    start = GaussianBase.fit(x, labels, 2, rank=rank)
    for k in range(2):
        mean, cov = empirical(x, labels, k)
        torch.testing.assert_close(start.means[k], mean)
        # the diagonal keeps a floor of 1e-4
        torch.testing.assert_close(covariance(start, k), cov, rtol=1e-4, atol=2e-4)
    torch.testing.assert_close(start.frequencies, torch.tensor([2 / 3, 1 / 3]))


def test_low_rank_keeps_every_variance_and_the_largest_direction():
    x, labels = correlated(600)
    start = gaussian(rank=1)
    for k in range(2):
        _, cov = empirical(x, labels, k)
        torch.testing.assert_close(covariance(start, k).diag(), cov.diag(), rtol=1e-4, atol=1e-4)
        values, vectors = torch.linalg.eigh(cov)
        top = values[-1] * torch.outer(vectors[:, -1], vectors[:, -1])
        torch.testing.assert_close(
            start.factors[k] @ start.factors[k].T, top, rtol=1e-3, atol=1e-3
        )


def test_fewer_examples_than_dimensions_give_the_same_moments():
    x = torch.randn(5, 2, 4, generator=fresh())  # 5 rows of 8 components
    start = GaussianBase.fit(x, torch.zeros(5, dtype=torch.int64), 1, rank=8)
    assert start.means.shape == (1, 2, 4)
    torch.testing.assert_close(
        covariance(start, 0), torch.cov(x.flatten(1).T), rtol=1e-4, atol=2e-4
    )


def test_classes_with_fewer_than_two_examples_get_the_moments_of_all_data():
    x, _ = correlated(50)
    labels = torch.zeros(50, dtype=torch.int64)
    labels[0] = 2  # one example of class 2, none of class 1
    start = GaussianBase.fit(x, labels, 3, rank=3)
    for k in (1, 2):
        torch.testing.assert_close(start.means[k], x.mean(dim=0))
        torch.testing.assert_close(covariance(start, k), torch.cov(x.T), rtol=1e-4, atol=2e-4)
    torch.testing.assert_close(start.frequencies, torch.tensor([0.98, 0.0, 0.02]))


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_log_prob_is_that_of_the_gaussian_with_the_whole_covariance(rank):
    x, labels = correlated(30, seed=4)
    start, x = gaussian(rank), x.double()
    given = torch.stack(
        [
            MultivariateNormal(start.means[k].double(), covariance(start, k).double()).log_prob(x)
            for k in range(2)
        ]
    )
    torch.testing.assert_close(
        start.log_prob(x, labels), given.gather(0, labels[None])[0], rtol=1e-5, atol=1e-5
    )
    mixture = (given.exp() * torch.tensor([[2 / 3], [1 / 3]])).sum(dim=0).log()
    torch.testing.assert_close(start.log_prob(x), mixture, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 2])
def test_gaussian_samples_follow_their_class(rank):
    start = gaussian(rank)
    labels = torch.arange(60_000) % 2
    x = start.sample(60_000, labels, generator=fresh())
    for k in range(2):
        mean, cov = empirical(x, labels, k)
        torch.testing.assert_close(mean, start.means[k], rtol=0, atol=0.06)
        torch.testing.assert_close(cov, covariance(start, k), rtol=0.05, atol=0.05)


def test_gaussian_samples_without_labels_come_at_the_class_frequencies():
    start = GaussianBase(
        torch.tensor([[0.0], [100.0]]), torch.zeros(2, 1, 0), torch.ones(2, 1),
        torch.tensor([0.8, 0.2]),
    )  # fmt: skip
    x = start.sample(5000, generator=fresh())
    assert (x > 50).double().mean() == pytest.approx(0.2, abs=4 * math.sqrt(0.16 / 5000))


def test_gaussian_samples_are_clipped_to_the_bounds():
    low, high = torch.tensor([-0.5, -1.0, -2.0]), torch.tensor([0.5, 1.0, 2.0])
    x = gaussian(bounds=(low, high)).sample(500, generator=fresh())
    assert (x >= low).all()
    assert (x <= high).all()
    assert (x == low).any()


# -- mixtures


def test_density_of_a_mixture_is_the_weighted_sum_and_integrates_to_one():
    narrow, wide = UniformBase(0.0, 0.5, (2,)), ContrastBase(-1.0, 1.0, (2,))
    mixture = MixtureBase([narrow, wide], [3.0, 1.0])
    x, cell = grid(-1.2, 1.2, 1200, 2)
    density = mixture.log_prob(x).exp()
    torch.testing.assert_close(
        density, 0.75 * narrow.log_prob(x).exp() + 0.25 * wide.log_prob(x).exp()
    )
    assert density.sum() * cell == pytest.approx(1.0, abs=3e-3)


def test_a_mixture_draws_its_parts_at_their_weights():
    parts = [UniformBase(float(i), i + 0.5, (1,)) for i in range(3)]
    x = MixtureBase(parts, [1.0, 2.0, 1.0]).sample(8000, generator=fresh())
    shares = torch.bincount(x.floor().long().flatten()) / 8000
    torch.testing.assert_close(shares, torch.tensor([0.25, 0.5, 0.25]), rtol=0, atol=0.025)


def test_a_mixture_hands_labels_to_its_parts():
    start = MixtureBase([gaussian(), gaussian()], [1.0, 1.0])
    labels = torch.arange(4000) % 2
    x = start.sample(4000, labels, generator=fresh())
    assert x[labels == 1].mean() > x[labels == 0].mean() + 2
    torch.testing.assert_close(start.log_prob(x, labels), gaussian().log_prob(x, labels))


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -1.0], []])
def test_a_mixture_checks_its_weights(weights):
    parts = [UniformBase(0.0, 1.0, (1,))] * (2 if weights else 0)
    with pytest.raises(InputError, match="one weight > 0 for each"):
        MixtureBase(parts, weights)


def test_a_pickle_holds_no_copies_on_another_device():
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    start = GaussianBase.fit(x, torch.arange(20) % 2, 2)
    start._moments_on(torch.device("meta"))
    assert start._copies
    again = pickle.loads(pickle.dumps(start))
    assert again._copies == {}
    assert torch.equal(again.means, start.means)
