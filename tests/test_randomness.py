import itertools
import threading

import pytest
import torch

from jem.errors import InputError
from jem.randomness import derive_seed, global_generators_kept, named_generator

PINNED = 1515829482024196131

PATHS = [(), (0,), (0, 0), (1,), ("a",), ("a", 0), (0, "a"), ("a", "b"), ("b", "a"), ("ab",)]


def test_every_path_of_names_has_a_seed_of_its_own():
    seeds = {derive_seed(seed, *path) for seed, path in itertools.product(range(4), PATHS)}
    assert len(seeds) == 4 * len(PATHS)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_same_path_gives_the_same_stream_in_any_process():
    assert derive_seed(3, "chains", 2) == PINNED  # found once, in another process
    first, second = (torch.rand(5, generator=named_generator(3, "a", 1)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, torch.rand(5, generator=named_generator(3, "a", 2)))


@pytest.mark.usefixtures("global_rng_untouched")
def test_large_seeds_are_taken():
    seed = named_generator(2**64 + 5, "a").initial_seed()
    assert seed != named_generator(5, "a").initial_seed(), "a large seed must not wrap around"


@pytest.mark.parametrize("seed", [-1, None, 0.5, "1"])
def test_what_is_no_seed_is_refused(seed):
    with pytest.raises(InputError, match=f"`seed` must .*got {seed!r}$"):
        derive_seed(seed, "chains")


@pytest.mark.usefixtures("global_rng_untouched")
def test_global_generators_are_kept_by_one_thread_at_a_time():
    drawn = []

    def other():
        with global_generators_kept():
            torch.manual_seed(1)
            drawn.append(torch.rand(1))

    thread = threading.Thread(target=other)
    with global_generators_kept():
        torch.manual_seed(0)
        thread.start()
        thread.join(0.2)
        with global_generators_kept():  # a thread does not wait for itself
            torch.rand(3)
        inside, alone = torch.rand(1), list(drawn)
    thread.join(10)
    assert alone == []
    assert inside == torch.rand(1, generator=torch.Generator().manual_seed(0))
    assert len(drawn) == 1
