"""Names of the labels of predicted maps: kept beside them, and what they change."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from maskmed_zoo.data.predicted import STAMP, PredictedFolder, renumbered
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
    assert [PredictedFolder(tmp_path).weights_of(f"{name}.nii.gz") for name in "abc"] == ["x", "y", None]
    assert [PredictedFolder(tmp_path).labels_of(f"{name}.nii.gz") for name in "abc"] == [MERGED, None, None]
    for damage in (
        "{",
        "[]",
        '{"weights_sha256": 1}',
        '{"weights_sha256": {"a.nii.gz": [1]}, "labels": {"x": {"a": "1"}}}',
    ):
        (tmp_path / STAMP).write_text(damage)
        assert (
            PredictedFolder(tmp_path).weights_of("a.nii.gz") is PredictedFolder(tmp_path).labels_of("a.nii.gz") is None
        )


NAME, SHA = "a.nii.gz", "0" * 64
RECORDS = [
    {"weights_sha256": {NAME: 3}}, {"weights_sha256": [NAME]}, {"labels": {"x": {"background": True}}},
    {"labels": {"x": {"background": 0, "a": 10**30}}}, {"files": {NAME: None}}, {"files": {NAME: [SHA]}},
    {"files": {"../b": SHA, "a\0b": SHA, "": SHA, "/etc/passwd": SHA}}, {"replacing": {NAME: [SHA]}},
    {"replacing": {NAME: {"weights_sha256": 3, "files": [NAME]}}},
    {"replacing": {NAME: {"files": {NAME: 3, "../b": SHA}}}},
    {"requests": {NAME: 3}}, {"requests": 3},
]  # fmt: skip


@pytest.mark.parametrize("record", RECORDS, ids=str)
def test_a_record_of_other_content_knows_nothing(record: dict[str, object], tmp_path: Path) -> None:
    """And what it then does not know is nobody's to replace."""
    (tmp_path / NAME).write_bytes(b"mine")
    (tmp_path / STAMP).write_text(json.dumps(record))
    folder = PredictedFolder(tmp_path)
    assert (folder.weights_of(NAME), folder.labels_of(NAME), folder.request_of(NAME)) == (None, None, None)
    assert not folder.is_known(NAME, NAME)
    assert not folder.is_predicted(NAME)
    assert not folder.is_begun(NAME, SHA)
    assert not folder.is_listed("../b")
    with folder.held():
        folder.announce(NAME, SHA, {"background": 0, "a": 1}, {})
        folder.enter(NAME)
    assert PredictedFolder(tmp_path).is_listed(NAME)


def test_a_damaged_checksum_is_not_taken_for_a_record_without(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"mine")
    (tmp_path / STAMP).write_text(json.dumps({"weights_sha256": {NAME: SHA}, "files": {NAME: 5}}))
    assert not PredictedFolder(tmp_path).is_known(NAME, NAME)
    assert PredictedFolder(tmp_path).weights_of(NAME) is None


ENTERS = """
import sys
from pathlib import Path
from maskmed_zoo.data.predicted import PredictedFolder
for index in range(60):
    folder = PredictedFolder(Path(sys.argv[1]))
    name = f"{sys.argv[2]}_{index}.nii.gz"
    with folder.held():
        folder.announce(name, "w", {"background": 0, "a": 1}, {name: "s"}, "r")
        folder.enter(name)
"""


def test_two_processes_lose_no_entry(tmp_path: Path) -> None:
    workers = [subprocess.Popen([sys.executable, "-c", ENTERS, str(tmp_path), name]) for name in "xy"]
    assert [worker.wait() for worker in workers] == [0, 0]
    record = json.loads((tmp_path / STAMP).read_text())
    for table in ("weights_sha256", "files", "requests"):
        assert len(record[table]) == 120
    assert "replacing" not in record
    assert {path.name for path in tmp_path.iterdir()} == {STAMP}
