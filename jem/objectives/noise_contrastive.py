"""Noise contrastive estimation: tell the data from noise whose density is known."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from jem.checks import refuse
from jem.model import JEM, evaluation_mode
from jem.objectives.base import Batch, Energies, Mean, Terms


def noise_contrastive_loss(
    data: Tensor, noise: Tensor, noise_per_data: float = 1.0
) -> tuple[Tensor, Tensor]:
    r"""Loss of the classifier that tells data from noise by a log-ratio of densities.

    .. math:: J = -\mathbb{E}_{p}\,\log \sigma(G) - \nu\,\mathbb{E}_{q}\,\log \sigma(-G),
              \qquad G = \log p_\theta(x) - \log q(x) - \log \nu

    It is least where the density of the model is that of the data, its constant included. With
    the cross-entropy of the classes it is the cross-entropy over the classes and noise as one more
    class, whose logit is log(nu q(x)).

    Args:
        data: log p(x) - log q(x) of data, shape (B,), nats.
        noise: The same of noise drawn from q, shape (M,).
        noise_per_data: nu > 0.

    Returns:
        The two terms without the means, -log sigma(G) (B,) and -nu log sigma(-G) (M,).

    References:
        Gutmann and Hyvarinen (2012), JMLR 13, equations 8 and 9. Song and Kingma (2021),
        arXiv:2101.03288, section 4.
    """
    shift = torch.as_tensor(noise_per_data, dtype=data.dtype).log()
    return F.softplus(shift - data), noise_per_data * F.softplus(noise - shift)


@dataclass(frozen=True)
class NoiseContrastive:
    """The loss against noise from the base density; the log calls it `noise_contrastive`.

    The model's log-density is the base plus what the network adds, so the network learns the
    ratio alone, and the log-density less `BaseDensity.log_z` is normalised. The log also shows
    `noise_accuracy`, the share of data and noise that the ratio tells apart: 0.5 where they are
    alike. Above 0.99 it has become easy to tell them apart, the loss is flat, and the log-density
    says nothing of the shape of the data.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(
        self,
        model: JEM,
        batch: Batch,
        energies: Energies,
        *,
        weight: float,
        generator: torch.Generator,
        mean: Mean,
    ) -> Terms:
        """The loss and its terms, unweighted.

        Raises:
            InputError: If the model has no base density, as those of images.
        """
        base = model.base
        if base is None:
            remedy = "take 'dsm' or 'fast' for images"
            refuse("inputs", "be vectors for the recipe 'nce'", "images", remedy)
        x = batch.x_density
        rows = torch.cat([x, base.sample(len(x), generator).to(x)])
        with evaluation_mode(model):  # rows do not interact
            ratio = -(model.energy(rows) + base.tempered_log_q(rows))
        on_data, on_noise = ratio.float().chunk(2)
        data, noise = noise_contrastive_loss(on_data, on_noise)
        loss = mean(data) + mean(noise)
        right = torch.cat([on_data > 0, on_noise <= 0]).to(loss.dtype)
        named = {"noise_contrastive": loss, "noise_accuracy": mean(right).detach()}
        return Terms(weight * loss, named)
