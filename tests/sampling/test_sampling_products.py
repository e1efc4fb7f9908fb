"""`Products`: amounts that are a price times a count, densities that are a quotient."""

import torch

from jem.sampling.products import Products

ORIGIN, SCALE = torch.tensor([5.0, -1.0, 300.0]), torch.tensor([20.0, 4.0, 900.0])
ZERO = (-ORIGIN / SCALE).double()


def table(count=600, noise=0.03, seed=0):
    """Months, a fee and their product, in the network's units."""
    generator = torch.Generator().manual_seed(seed)
    months = torch.randint(1, 73, (count,), generator=generator).double()
    fee = 20 + 100 * torch.rand(count, generator=generator).double()
    total = months * fee * (1 + noise * torch.randn(count, generator=generator)).double()
    return ((torch.stack([months, fee, total], dim=1) - ORIGIN) / SCALE).float()


def with_total(x, change):
    raw = x.double() * SCALE + ORIGIN
    raw[:, 2] = change(raw[:, 2])
    return ((raw - ORIGIN) / SCALE).float()


def test_rows_that_break_a_product_are_beyond_the_limit_and_others_are_not():
    found = Products.fit(table(), ZERO)
    new = table(seed=1)
    assert (found.distance(new) <= found.limit).float().mean() > 0.97
    for change in (lambda t: t / 2, lambda t: 2 * t, lambda t: t.flip(0)):
        assert (found.distance(with_total(new, change)) > found.limit).float().mean() > 0.9


def test_a_zero_where_training_had_none_breaks_a_product():
    found = Products.fit(table(), ZERO)
    assert (found.distance(with_total(table(), torch.zeros_like)) > found.limit).sum() > 590


def test_nothing_is_found_where_no_product_holds_or_numbers_have_two_signs():
    assert Products.fit(with_total(table(), lambda t: t.flip(0)), ZERO) is None
    assert Products.fit(with_total(table(), lambda t: t - t.mean()), ZERO) is None
    assert Products.fit(table(5), ZERO) is None


def test_rows_whose_missing_value_the_median_replaces_are_no_breach():
    x, missing = table(), torch.arange(600) % 10 == 0
    x[missing, 2] = x[:, 2].median()
    x = torch.cat([x, missing[:, None].float()], dim=1)
    found = Products.fit(x, torch.cat([ZERO, torch.zeros(1)]))
    assert found.distance(x)[missing].tolist() == [0.0] * 60
    x[:, :3] = with_total(x[:, :3], lambda t: t / 2)
    assert (found.distance(x) > found.limit)[~missing].float().mean() > 0.9


def test_repaired_is_the_value_that_the_other_columns_ask_for():
    found, x = Products.fit(table(noise=0.001), ZERO), table(noise=0.0, seed=1)
    repaired = found.repaired(with_total(x, lambda t: t / 2)) * SCALE + ORIGIN
    torch.testing.assert_close(
        repaired.double()[:, 2], (x * SCALE + ORIGIN).double()[:, 2], rtol=0.01, atol=0.1
    )
