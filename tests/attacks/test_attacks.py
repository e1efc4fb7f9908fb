"""Attacks against what is known exactly, and the sanity checks of Carlini et al. (2019)."""

import pytest
import torch
from torch import nn

import jem
from jem.attacks import apgd, pgd, square

WHITE_BOX, ALL = (pgd, apgd), (pgd, apgd, square)
NORMS = ("linf", "l2")
LOSSES = ("cross_entropy", "dlr", "targeted_dlr")


def length(change, norm):
    return torch.linalg.vector_norm(
        change.flatten(1), ord=torch.inf if norm == "linf" else 2, dim=1
    )


def accuracy(logits_fn, x, y):
    with torch.no_grad():
        return float((logits_fn(x).argmax(dim=1) == y).double().mean())


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images():
    """A network of images in [-1, 1], images, and the classes that it gives to them."""
    sizes = [(32, 16), (32, 32), (3, 32)]
    first, second, third = (
        torch.randn(size, generator=seeded(size[0] + size[1]), dtype=torch.float64)
        / size[1] ** 0.5
        for size in sizes
    )
    x = torch.rand(60, 1, 4, 4, generator=seeded(1), dtype=torch.float64) * 2 - 1

    def network(z):
        hidden = nn.functional.silu(3 * z.flatten(1) @ first.T)
        return 20 * nn.functional.silu(3 * hidden @ second.T) @ third.T

    offset = network(x).mean(dim=0)  # or nearly all would be of one class
    return lambda z: network(z) - offset, x, (network(x) - offset).argmax(dim=1)


# -- against what is known exactly ----------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
def test_one_step_on_a_linear_classifier_fools_exactly_what_can_be_fooled(norm, generator):
    w, eps = torch.randn(20, generator=generator, dtype=torch.float64), 0.05
    x = torch.randn(500, 20, generator=generator, dtype=torch.float64)
    y = (torch.rand(500, generator=generator) < 0.5).long()

    def logits_fn(z):
        score = z @ w + 0.1
        return torch.stack([-score, score], dim=1) / 2

    attacked = pgd(
        logits_fn, x, y, norm=norm, eps=eps, num_steps=1, step_size=1e9, generator=generator
    )
    distance = (2 * y - 1) * (x @ w + 0.1) / (w.abs().sum() if norm == "linf" else w.norm())
    survive = distance > eps
    assert torch.equal(logits_fn(attacked).argmax(dim=1) == y, survive)
    assert 0.05 < survive.double().mean() < 0.95


@pytest.mark.parametrize("norm", NORMS)
def test_adapted_steps_find_a_best_point_inside_the_ball(norm, generator):
    """A step of fixed length jumps over it; every row has another one."""
    best = 0.2 * torch.rand(30, 3, generator=generator, dtype=torch.float64)

    def logits_fn(z):
        return torch.stack([(z - best).square().sum(dim=1) + 1, torch.zeros(len(z))], dim=1)

    x, y = torch.zeros_like(best), torch.zeros(30, dtype=torch.long)
    how = {"norm": norm, "eps": 1.0, "bounds": (-1, 1)}
    found = apgd(logits_fn, x, y, **how, generator=generator)
    jumped = pgd(logits_fn, x, y, **how, step_size=0.4, generator=generator)
    assert (found - best).norm(dim=1).max() < 2e-2
    assert (jumped - best).norm(dim=1).mean() > 5 * (found - best).norm(dim=1).mean()


@pytest.mark.parametrize("attack", ALL)
def test_the_best_point_of_all_that_were_tried_is_returned(attack, images, generator):
    logits_fn, x, y = images
    tried = []

    def recorded(z):
        tried.append(z.detach().clone())
        return logits_fn(z)

    row = x[:1]
    attacked = attack(recorded, row, y[:1], eps=1e-3, bounds=(-1, 1), generator=generator)
    logits = logits_fn(torch.cat(tried)).detach()
    others = logits.clone()
    others[:, y[0]] = -torch.inf
    margins = others.amax(dim=1) - logits[:, y[0]]
    own = logits_fn(attacked).detach()[0]
    wrong = torch.cat([own[: y[0]], own[y[0] + 1 :]]).max()
    assert margins.max() < 0  # never fooled
    assert len(tried) > 30
    assert float(wrong - own[y[0]]) == pytest.approx(float(margins.max()), abs=1e-12)


