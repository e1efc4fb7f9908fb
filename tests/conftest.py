"""Fixtures that any test may ask for: a seeded generator, analytic energies, tiny networks."""

import errno
import os
from pathlib import Path

import pytest
import torch

from jem import JEM
from jem.evaluation.fidelity import reference_classifier
from jem.networks import mlp, small_cnn

# Arrays are small and tests run side by side: one thread, here and in every child process.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def global_rng_untouched():
    """Fail a test that moves torch's global generator: kernels draw from their own."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before), "torch's global generator was used"


@pytest.fixture
def quadratic():
    """E(x) = |x|^2 / 2: the standard normal."""
    return lambda x: x.flatten(1).square().sum(dim=1) / 2


@pytest.fixture
def skewed():
    """E(x) = sum exp(x_i) - x_i: x is the logarithm of a unit exponential, mean -0.577."""
    return lambda x: (x.exp() - x).flatten(1).sum(dim=1)


def seeded(build):
    """Build with a fixed seed of the global generator, which is then put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


@pytest.fixture
def point_network():
    """A network (B, 2) -> (B, 3)."""
    return seeded(lambda: mlp((2,), 3, width=16, depth=2))


@pytest.fixture
def image_network():
    """A network (B, 1, 8, 8) -> (B, 3)."""
    return seeded(lambda: small_cnn((1, 8, 8), 3, width=4))


@pytest.fixture
def point_model(point_network):
    return JEM(point_network, input_shape=(2,), classes=("a", "b", "c"), domain=(-1.0, 1.0))


@pytest.fixture(scope="module")
def quick_reference_classifier():
    """Reference classifiers that learn for a moment, where what they find does not matter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_classifier, "FEWEST_UPDATES", 20)
        patch.setattr(reference_classifier, "EPOCHS", 1)
        yield


class FullDisk:
    """A file that takes a few bytes and then has no room."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, content):
        self.file.write(content[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def fill_disk():
    """Given a patch, lets no file be written, or flushed (`fsync`), or renamed (`replace`)."""

    def fill(patch, at):
        def fail(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        if at == "write":
            opened = Path.open
            patch.setattr(Path, "open", lambda *how, **more: FullDisk(opened(*how, **more)))
        else:
            patch.setattr(os if at == "fsync" else Path, at, fail)

    return fill
