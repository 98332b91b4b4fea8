"""Names of the labels of predicted maps: kept beside them, and what they change."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from maskmed_zoo.data.predicted import STAMP, labels_of, renumbered, weights_of
from maskmed_zoo.labels import Labels

ARRAY = np.array([[[0, 1, 2, 3]]], np.int16)
MERGED = {"background": 0, "cord": 1, "jaw": 2, "larynx": 3}


@pytest.mark.parametrize(
    ("own", "labels", "expected"),
    [
        (MERGED, {"background": 0, "jaw": 1, "larynx": 2, "cord": 3}, [0, 3, 1, 2]),
        (MERGED, {"background": 0, "jaw": 1, "cord": 2, "ignore": 3}, [0, 2, 1, 0]),  # the larynx was not annotated
        (MERGED, {"background": 0, "a": 1, "larynx": 2, "jaw": 3, "cord": 4}, [0, 4, 3, 2]),
        (MERGED, {"background": 0, "mandible": 1, "cord": 2, "larynx": 3}, [0, 1, 2, 3]),  # jaw or mandible?
        ({"background": 0, "jaw": 1}, {"background": 0, "jaw": 2}, [0, 1, 2, 3]),  # not what made this map
        (None, MERGED, [0, 1, 2, 3]),
    ],
)
def test_values_follow_names(own: dict[str, int] | None, labels: dict[str, int], expected: list[int]) -> None:
    assert (
        renumbered(ARRAY, None if own is None else Labels(own), Labels(labels, gaps=True)).ravel().tolist() == expected
    )


def test_what_a_folder_tells(tmp_path: Path) -> None:
    tables = {"weights_sha256": {"a.nii.gz": "x", "b.nii.gz": "y"}, "labels": {"x": MERGED}}
    (tmp_path / STAMP).write_text(json.dumps(tables))
    assert [weights_of(tmp_path / f"{name}.nii.gz") for name in "abc"] == ["x", "y", None]
    assert [labels_of(tmp_path / f"{name}.nii.gz") for name in "abc"] == [MERGED, None, None]
    for damage in (
        "{",
        "[]",
        '{"weights_sha256": 1}',
        '{"weights_sha256": {"a.nii.gz": [1]}, "labels": {"x": {"a": "1"}}}',
    ):
        (tmp_path / STAMP).write_text(damage)
        assert weights_of(tmp_path / "a.nii.gz") is labels_of(tmp_path / "a.nii.gz") is None
