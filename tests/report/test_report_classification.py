"""Which class is taken for which, against scikit-learn."""

import pytest
import torch
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support


@pytest.fixture(scope="module")
def of_test(measured):
    """What was found, true classes, and probabilities after temperature scaling."""
    of, report = measured
    x, y = of.splits.test[:]
    with torch.no_grad():
        logits = of.model.logits(x).double()
    found = report.classification
    return found, y, (logits / found.model.temperature).softmax(dim=1)


def test_the_matrix_and_the_figures_of_classes_are_those_of_scikit_learn(of_test):
    found, y, probabilities = of_test
    predicted = probabilities.argmax(dim=1)
    assert found.confusion == confusion_matrix(y, predicted, labels=range(3)).tolist()
    precision, recall, _, support = precision_recall_fscore_support(
        y, predicted, labels=range(3), zero_division=float("nan")
    )
    for k, each in enumerate(found.classes):
        assert each.precision.value == pytest.approx(precision[k], nan_ok=True)
        assert each.recall.value == pytest.approx(recall[k])
        assert each.support == support[k]
    assert found.majority.value == max(support) / len(y)


def test_the_most_confident_mistakes_come_first_with_both_names(of_test, measured):
    found, y, probabilities = of_test
    splits = measured[0].splits
    stated, predicted = probabilities.max(dim=1)
    wrong = sorted((-float(stated[i]), i) for i in (predicted != y).nonzero()[:, 0].tolist())
    for (_, i), mistake, x in zip(wrong, found.mistakes, found.mistaken, strict=False):
        assert mistake.source == str(splits.test.sources[i])
        names = splits.classes[y[i]], splits.classes[predicted[i]]
        assert (mistake.true, mistake.predicted) == names
        assert mistake.probability == pytest.approx(float(stated[i]))
        assert torch.equal(x, splits.test.x[i])
    assert len(found.mistakes) == len(found.mistaken) == min(12, len(wrong))


def test_the_share_answered_is_as_accurate_as_asked_for(of_test):
    found, y, probabilities = of_test
    stated, predicted = probabilities.max(dim=1)
    order = stated.argsort(descending=True)
    accuracy = (predicted == y)[order].double().cumsum(dim=0) / torch.arange(1, len(y) + 1)
    for wanted, share in found.answered:
        places = (accuracy >= wanted - 1e-9).nonzero()
        best = (int(places.max()) + 1) / len(y) if len(places) else 0.0
        assert share == pytest.approx(best)
