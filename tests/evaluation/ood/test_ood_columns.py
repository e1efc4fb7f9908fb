import numpy as np
import pandas
import pytest
import torch

from jem import JEMClassifier
from jem.evaluation.ood.columns import foreign_columns


@pytest.fixture(scope="module")
def customers():
    """A classifier of a data frame with a one-hot and a constant column, and its rows."""
    rng = np.random.default_rng(0)
    kind, age, spent = rng.choice(3, 300), rng.normal(40, 8, 300), rng.normal(90, 20, 300)
    frame = pandas.DataFrame({"age": age, "year": 2024.0})
    for k, name in enumerate(("monthly", "yearly", "none")):
        frame[f"contract_{name}"] = (kind == k).astype(float)
    frame["spent"] = spent + 2 * age
    labels = np.where(frame["spent"] > 170, "stays", "leaves")
    return JEMClassifier(epochs=20, random_state=0).fit(frame, labels), frame


@pytest.mark.parametrize(
    ("column", "named"),
    [("age", "age"), ("year", "year"), ("contract_yearly", "contract"), ("spent", "spent")],
)
def test_a_row_that_one_column_makes_foreign_names_that_column(customers, column, named):
    classifier, frame = customers
    passes = frame[~classifier.is_ood(frame)][:40].copy()
    passes[column] = passes[column] * 100 + 100
    assert {columns[0] for columns in classifier.foreign_columns(passes)} == {named}


def test_rows_that_pass_name_nothing_and_rows_with_many_foreign_columns_name_three(customers):
    classifier, frame = customers
    named = classifier.foreign_columns(frame)
    assert [len(row) > 0 for row in named] == classifier.is_ood(frame).tolist()
    assert {len(row) for row in classifier.foreign_columns(frame * 1000 + 1000)} == {3}


def test_columns_without_names_are_numbered(customers):
    _, frame = customers
    labels = frame["age"] > 40
    classifier = JEMClassifier(epochs=5, random_state=0).fit(frame.to_numpy(), labels)
    rows = frame.to_numpy()[~classifier.is_ood(frame.to_numpy())][:5]
    rows[:, 1] += 1
    assert classifier.foreign_columns(rows) == [("x1",)] * 5
    rows[:, 2:5] *= 30
    assert all("x2 to x4" in row for row in classifier.foreign_columns(rows))
    assert foreign_columns(classifier.detector_, torch.empty(0, 6)) == []


def test_rows_that_break_a_product_are_rejected_and_name_a_column_of_it():
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame(
        {"months": rng.integers(1, 73, 500), "fee": rng.uniform(20, 120, 500)}
    )
    frame["total"] = frame["months"] * frame["fee"] * rng.normal(1, 0.02, 500)
    frame["calls"] = rng.poisson(2, 500)
    stays = frame["months"] > 30
    classifier = JEMClassifier(epochs=5, random_state=0).fit(frame, stays)
    assert classifier.is_ood(frame).mean() < 0.15
    broken = frame.assign(total=frame["total"] / 2)
    assert classifier.is_ood(broken).mean() > 0.95
    first = [named[0] for named in classifier.foreign_columns(broken) if named]
    assert np.mean([name != "calls" for name in first]) > 0.95
