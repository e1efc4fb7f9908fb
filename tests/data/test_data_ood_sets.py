"""Foreign sets made for a data set: turned images, letters, and classes that were held out."""

from dataclasses import replace

import pytest
import torch

from jem.data import OOD_SETS, LazyPart, load, rotations
from jem.data.ood_sets import DISTANCES, HELD_OUT, ROTATIONS, hold_out, make_ood_set
from jem.data.splits import PART_NAMES
from jem.errors import InputError

DIGITS = load("digits")


def test_every_foreign_set_is_near_or_far():
    assert set(DISTANCES) == {*OOD_SETS, ROTATIONS, HELD_OUT}
    near = {name for name, distance in DISTANCES.items() if distance == "near"}
    assert near == {"letters", "rotations", "held_out_classes"}


@pytest.mark.parametrize("name", [*OOD_SETS, ROTATIONS])
def test_sets_by_name_fit_the_data_and_repeat(name):
    x = make_ood_set(name, DIGITS, 20, seed=1)
    assert x.shape == (20, 1, 8, 8)
    assert x.equal(make_ood_set(name, DIGITS, 20, seed=1))
    assert not x.equal(make_ood_set(name, DIGITS, 20, seed=2))
    if name in OOD_SETS:
        assert x.equal(OOD_SETS[name](20, (1, 8, 8), seed=1))


def test_rotations_are_test_images_turned_by_all_three_angles():
    x = make_ood_set(ROTATIONS, DIGITS, 400, seed=0)
    assert len(x) == len(DIGITS.test)  # there are no more
    turned = [{row.numpy().tobytes() for row in rotations(DIGITS.test.x, k)} for k in range(4)]
    found = [{k for k in range(4) if row.numpy().tobytes() in turned[k]} for row in x]
    assert all(found)
    assert sum(0 in angles for angles in found) <= 5  # but for digits that look the same
    for k in (1, 2, 3):
        assert 80 < sum(k in angles for angles in found) < 160


def test_held_out_classes_are_nowhere_in_what_is_left():
    known, ood_sets = hold_out(DIGITS, ["3", "7"])
    assert known.classes == tuple("01245689")
    assert known.scaling is DIGITS.scaling
    for name in PART_NAMES:
        before, after = getattr(DIGITS, name), getattr(known, name)
        kept = (before.y != 3) & (before.y != 7)
        assert after.x.equal(before.x[kept])
        names = [known.classes[k] for k in after.y]
        assert names == [DIGITS.classes[k] for k in before.y[kept]]
    gone = (DIGITS.test.y == 3) | (DIGITS.test.y == 7)
    assert ood_sets.equal(DIGITS.test.x[gone])


def test_held_out_classes_of_data_on_disk():
    lazy = {
        name: LazyPart(list(getattr(DIGITS, name).x), getattr(DIGITS, name).y, torch.clone)
        for name in PART_NAMES
    }
    known, ood_sets = hold_out(replace(DIGITS, **lazy), ["0"])
    expected, wanted = hold_out(DIGITS, ["0"])
    assert isinstance(known.train, LazyPart)
    assert ood_sets.equal(wanted)
    assert known.validation[:][0].equal(expected.validation.x)
    assert known.validation.y.equal(expected.validation.y)


def test_mistakes_are_refused():
    with pytest.raises(InputError, match=r"among uniform_noise.*rotations, got 'fog'"):
        make_ood_set("fog", DIGITS, 5, seed=0)
    with pytest.raises(InputError, match="square images to turn"):
        make_ood_set(ROTATIONS, load("iris"), 5, seed=0)
    with pytest.raises(InputError, match="count of at least 1, got"):
        make_ood_set(ROTATIONS, DIGITS, 0, seed=0)
    with pytest.raises(InputError, match="image shape"):
        make_ood_set("letters", load("iris"), 5, seed=0)
    with pytest.raises(InputError, match="got 'ten'"):
        hold_out(DIGITS, ["1", "ten"])
    with pytest.raises(InputError, match="got none"):
        hold_out(DIGITS, [])
    with pytest.raises(InputError, match="two classes to stay, got 1"):
        hold_out(load("iris"), ["setosa", "virginica"])
