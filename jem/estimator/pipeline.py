"""A pipeline that ends in a `JEMClassifier`: verdicts on raw rows, samples that are raw rows."""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from pandas import DataFrame
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline
from sklearn.pipeline import make_pipeline as make_plain
from sklearn.preprocessing import OrdinalEncoder

from jem.data.columns import decode, encode, fit_columns
from jem.errors import InputError
from jem.estimator.data import TableFormat

Array = npt.NDArray[Any]


class JEMPipeline(Pipeline):  # type: ignore[misc]
    """A scikit-learn pipeline whose last step is a `JEMClassifier`, with all that this one can do.

    Inputs are those of the first step; `predict`, `predict_proba` and the rest are the pipeline's.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.preprocessing import PowerTransformer
        >>> from jem.estimator.classifier import JEMClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> pipeline = make_pipeline(PowerTransformer(), JEMClassifier(epochs=3, random_state=0))
        >>> pipeline.fit(X, y).p_value(X[:5]).shape
        (5,)
        >>> bool((pipeline.sample(count=20) >= X.min(axis=0)).all())
        True
    """

    def fit(self, X: Any, y: npt.ArrayLike, **params: Any) -> Self:  # noqa: ANN401, N803
        """Fit every step in turn; see `JEMClassifier.fit`."""
        super().fit(X, y, **params)
        self._table = TableFormat.of(X) if len(np.shape(X)) == 2 else None
        model = self[-1].model_
        with contextlib.suppress(AttributeError, ValueError):  # not every step names its columns
            columns = self[:-1].get_feature_names_out()
            if any(getattr(step, "verbose_feature_names_out", False) for step in self[:-1]):
                columns = [name.split("__", 1)[-1] for name in columns]  # "encoder__colour_red"
            model.scaling = replace(model.scaling, columns=tuple(columns))
        return self

    def is_ood(self, X: Any) -> Array:  # noqa: ANN401, N803
        """Whether inputs are unlike the data or between classes: `JEMClassifier.is_ood`."""
        return self[-1].is_ood(self._transformed(X))  # type: ignore[no-any-return]

    def p_value(self, X: Any) -> Array:  # noqa: ANN401, N803
        """The share of inputs like the data that score as low: `JEMClassifier.p_value`."""
        return self[-1].p_value(self._transformed(X))  # type: ignore[no-any-return]

    def ood_reason(self, X: Any) -> Array:  # noqa: ANN401, N803
        """Why inputs are flagged: `JEMClassifier.ood_reason`."""
        return self[-1].ood_reason(self._transformed(X))  # type: ignore[no-any-return]

    def foreign_columns(self, X: Any) -> list[tuple[str, ...]]:  # noqa: ANN401, N803
        """Columns that make rows foreign, as the last step sees them."""
        return self[-1].foreign_columns(self._transformed(X))  # type: ignore[no-any-return]

    def sample(
        self,
        labels: Sequence[Any] | Array | None = None,
        *,
        count: int | None = None,
        random_state: int = 0,
    ) -> Array | DataFrame:
        """Draw inputs as `JEMClassifier.sample` does, and undo the steps before it.

        Returns:
            Rows as `fit` was given them, with the names and types of their columns: categories,
            whole numbers, ranges. What a step has dropped is left out.

        Raises:
            InputError: If a step has no `inverse_transform`. Imputers need none.
        """
        rows = self[-1].sample(labels, count=count, random_state=random_state)
        rows = undo(self[:-1], rows)
        return rows if self._table is None else self._table.restore(rows)

    def report(self, X: Any, y: npt.ArrayLike, X_train: Any, *args: Any, **options: Any) -> Any:  # noqa: ANN401, N803
        """Measure, and write a page: `JEMClassifier.report`, with raw inputs."""
        x, x_train = self._transformed(X), self._transformed(X_train)
        return self[-1].report(x, y, x_train, *args, **options)

    def _transformed(self, X: Any) -> Any:  # noqa: ANN401, N803
        return self[:-1].transform(X) if len(self) > 1 else X


