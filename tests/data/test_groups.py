"""Which cases are of one patient: what is read, and what is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskmed_zoo.data.groups import read_groups
from maskmed_zoo.errors import DataError


def test_cases_and_their_patients(tmp_path: Path) -> None:
    path = tmp_path / "groups.json"
    path.write_text(json.dumps({"a_1": "a", "a_2": "a", "b": "b", "elsewhere": "c"}))
    assert read_groups(path, ["a_1", "a_2", "b"]) == {"a_1": "a", "a_2": "a", "b": "b"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "expected an object of patients by case"),
        ('{"a_1": "a"}', "case 'a_2' is not listed; did you mean 'a_1'"),
        ('{"a_1": "a", "a_2": 2}', "case 'a_2' has 2, expected its patient"),
        ('{"a_1": "a", "a_1": "b"}', "stands twice"),
        ("{", "invalid JSON"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "groups.json"
    path.write_text(content)
    with pytest.raises(DataError, match=words) as caught:
        read_groups(path, ["a_1", "a_2"])
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
