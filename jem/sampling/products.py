"""Products of columns that hold almost exactly, such as an amount that is price times count."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

LEAST_RATIO = 1.5
"""Greatest over least value of a column below which its logarithm says no more than itself."""
FEWEST_POSITIVE = 0.95
"""Least share of rows above zero in a column that is looked at; none of the others is below."""
LARGEST_VARIANCE = 0.02
"""Variance of a combination of standardised logarithms below which it holds almost exactly."""
LEAST_VARIANCE = 1e-5
"""What is added to it: exact relations are judged to a third of a percent."""
FEWEST_FLAGGED = 3
"""Rows with a flag in which a column has one value, that make it a flag of missing values."""
SHARE_LIKE_DATA = 0.99
"""Share of the training rows that keep within the limit."""


class Products(NamedTuple):
    r"""Finds products and quotients of columns, and says how far rows are from them.

    A product is a linear relation of logarithms. With z the logarithms of columns of positive
    numbers, in standard deviations, the relations are the principal components v of z with
    variance l < 0.02. The distance of a row is

    .. math:: d(x) = \sqrt{\textstyle\sum_v (v^T (z - \bar z))^2 / (l_v + 10^{-5})}

    Rows in which a value is missing have distance 0: the median stands in its place, and a column
    of two values flags it.

    Attributes:
        columns: Columns that are looked at, shape (P,).
        zero: What 0 is in them in the network's units, shape (P,).
        least: Least value above 0 in training, less `zero`, shape (P,); others are taken for it.
        mean: Means of their logarithms, shape (P,).
        whitening: Maps logarithms less their mean to R numbers of variance 1, shape (P, R).
        flags: Values beyond which a component says that a value is missing, shape (D,); infinite
            for all that are no flags.
        limit: Distance up to which rows are like the data.
    """

    columns: Tensor
    zero: Tensor
    least: Tensor
    mean: Tensor
    whitening: Tensor
    flags: Tensor
    limit: Tensor

    @classmethod
    def fit(cls, x: Tensor, zero: Tensor) -> Products | None:
        """Look for products in training data.

        Args:
            x: Rows, shape (N, D), in the network's units.
            zero: What the user's 0 is in these units, shape (D,).

        Returns:
            What holds, or None where nothing does.
        """
        x = x.double().cpu()
        rows = x - zero
        low, high = rows.aminmax(dim=0)
        least = rows.where(rows > 0, math.inf).amin(dim=0)
        binary = ((rows == low) | (rows == high)).all(dim=0)
        positive = (low >= 0) & ((rows > 0).double().mean(dim=0) >= FEWEST_POSITIVE)
        columns = (positive & (high > LEAST_RATIO * least) & ~binary).nonzero()[:, 0]
        flags = torch.full_like(zero, math.inf)
        for part in (binary & (low < high)).nonzero()[:, 0].tolist():
            flagged = rows[rows[:, part] == high[part]][:, columns]
            if len(flagged) >= FEWEST_FLAGGED and bool((flagged == flagged[0]).all(dim=0).any()):
                flags[part] = (low[part] + high[part]) / 2 + zero[part]
        known = rows[(x <= flags).all(dim=1)][:, columns]
        whole = (known > 0).all(dim=1)
        count, size = int(whole.sum()), len(columns)
        if size < 2 or count <= 2 * size:
            return None
        logs = known[whole].log()
        deviations, mean = logs.std(dim=0, correction=0), logs.mean(dim=0)
        z = (logs - mean) / deviations
        variances, directions = torch.linalg.eigh(z.T @ z / count)
        exact = variances < LARGEST_VARIANCE
        if not exact.any():
            return None
        scales = (variances[exact].clamp_min(0) + LEAST_VARIANCE).sqrt()
        whitening = directions[:, exact] / scales / deviations[:, None]
        found = cls(columns, zero[columns], least[columns], mean, whitening, flags, zero.sum())
        far = found.distance(x)[(x <= flags).all(dim=1)]
        usual = far.kthvalue(math.ceil(SHARE_LIKE_DATA * len(far))).values.clamp_min(1.0)
        return found._replace(limit=usual * (count + size) / (count - size))

    def distance(self, x: Tensor) -> Tensor:
        """How far rows (B, D) are from the relations, shape (B,), in standard deviations."""
        off = (self._logs(x) - self.mean.to(x)) @ self.whitening.to(x)
        missing = (x > self.flags.to(x)).any(dim=1)
        return torch.where(missing, 0.0, off.square().sum(dim=1).sqrt())

    def repaired(self, x: Tensor) -> Tensor:
        """Rows (B, D) with the values that columns would have by the others, each by itself."""
        logs, whitening = self._logs(x), self.whitening.to(x)
        steps = (logs - self.mean.to(x)) @ whitening @ whitening.T
        logs = logs - steps / whitening.square().sum(dim=1).clamp_min(1e-6)
        return x.index_copy(1, self.columns.to(x.device), logs.exp() + self.zero.to(x))

    def _logs(self, x: Tensor) -> Tensor:
        return (x[:, self.columns] - self.zero.to(x)).clamp_min(self.least.to(x)).log()