class TableEncoder(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """What `jem train` does with text, dates and missing values, as the first step of a pipeline.

    Takes data frames as they are. Each column becomes numbers, as `jem.data.columns.Column` says;
    text that differs in most rows, such as names, is left out.

    Attributes:
        columns_: What is done to each column.
        feature_names_in_: Names of the columns.

    Example:
        >>> table = pd.DataFrame({"age": [20, None, 60] * 2, "city": ["Oslo", "Rome"] * 3})
        >>> encoder = TableEncoder().fit(table)
        >>> encoder.inverse_transform(encoder.transform(table))["city"][1]
        'Rome'
    """

    def fit(self, X: DataFrame, y: Any = None) -> Self:  # noqa: ANN401, N803
        """Choose what is done to each column; raises `InputError` if one cannot be used."""
        frame = pd.DataFrame(X)
        self.columns_ = fit_columns(frame, np.arange(len(frame)))
        self.feature_names_in_ = np.asarray(frame.columns, dtype=object)
        return self

    def transform(self, X: DataFrame) -> Array:  # noqa: N803
        """Turn rows into numbers, shape (N, D)."""
        return encode(self.columns_, pd.DataFrame(X))

    def inverse_transform(self, X: Any) -> DataFrame:  # noqa: ANN401, N803
        """Turn numbers back into rows; what was left out is missing."""
        return decode(self.columns_, np.asarray(X)).reindex(columns=self.feature_names_in_)

    def get_feature_names_out(self, input_features: Any = None) -> Array:  # noqa: ANN401
        """The column that each number comes from."""
        return np.array([c.name for c in self.columns_ for _ in range(c.width)], dtype=object)


def make_pipeline(*steps: Any) -> JEMPipeline:  # noqa: ANN401
    """Make a `JEMPipeline` of transformers and a `JEMClassifier`; names as scikit-learn has them.

    Args:
        steps: In their order.
    """
    return JEMPipeline(make_plain(*steps).steps)


def undo(step: Any, rows: Any) -> Any:  # noqa: ANN401
    """Bring rows back to what a fitted transformer was given.

    Args:
        step: The transformer; also a pipeline or a `ColumnTransformer` of such.
        rows: What it would give, shape (B, ...).

    Raises:
        InputError: If it has no inverse.
    """
    if step in (None, "passthrough"):
        return rows
    if type(step).__module__.startswith("sklearn.impute"):
        return _undo_imputer(step, np.array(rows))
    if isinstance(step, Pipeline):
        for _, each in reversed(step.steps):
            rows = undo(each, rows)
        return rows
    if isinstance(step, ColumnTransformer):
        return _undo_columns(step, np.asarray(rows))
    if not hasattr(step, "inverse_transform"):
        raise InputError(
            f"samples go back through `inverse_transform` of every step, which "
            f"{type(step).__name__} lacks: pipeline[-1].sample gives them in its units"
        )
    whole = isinstance(step, OrdinalEncoder)  # which cuts off what follows the point
    return step.inverse_transform(np.rint(rows) if whole else rows)


def _undo_imputer(step: Any, rows: Array) -> Array:  # noqa: ANN401
    """Take off the columns that say what was missing, and what they say was."""
    flagged = step.indicator_.features_ if step.add_indicator else []
    values, missing = np.split(rows, [rows.shape[1] - len(flagged)], axis=1)
    values[:, flagged] = np.where(missing > 0.5, np.nan, values[:, flagged])
    return values


def _undo_columns(step: ColumnTransformer, rows: Array) -> DataFrame:
    """Undo each part of the columns; those that were dropped are None."""
    names = getattr(step, "feature_names_in_", range(step.n_features_in_))
    places = pd.Series(range(step.n_features_in_), index=names)
    found: dict[int, Any] = dict.fromkeys(places)
    for name, part, columns in step.transformers_:
        if isinstance(part, str) and part == "drop":
            continue
        back = np.asarray(undo(part, rows[:, step.output_indices_[name]]), dtype=object)
        named = any(isinstance(each, str) for each in np.ravel(columns))
        where = (places.loc if named else places.iloc)[columns]
        found |= zip(np.atleast_1d(where).tolist(), back.reshape(len(rows), -1).T, strict=True)
    return pd.DataFrame(found, columns=list(places))
