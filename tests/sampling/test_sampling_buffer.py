"""The replay buffer: what is drawn, and what comes back."""

import io
import math

import pytest
import torch

from jem.errors import InputError
from jem.sampling import LangevinStep, PersistentChains, ReplayBuffer, UniformBase, run_chains

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

OLD, NEW = UniformBase(-1.0, 0.0, (2,)), UniformBase(5.0, 6.0, (2,))  # told apart by their sign


def fresh(seed=0):
    return torch.Generator().manual_seed(seed)


def buffer_of(capacity):
    return ReplayBuffer.from_init(OLD, capacity, generator=fresh())


def draw_from(buffer, count, reinit_prob=0.0, generator=None, **words):
    generator = generator or fresh()
    return buffer.draw(count, init=NEW, reinit_prob=reinit_prob, generator=generator, **words)


# -- drawing


def test_a_draw_without_replacement_has_no_slot_twice_and_takes_each_as_often():
    buffer = buffer_of(20)
    counts, source = torch.zeros(20), fresh()
    for _ in range(2000):
        counts[draw_from(buffer, 6, generator=source).indices] += 1
    assert (counts - 600).abs().max() < 4.5 * math.sqrt(2000 * 0.3 * 0.7)
    assert draw_from(buffer, 20).indices.sort().values.tolist() == list(range(20))


def test_only_a_draw_with_replacement_may_exceed_the_buffer():
    draw = draw_from(buffer_of(4), 50, replacement=True)
    assert draw.x.shape == (50, 2)
    assert set(draw.indices.tolist()) == {0, 1, 2, 3}
    with pytest.raises(InputError, match="`count`"):
        draw_from(buffer_of(4), 5)


def test_a_draw_has_the_positions_of_its_slots_and_changes_nothing_until_it_is_committed():
    buffer = buffer_of(8)
    before = buffer.chains.clone()
    draw = draw_from(buffer, 8)
    assert torch.equal(draw.x, before[draw.indices])
    draw.x.add_(1.0)
    draw_from(buffer, 8, reinit_prob=1.0)
    assert torch.equal(buffer.chains, before)
    assert buffer.ages.tolist() == [0] * 8


def test_chains_restart_at_the_rate_asked_for():
    buffer, source, restarts = buffer_of(100), fresh(), 0
    for _ in range(200):
        draw = draw_from(buffer, 50, 0.05, source)
        fresh_rows = (draw.x > 0).all(dim=1)
        assert torch.equal(fresh_rows, (draw.x > 0).any(dim=1))  # whole chains, not components
        restarts += int(fresh_rows.sum())
    assert abs(restarts - 500) < 4 * math.sqrt(10_000 * 0.05 * 0.95)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_chain_that_is_not_finite_is_evicted(bad):
    buffer = buffer_of(6)
    buffer.chains[3, 1] = bad
    buffer.ages[:] = 9
    draw = draw_from(buffer, 6)
    dead = draw.indices == 3
    assert draw.x.isfinite().all()
    assert torch.equal((draw.x > 0).all(dim=1), dead)
    assert torch.equal(draw.ages, torch.where(dead, 0, 9))


# -- committing


def test_commit_puts_chains_back_into_their_own_slots():
    buffer = buffer_of(10)
    before = buffer.chains.clone()
    draw = draw_from(buffer, 4)
    moved = (draw.x + 1.0).requires_grad_()
    buffer.commit(draw, moved, steps=1)
    others = torch.ones(10, dtype=torch.bool)
    others[draw.indices] = False
    assert torch.equal(buffer.chains[draw.indices], moved)
    assert torch.equal(buffer.chains[others], before[others])
    assert not buffer.chains.requires_grad


def test_of_copies_of_a_chain_the_last_stays_in_position_and_age():
    """Large enough for torch to write in parallel, where nothing else says which write wins."""
    buffer = ReplayBuffer(torch.zeros(4, 20_000))
    wide = UniformBase(5.0, 6.0, (20_000,))
    draw = buffer.draw(64, init=wide, reinit_prob=0.0, generator=fresh(), replacement=True)
    draw = draw._replace(ages=torch.arange(64))
    buffer.commit(draw, torch.arange(64.0)[:, None].expand(64, 20_000), steps=1)
    last = [max(i for i, slot in enumerate(draw.indices.tolist()) if slot == k) for k in range(4)]
    assert torch.equal(buffer.chains, torch.tensor(last).float()[:, None].expand(4, 20_000))
    assert buffer.ages.tolist() == [age + 1 for age in last]


def test_ages_count_the_steps_since_the_chain_began():
    buffer = buffer_of(3)
    for reinit_prob, steps, age in ((0.0, 5, 5), (0.0, 5, 10), (1.0, 2, 2)):
        draw = draw_from(buffer, 3, reinit_prob)
        buffer.commit(draw, draw.x, steps=steps)
        assert buffer.ages.tolist() == [age] * 3


def test_state_goes_through_a_file_and_is_a_copy():
    buffer, file = buffer_of(6), io.BytesIO()
    buffer.ages += torch.arange(6)
    torch.save(buffer.state_dict(), file)
    file.seek(0)
    again, state = ReplayBuffer(torch.zeros(1, 2)), torch.load(file, weights_only=True)
    again.load_state_dict(state)
    assert len(again) == 6
    assert torch.equal(again.chains, buffer.chains)
    assert torch.equal(again.ages, buffer.ages)
    again.chains.zero_()
    assert torch.equal(state["chains"], buffer.chains)


def test_an_empty_buffer_is_refused():
    with pytest.raises(InputError, match="`chains`"):
        ReplayBuffer(torch.zeros(0, 2))


# -- persistent chains


def test_persistent_chains_draw_and_step_with_their_own_generator_and_settings(quadratic):
    step, bounds = LangevinStep(0.1, 0.2), (-0.9, 0.9)
    negatives = PersistentChains(buffer_of(10), NEW, 4, 0.0, False, step, bounds, fresh(3))
    draw, source = negatives.draw(), fresh(3)
    assert draw.x.shape == (4, 2)
    source.set_state(negatives.generator.get_state())
    moved = negatives.make_steps(draw.x, quadratic, 2)
    expected = run_chains(draw.x, quadratic, [step] * 2, generator=source, bounds=bounds)
    assert torch.equal(moved, expected)
    assert moved.abs().max() <= 0.9
    one = run_chains(moved, quadratic, [step], generator=source, bounds=bounds)
    assert torch.equal(negatives.make_step(moved, moved), one)  # the gradient of |x|^2 / 2 is x