# -- what every attack must keep to ---------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", ALL)
def test_attacked_inputs_stay_in_the_ball_and_in_the_domain(attack, norm, images, generator):
    logits_fn, x, y = images
    x[0, 0, 0, 0] = -1.5  # outside: the bounds are widened to it
    attacked = attack(logits_fn, x, y, norm=norm, eps=0.3, bounds=(-1, 1), generator=generator)
    assert length(attacked - x, norm).max() <= 0.3 * (1 + 1e-6)
    assert attacked.flatten()[1:].abs().max() <= 1
    assert attacked[0, 0, 0, 0] >= -1.5
    assert not torch.equal(attacked, x)


@pytest.mark.parametrize("attack", ALL)
def test_misclassified_inputs_are_returned_as_they_are(attack, images, generator):
    logits_fn, x, y = images
    wrong = (y + torch.arange(60) % 2) % 3
    attacked = attack(logits_fn, x, wrong, eps=0.3, bounds=(-1, 1), generator=generator)
    assert torch.equal(attacked[1::2], x[1::2])
    assert not torch.equal(attacked[::2], x[::2])


@pytest.mark.parametrize("attack", ALL)
def test_fooled_inputs_take_no_further_steps(attack, images, generator):
    logits_fn, x, y = images
    sizes = []

    def counted(z):
        sizes.append(len(z))
        return logits_fn(z)

    attacked = attack(counted, x, y, eps=0.03, bounds=(-1, 1), generator=generator)
    left = round(60 * accuracy(logits_fn, attacked, y))
    assert sizes == sorted(sizes, reverse=True)
    assert 0 < left == sizes[-1] < 60


@pytest.mark.parametrize("attack", ALL)
def test_neither_parameters_nor_global_generators_are_touched(
    attack, point_network, generator, global_rng_untouched
):
    x, y = torch.zeros(2, 2), torch.tensor([0, 1])
    before = x.clone()
    with torch.inference_mode():
        attacked = attack(point_network.eval(), x, y, eps=0.1, generator=generator)
    assert torch.equal(x, before)
    assert attacked.shape == x.shape
    assert all(p.grad is None for p in point_network.parameters())


# -- the sanity checks ----------------------------------------------------------------------------


