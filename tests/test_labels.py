"""Labels: order, renumbering, left/right pairs, and every kind of mistake with what to do about it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping

import pytest

from maskmed_zoo.labels import Labels, LabelsError

ORGANS = Labels({"background": 0, "spleen": 2, "liver": 1, "ignore": 3})


def test_names_values_and_classes() -> None:
    assert ORGANS.names == ("background", "liver", "spleen")
    assert ORGANS.foreground == {"liver": 1, "spleen": 2}
    assert ORGANS.ignore == 3
    assert list(ORGANS) == ["background", "liver", "spleen", "ignore"]
    assert ORGANS == {"background": 0, "liver": 1, "spleen": 2, "ignore": 3}
    assert ORGANS["spleen"] == 2
    assert len({ORGANS, Labels(dict(ORGANS)), Labels({"background": 0, "liver": 1})}) == 2
    assert pickle.loads(pickle.dumps(ORGANS)) == copy.deepcopy(ORGANS) == ORGANS


def test_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        ORGANS["new"] = 4  # type: ignore[index]


def test_merged_and_renumbered_by_name() -> None:
    other = Labels({"background": 0, "kidney": 1, "liver": 2})
    merged = Labels.merged([ORGANS, other])
    assert merged == {"background": 0, "liver": 1, "spleen": 2, "kidney": 3, "ignore": 4}
    for labels in (ORGANS, other):
        table = labels.renumbering(merged)
        assert all(table[value] == merged[name] for name, value in labels.items())
    assert merged.renumbering(other).tolist() == [0, 2, 0, 1, 0]  # what the other lacks becomes background


def test_of_a_map_that_nothing_describes() -> None:
    found = Labels.found([7, 0, 2])
    assert found == {"background": 0, "label_2": 2, "label_7": 7}
    assert found.renumbering(found).tolist() == [0, 0, 2, 0, 0, 0, 0, 7]


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (("left", "right"), (("left", "right"),)),
        (("lung_right", "spine", "lung_left"), (("lung_left", "lung_right"),)),
        (("Left kidney", "Right kidney", "left", "liver"), (("Left kidney", "Right kidney"),)),
        (("liver", "leftover"), ()),
    ],
)
def test_left_right_pairs(names: tuple[str, ...], pairs: tuple[tuple[str, str], ...]) -> None:
    assert Labels({name: value for value, name in enumerate(("background", *names))}).pairs == pairs


@pytest.mark.parametrize(
    ("values", "cause", "remedy"),
    [
        ({"Background": 0, "liver": 1}, "the value 0 is called 'Background'", "the label maps stay as they are"),
        ({"bg": 0, "liver": 1}, "the value 0 is called 'bg'", "rename 'bg' to 'background'"),
        ({"liver": 1}, "labels need 'background: 0'", "add it"),
        ({"background": 1, "liver": 0}, "'background' has the value 1", "there and in the label maps"),
        ({"background": 0, "a": 1, "b": 1}, "'a', 'b' have the same value 1", "a value of its own"),
        ({"background": 0, "a": 2}, r"without gaps, got \[0, 2\]", "renumber the labels and the label maps"),
        ({"background": 0, "ignore": 1, "a": 2}, "'ignore' label must have the highest value", "exchange it"),
        ({"background": 0, "ignore": 1}, "no foreground label", "at least one"),
        ({"background": 0, "a": True}, "label 'a' has value True", "expected an integer"),
        ({"background": 0, "a": "1"}, "label 'a' has value '1'", "expected an integer"),
        ({"background": 0, "a": -1}, "label 'a' has value -1", "expected an integer"),
    ],
)
def test_mistakes_have_a_cause_and_a_remedy(values: Mapping[str, int], cause: str, remedy: str) -> None:
    with pytest.raises(LabelsError, match=cause) as caught:
        Labels(values)
    assert remedy in caught.value.remedy
    assert str(caught.value) == f"{caught.value.cause}; {caught.value.remedy}"


def test_gaps_where_they_are_allowed() -> None:
    assert Labels({"background": 0, "a": 7, "b": 3}, gaps=True).names == ("background", "b", "a")


@pytest.mark.parametrize("name", ["می\u200cروم", "a\u00a0b", "Müller", "肝臓", "e\u0301"])
def test_names_of_any_script(name: str) -> None:
    assert Labels({"background": 0, name: 1}).names == ("background", name)


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "\x1b[31m", "a\u202eb", "\u2028", "\ud800", "\0"])
def test_names_that_cannot_be_told_by_looking(name: str) -> None:
    with pytest.raises(LabelsError, match="letters that can be seen"):
        Labels({"background": 0, name: 1})
