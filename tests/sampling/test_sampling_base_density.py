import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from sklearn.datasets import load_wine
from torch import nn

from jem import JEM, JEMClassifier
from jem.data.scaling import range_of
from jem.sampling import BaseDensity, LangevinStep
from jem.sampling.moments import centred_by_class, ledoit_wolf


def data(generator, count=200):
    """Rows of three correlated columns in two classes, and a fourth column that is constant."""
    labels = torch.arange(count) % 2
    x = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    x[:, 1] += x[:, 0] + 3 * labels
    x[:, 3] = 2.0
    return x, labels


def base_of(x, labels, noise_std=0.1, temperature=0.5):
    step = LangevinStep(noise_std**2 / (2 * temperature), noise_std)
    return BaseDensity.fit(x, labels, range_of(x), step).eval()


def values(base, x):
    """b(x), read off logits of 0."""
    return base.logits_with_base(x, lambda x: x.new_zeros(len(x), 1))[:, 0]


def test_inside_the_domain_it_is_the_mixture_of_gaussians_at_the_temperature(generator):
    x, labels = data(generator)
    base = base_of(x, labels)
    means, within, _ = centred_by_class(x, labels)
    covariance = ledoit_wolf(within)
    covariance.diagonal().add_((0.01 * x.var(dim=0, correction=0)).clamp_min(0.01))
    log_q = np.log(
        sum(0.5 * multivariate_normal(mean, covariance).pdf(x.numpy()) for mean in means)
    )
    expected = torch.from_numpy(0.5 * (log_q - log_q.mean()))
    torch.testing.assert_close(values(base, x), expected)


def test_outside_it_is_that_of_the_nearest_point_less_a_tail(generator):
    x, labels = data(generator)
    base = base_of(x, labels)
    low, high = range_of(x)
    edge = x[:1].clone()
    edge[0, 0] = high[0]
    width = float(high[0] - low[0])
    for away, cost in ((0.005, 0.125), (0.01, 0.5), (1.0, 99.5)):  # shares of the width
        moved = edge + torch.tensor([away * width, 0.0, 0.0, 0.0])
        torch.testing.assert_close(
            values(base, edge) - values(base, moved), torch.tensor([cost]).double()
        )
    assert values(base, torch.full((1, 4), 1e300, dtype=torch.float64)) < -3e6


def test_its_gradient_is_finite_everywhere_and_its_curvature_one_that_chains_can_step_on(
    generator,
):
    x, labels = data(generator)
    step, noise = 0.05, 0.1
    base = base_of(x, labels, noise, noise**2 / (2 * step))
    curvature = torch.linalg.eigvalsh(base.whitening @ base.whitening.T).max() * base.temperature
    assert step * float(curvature) <= 0.5 + 1e-9
    far = (x * torch.logspace(0, 30, len(x), dtype=torch.float64)[:, None]).requires_grad_()
    values(base, far).sum().backward()
    assert far.grad.isfinite().all()


def test_the_softmax_of_every_row_stays_to_the_bit_that_of_the_network(generator):
    x, labels = data(generator)
    x = x.float()
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    model = JEM(network, domain=range_of(x))
    x = torch.cat([x, x * 30, x * 1e6])
    alone = model.predict_proba(x)
    model.base = base_of(x[:200], labels)
    model.eval()
    assert model.log_density(x).dtype == torch.float64
    assert torch.equal(model.predict_proba(x), alone)
    state = model.state_dict()
    copied = JEM(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))).eval()
    copied.load_state_dict(state)
    assert torch.equal(copied.log_density(x), model.log_density(x))


def test_a_network_that_grows_without_bound_outside_raises_no_density_there(generator):
    x, labels = data(generator)
    model = JEM(nn.Linear(4, 3).double().requires_grad_(False), domain=range_of(x))
    model.network.weight.mul_(1e4)
    model.base = base_of(x, labels)
    model.eval()
    far = x.clone()
    far[:, 0] = torch.linspace(10, 1e6, len(x))
    outside = model.log_density(far)
    assert outside.max() < model.log_density(far.clamp(*range_of(x))).max()


@pytest.fixture(scope="module")
def wines():
    x, y = load_wine(return_X_y=True)
    x[:, 3] = 7.0  # a column that is constant
    return x, JEMClassifier(epochs=20, random_state=0).fit(x, y)


@settings(deadline=None, max_examples=60)
@given(
    row=st.integers(0, 177),
    direction=st.lists(
        st.sampled_from([-3.0, -1.0, -0.1, 0.0, 0.1, 1.0, 3.0]), min_size=13, max_size=13
    ),
)
def test_the_p_value_of_a_row_on_its_way_out_never_rises_and_ends_at_the_least(
    wines, row, direction
):
    x, classifier = wines
    model, detector = classifier.model_, classifier.detector_
    direction = torch.tensor(direction)
    if not direction.any():
        return
    low, high = model.domain
    start = model.preprocess(x[row : row + 1])
    # To each face of the domain, in units of the direction; the first is where the row leaves.
    to_face = torch.where(direction > 0, high - start, low - start) / direction
    leaves = float(to_face[0, direction != 0].min())
    ways = leaves + torch.logspace(-2, 6, 60)
    p = detector.p_value(start + ways[:, None] * direction)
    assert (p.diff() <= 0).all()
    assert p[-1] == 1 / (detector.num_calibration + 1)


@pytest.mark.parametrize("change", [1e-3, -0.5, 1.0, 1e6])
def test_any_change_of_a_constant_column_is_foreign(wines, change):
    x, classifier = wines
    changed = x.copy()
    changed[:, 3] += change
    assert classifier.is_ood(changed).all()
    assert classifier.is_ood(x).mean() < 0.2


def test_rows_that_break_what_nearly_holds_exactly_have_a_misfit(generator):
    x, labels = data(generator, 1000)
    x[:, 2] = x[:, 0] + 0.02 * x[:, 2]  # the noise of the chains is 0.1
    base = base_of(x, labels)
    assert (base.misfit(x) > 0).double().mean() <= 0.01
    swapped = x.clone()
    swapped[:, 2] = x[torch.randperm(len(x), generator=generator), 2]
    assert (base.misfit(swapped) > 10).double().mean() > 0.9
    few = base_of(x[:8], labels[:8])
    assert not few.misfit(swapped).any()  # 8 rows of 4 columns say nothing about others


def test_equal_rows_have_no_misfit():
    x = torch.ones(40, 3)
    base = base_of(x, torch.zeros(40, dtype=torch.long))
    assert base.misfit(x).tolist() == [0.0] * 40