@pytest.mark.parametrize("attack", ALL)
def test_half_of_the_range_leaves_no_accuracy(attack, images, generator):
    """All images can become the same grey one."""
    logits_fn, x, y = images
    attacked = attack(logits_fn, x, y, eps=1.0, bounds=(-1, 1), generator=generator)
    assert accuracy(logits_fn, attacked, y) == 0


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", WHITE_BOX)
def test_accuracy_falls_with_eps_steps_and_restarts(attack, norm, images):
    logits_fn, x, y = images
    eps = 0.03 if norm == "linf" else 0.12

    def left(**how):
        settings = {"norm": norm, "eps": eps, "bounds": (-1, 1)} | how
        return accuracy(logits_fn, attack(logits_fn, x, y, **settings, generator=seeded()), y)

    by_eps = [left(eps=share * eps) for share in (0.2, 0.6, 1.0, 2.0)]
    assert by_eps == sorted(by_eps, reverse=True)
    assert by_eps[0] > by_eps[-1] + 0.3
    assert left(num_steps=1) >= left(num_steps=10) >= left(num_steps=100) - 0.005
    assert abs(left(num_steps=200) - left(num_steps=20)) < 0.02  # of 60 inputs, one
    assert left(restarts=3) <= left(restarts=1)


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_find_what_random_search_finds_and_noise_does_not(norm, images, generator):
    logits_fn, x, y = images
    how = {"norm": norm, "eps": 0.03 if norm == "linf" else 0.12, "bounds": (-1, 1)}
    white, black = (
        accuracy(logits_fn, attack(logits_fn, x, y, **how, generator=generator), y)
        for attack in (pgd, square)
    )
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    noise = (
        0.03 * noise.sign()
        if norm == "linf"
        else 0.12 * noise / length(noise, "l2").view(-1, 1, 1, 1)
    )
    assert white <= black + 0.002
    assert black <= accuracy(logits_fn, x + noise, y) - 0.1


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", WHITE_BOX)
def test_images_in_other_units_are_attacked_alike(attack, norm, images):
    logits_fn, x, y = images
    twin = attack(
        lambda u: logits_fn(2 * u - 1), (x + 1) / 2, y, norm=norm, eps=0.02, bounds=(0, 1),
        generator=seeded(),
    )  # fmt: skip
    own = attack(logits_fn, x, y, norm=norm, eps=0.04, bounds=(-1, 1), generator=seeded())
    torch.testing.assert_close(2 * twin - 1, own, rtol=0, atol=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_huge_logits_hide_nothing(loss, images):
    """In single precision the cross-entropy of such logits has the gradient zero."""
    logits_fn, x, y = images
    left = [
        accuracy(
            logits_fn,
            pgd(
                lambda z, scale=scale: scale * logits_fn(z.double()).float(), x.float(), y,
                eps=0.03, loss=loss, restarts=2, bounds=(-1, 1), generator=seeded(),
            ).double(),
            y,
        )
        for scale in (1.0, 1e6)
    ]  # fmt: skip
    assert left[1] == pytest.approx(left[0], abs=0.04)
    assert left[1] < 0.9


@pytest.mark.parametrize("attack", WHITE_BOX)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("num_classes", [2, 3, 4])
def test_any_number_of_classes_from_two_can_be_attacked(num_classes, loss, attack, generator):
    """The margins of the literature need a third and a fourth logit."""
    weight = torch.randn(num_classes, 6, generator=generator, dtype=torch.float64)
    x = torch.randn(50, 6, generator=generator, dtype=torch.float64) / 3
    y = (x @ weight.T).argmax(dim=1)
    attacked = attack(
        lambda z: 1e3 * z @ weight.T, x, y, norm="l2", eps=0.15, loss=loss, restarts=num_classes,
        generator=generator,
    )  # fmt: skip
    gaps = weight[y][:, None] - weight
    distance = (gaps * x[:, None]).sum(dim=2) / gaps.norm(dim=2)  # NaN for the class itself
    survive = distance.nan_to_num(torch.inf).amin(dim=1) > 0.15
    assert torch.equal((attacked @ weight.T).argmax(dim=1) == y, survive)
    assert 0 < survive.sum() < 50


def test_classes_are_aimed_at_in_the_order_of_their_logits():
    """The likelier of two wrong classes cannot be reached: the second restart tries the other."""

    def logits_fn(z):
        near = -2 - 0 * z[:, 0]
        return torch.stack([torch.zeros(len(z)), near, z[:, 0] - 3], dim=1)

    x, y = torch.zeros(4, 1), torch.zeros(4, dtype=torch.long)
    how = {"eps": 4.0, "num_steps": 5, "loss": "targeted_dlr"}
    left = [
        accuracy(logits_fn, pgd(logits_fn, x, y, **how, restarts=n, generator=seeded(3)), y)
        for n in (1, 2)
    ]
    assert left[0] > left[1] == 0


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logits_fn", "how", "message"),
    [
        (lambda z: z[:, :1], {}, r"`logits_fn` must return logits \(B, K\), K >= 2, got \(3, 1\)"),
        (lambda z: z / 0, {}, "`logits` must be finite"),
        (lambda z: z.detach(), {}, "must have gradients, got none: `jem.attacks.square`"),
        (lambda z: z, {"eps": 0.0}, "`eps` must be above 0"),
        (lambda z: z, {"norm": "l1"}, "`norm` must be one of"),
        (lambda z: z, {"loss": "margin"}, "`loss` must be one of"),
        (lambda z: z, {"restarts": 0}, "`restarts` must be a whole number"),
    ],
)
def test_what_cannot_be_attacked_is_refused(logits_fn, how, message, generator):
    x, y = torch.eye(3), torch.arange(3)
    with pytest.raises(jem.InputError, match=message):
        pgd(logits_fn, x, y, **{"eps": 0.1} | how, generator=generator)


def test_labels_must_be_classes_of_the_logits(generator):
    with pytest.raises(jem.InputError, match=r"`y` must lie in 0\.\.2"):
        square(nn.Identity(), torch.eye(3), torch.arange(3) + 1, eps=0.1, generator=generator)
