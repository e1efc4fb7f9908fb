"""OOD scores on the features before the head: distances to the training data there.

Both are fitted once on training data. The fits are tensors: N x F numbers for `knn`, F x F for
`mahalanobis`, with N training inputs of F features.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from jem.errors import InputError
from jem.model import JEM, inference, on_model

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    Labels = Tensor | ArrayLike | None


def as_batch(x: Tensor | ArrayLike, input_shape: tuple[int, ...] | None) -> Tensor:
    """Bring a batch or a single input to a tensor of shape (B, *shape); it stays where it is.

    Args:
        x: Tensor, array or list of floating point numbers, in the network's units.
        input_shape: Shape of one input; None takes a vector as one input, all else as a batch.

    Returns:
        A tensor; one input gives B = 1.

    Raises:
        InputError: If these are no floating point numbers, or the shape does not fit.
    """
    if not isinstance(x, Tensor):
        x = _shared(_array(x))
    x = x.detach()
    if not x.is_floating_point():
        raise InputError(
            f"inputs must be floats in the network's units, but got {x.dtype}: "
            "`model.preprocess` makes them from raw data"
        )
    if x.ndim == 1 if input_shape is None else tuple(x.shape) == input_shape:
        x = x[None]
    if x.ndim < 2 or (input_shape is not None and tuple(x.shape[1:]) != input_shape):
        sizes = "..." if input_shape is None else ", ".join(map(str, input_shape))
        raise InputError(f"inputs must be of shape (B, {sizes}), but got {tuple(x.shape)}")
    return x


def _array(x: ArrayLike) -> np.ndarray[Any, Any]:
    try:
        if isinstance(x, Dataset):  # which numpy would read pair by pair
            raise TypeError("a data set holds pairs (x, y)")
        return np.asarray(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"inputs must be a tensor or an array, but got {type(x).__name__}: pass the inputs "
            "alone, such as data.calibration.x"
        ) from error


def _shared(array: np.ndarray[Any, Any]) -> Tensor:
    """A tensor on the memory of an array, perhaps a file larger than memory: it is only read."""
    if array.dtype.kind not in "biuf":
        raise InputError(f"inputs must be real numbers, but got type {array.dtype}")
    if not array.dtype.isnative or min(array.strides, default=0) < 0:  # which torch cannot share
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


class NeighbourBank(NamedTuple):
    """What `knn` compares with: the training inputs' features, scaled to length one."""

    features: Tensor  # (N, F)

    @classmethod
    def of(cls, features: Tensor, y_train: Labels = None) -> NeighbourBank:
        """Keep features, shape (N, F); the labels are not used."""
        return cls(F.normalize(features, dim=1))


class ClassGaussians(NamedTuple):
    """What `mahalanobis` compares with: a mean for each class that occurs, and one covariance."""

    means: Tensor  # (K, F)
    cholesky: Tensor  # (F, F), lower triangular

    @classmethod
    def of(cls, features: Tensor, y_train: Labels = None) -> ClassGaussians:
        r"""Fit class means and one covariance of the features, shrunk towards a multiple of I.

        .. math:: \Sigma = (1 - \lambda) S + \lambda \, (\mathrm{tr}\, S / F) \, I

        S is the covariance within classes, lambda the Ledoit-Wolf intensity: Sigma can be inverted
        also with fewer inputs than features. Memory is F x F numbers, in double precision.

        Args:
            features: Features of training inputs, shape (N, F), N >= 1.
            y_train: Class indices, shape (N,); None is one class.

        References:
            Ledoit and Wolf (2004), Journal of Multivariate Analysis 88.
        """
        z = features
        z64, (groups, num_groups) = z.cpu().double(), _groups(y_train, len(z))
        sums = z64.new_zeros(num_groups, z64.shape[1]).index_add_(0, groups, z64)
        means = sums / groups.bincount(minlength=num_groups)[:, None]
        covariance = _shrunk_covariance(z64 - means[groups])
        return cls(means.to(z), torch.linalg.cholesky(covariance).to(z))


Fitted = NeighbourBank | ClassGaussians
Reference = tuple[Any, Any] | Fitted
Kind = TypeVar("Kind", NeighbourBank, ClassGaussians)

# The scores that compare with training data, and what each keeps of them.
FITS: dict[str, type[NeighbourBank] | type[ClassGaussians]] = {
    "knn": NeighbourBank,
    "mahalanobis": ClassGaussians,
}


def fitted(
    model: JEM, kind: type[Kind], reference: Reference | None, batch_size: int = 256
) -> Kind:
    """Return what a score compares with, fitting it where training data came instead.

    Args:
        model: The model.
        kind: One of the values of `FITS`.
        reference: (x_train, y_train), or what was fitted on them.
        batch_size: Inputs computed at once.

    Raises:
        InputError: If neither came.
    """
    if isinstance(reference, kind):
        return reference
    fit_of_other = isinstance(reference, NeighbourBank | ClassGaussians)
    if fit_of_other or not isinstance(reference, tuple | list) or len(reference) != 2:
        came = "nothing" if reference is None else type(reference).__name__
        raise InputError(
            f"this score needs training data: pass reference=(x_train, y_train), not {came}"
        )
    x_train, y_train = reference
    return kind.of(_all_features(model, x_train, batch_size), y_train)


