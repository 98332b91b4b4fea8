"""Patients of a run's validation cases: those of different data sets are different people."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from maskmed_zoo.runner.evaluate import patients_of


def test_data_sets_whose_folders_have_one_name_share_no_patient(tmp_path: Path) -> None:
    cases: dict[str, Any] = {}
    for place in ("here", "there", "further"):
        root = tmp_path / place / ("other" if place == "further" else "Dataset001")
        root.mkdir(parents=True)
        (root / "groups.json").write_text(json.dumps({"a": "p", "b": "p"}))
        dataset = SimpleNamespace(root=root)
        cases |= {f"{place} {case}": (SimpleNamespace(identifier=case), dataset) for case in "ab"}
    assert list(patients_of(cases).values()) == [
        "Dataset001/1/p", "Dataset001/1/p", "Dataset001/2/p", "Dataset001/2/p", "other/p", "other/p"
    ]  # fmt: skip
    one = {name: found for name, found in cases.items() if name.startswith("here")}
    assert set(patients_of(one).values()) == {"p"}
