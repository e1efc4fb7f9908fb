"""What a report of an estimator is about: the parts that `fit` made, and test data beside them."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from sklearn.utils import column_or_1d
from sklearn.utils.validation import check_is_fitted

from jem.checks import callers_level, refuse
from jem.data.splits import DataPart
from jem.errors import InputError
from jem.estimator.data import (
    class_indices,
    content_hash,
    images_or_none,
    rows_shared,
)
from jem.progress import ProgressBar
from jem.report.measure import measure
from jem.report.page import write_pages
from jem.report.subject import Subject, TrainingRun

if TYPE_CHECKING:
    from jem.estimator.classifier import JEMClassifier

Pair = tuple[npt.ArrayLike, npt.ArrayLike]


def write(
    classifier: JEMClassifier,
    folder: str | Path,
    tested: Pair,
    trained: Pair,
    control: JEMClassifier | None,
) -> dict[str, Any]:
    """Measure an estimator and write the report into a folder: see `JEMClassifier.report`."""
    subject = subject_of(classifier, tested, trained, control)
    with ProgressBar("measuring", quiet=not classifier.verbose) as bar:
        report = measure(
            subject,
            acceptance_rate=classifier.acceptance_rate,
            progress=lambda section: bar.stage(f"measuring {section}"),
        )
    bounds = subject.model.bounds("cpu")
    return write_pages(report, Path(folder), bounds, title="Report on the classifier")


def subject_of(
    classifier: JEMClassifier, tested: Pair, trained: Pair, control: JEMClassifier | None = None
) -> Subject:
    """Divide the data of `fit` as it did, and put the test data beside them.

    Args:
        classifier: The fitted estimator.
        tested: Inputs and labels of the test part, as in `fit`.
        trained: The inputs and labels that `fit` was given.
        control: Another estimator, fitted on the same data and parts, to compare with.

    Returns:
        What `jem.report.measure` measures.

    Raises:
        InputError: If data or control are not those of `fit`, or `fit` held no inputs out.
    """
    (X, y), (X_train, y_train) = tested, trained  # noqa: N806
    check_is_fitted(classifier, "model_")
    of_test = class_indices("y", column_or_1d(y), classifier.classes_, len(np.asarray(X)))
    test = DataPart(classifier._inputs(X).float(), of_test)
    images, raw = images_or_none(X_train), classifier._format
    train = np.asarray(X_train) if images is None else raw.check(images)
    labels = column_or_1d(y_train)
    indices = class_indices("y_train", labels, classifier.classes_, len(train)).numpy()
    train = train.astype(raw.dtype, copy=False)
    if content_hash(train, indices) != classifier._data_hash:
        raise InputError("`X_train` and `y_train` must be what `fit` was given, in its order")
    if shared := rows_shared(X, train):
        warnings.warn(
            f"{shared:,} of {len(test):,} rows of `X` are rows of `X_train` too, which makes the "
            "figures look too good: give inputs that `fit` has not seen",
            stacklevel=callers_level(),
        )
    if control is not None:
        check_is_fitted(control, "model_")
        own, other = ((c._data_hash, c._division) for c in (classifier, control))
        if own != other:
            refuse("control", f"be fitted on the same data, divided as {own[1]}", other[1])
    splits = classifier._divide(train, indices)
    if not len(splits.calibration):
        raise InputError(
            "a report needs inputs that `fit` held out: fit on more data, with "
            "`calibration_fraction` above 0"
        )
    return Subject(
        classifier.model_,
        replace(splits, test=test),
        control=None if control is None else control.model_,
        run=TrainingRun(
            sentence=f"{type(classifier).__name__} trained for {classifier.n_iter_} epochs on "
            f"{len(splits.train):,} inputs in {len(classifier.classes_)} classes.",
            as_given=classifier._result.as_given,
            **classifier._metadata,
            records=[
                *({"kind": "epoch", **record} for record in classifier.history_),
                {"kind": "end", "kept_epoch": classifier._result.kept_epoch},
            ],
        ),
    )