def knn(model: JEM, x: Tensor, *, reference: Reference, k: int | None = None) -> Tensor:
    r"""Minus the distance to the k-th nearest training input, on features of length one.

    .. math:: s(x) = -\lVert z - z_{(k)} \rVert_2, \qquad z = h(x) / \lVert h(x) \rVert_2

    Args:
        model: A model whose network gives `features(x)`.
        x: Inputs, shape (B, *shape).
        reference: Training data (x_train, y_train), or a `NeighbourBank` made from them once. The
            labels are not used.
        k: Which neighbour, 1 <= k <= N; None takes the root of N, at most 50.

    Returns:
        Scores, shape (B,), in [-2, 0]; higher = in-distribution.

    References:
        Sun et al. (2022), arXiv:2204.06507.
    """
    bank = fitted(model, NeighbourBank, reference).features
    num = len(bank)
    k = min(50, math.isqrt(num)) if k is None else k
    if not 1 <= k <= num:
        raise InputError(f"`k` must lie between 1 and the {num} reference inputs, but got {k}")
    centre = bank.mean(dim=0)  # a common offset would cost digits
    z = F.normalize(_features(model, x), dim=1)
    nearest, z = z.new_empty(len(z), 0), z - centre.to(z)
    for rows in torch.split(bank, 4096):
        distances = torch.cat([nearest, torch.cdist(z, (rows - centre).to(z))], dim=1)
        nearest = distances.topk(min(k, distances.shape[1]), dim=1, largest=False).values
    return -nearest.amax(dim=1)


def mahalanobis(model: JEM, x: Tensor, *, reference: Reference) -> Tensor:
    r"""Minus the squared Mahalanobis distance of the features to the nearest class mean.

    .. math:: s(x) = -\min_c \, (h(x) - \mu_c)^T \Sigma^{-1} (h(x) - \mu_c)

    Sigma is the covariance within classes, shrunk: see `ClassGaussians.of`.

    Args:
        model: A model whose network gives `features(x)`.
        x: Inputs, shape (B, *shape).
        reference: Training data (x_train, y_train), or the `ClassGaussians` made from them once.

    Returns:
        Scores, shape (B,), no unit, at most 0; higher = in-distribution.

    References:
        Lee et al. (2018), arXiv:1807.03888.
    """
    gaussians = fitted(model, ClassGaussians, reference)
    z = _features(model, x)
    means, cholesky = gaussians.means.to(z), gaussians.cholesky.to(z)
    centred = torch.cat([z, means]) - means[:1]  # a common offset would cost digits
    white = torch.linalg.solve_triangular(cholesky, centred.T, upper=False).T
    distances = [(white[: len(z)] - mean).square().sum(dim=1) for mean in white[len(z) :]]
    return -torch.stack(distances).amin(dim=0)


def _features(model: JEM, x: Tensor) -> Tensor:
    features = getattr(model.network, "features", None)
    if not callable(features):
        raise InputError(
            "this score needs a network with a method `features(x)`, "
            f"which {type(model.network).__name__} lacks: use a score of the logits"
        )
    with inference(model):
        z: Tensor = features(x)
    z = z.flatten(1)
    return z.float() if z.dtype in (torch.float16, torch.bfloat16) else z


def _all_features(model: JEM, x_train: Tensor | ArrayLike, batch_size: int) -> Tensor:
    x = as_batch(x_train, model.input_shape)
    unlabelled = ((rows, torch.zeros(len(rows))) for rows in torch.split(x, batch_size))
    return features_of_batches(model, unlabelled)[0]


def features_of_batches(
    model: JEM, batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Features of training data that come in batches, so that the inputs need not fit in memory.

    Args:
        model: A model whose network gives `features(x)`.
        batches: Yields inputs (B, *shape) and class indices (B,).

    Returns:
        Features (N, F) and class indices (N,).

    Raises:
        InputError: If there is no input, or a feature is not finite.
    """
    pairs = [(_features(model, on_model(model, x)), y) for x, y in batches if len(x)]
    if not pairs:
        raise InputError("the training data (`reference`) hold no input")
    z, labels = (torch.cat(part) for part in zip(*pairs, strict=True))
    if not bool(z.isfinite().all()):
        raise InputError("the features of `reference` are not all finite")
    return z, labels


def _groups(labels: Labels, num: int) -> tuple[Tensor, int]:
    """Number the classes that occur from 0, and say how many they are."""
    if labels is None:
        return torch.zeros(num, dtype=torch.long), 1
    labels = torch.as_tensor(labels).cpu()
    if labels.shape != (num,):
        raise InputError(
            f"`reference` must hold one label for each of its {num} inputs, "
            f"but its labels have shape {tuple(labels.shape)}"
        )
    distinct, groups = torch.unique(labels, return_inverse=True)
    return groups, len(distinct)


def _shrunk_covariance(centred: Tensor) -> Tensor:
    """Ledoit-Wolf estimate of the covariance of rows of mean zero, never singular."""
    num, width = centred.shape
    sample = centred.T @ centred / num
    scale = sample.diagonal().mean().clamp_min(1e-12)
    distance = sample.square().sum() - width * scale.square()
    noise = (centred.square().sum(dim=1).square().mean() - sample.square().sum()) / num
    # Rounding may make either negative; the floors keep the factor invertible in float32.
    intensity = (noise / distance.clamp_min(1e-300)).clamp(1e-6, 1.0)
    shrunk = (1 - intensity) * sample
    shrunk.diagonal().add_(intensity * scale)
    return shrunk
