"""Files of scores as `evaluate` writes them, made of numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskmed_zoo.evaluation.aggregate import summarize_cases
from maskmed_zoo.evaluation.case import CaseScores, ScoredCase
from maskmed_zoo.evaluation.metrics import chosen

LABELS = ("liver", "spleen")


def document(
    dice: Any, *, labels: Sequence[str] = LABELS, hd95: Any = None, patients: Sequence[str] | None = None
) -> dict[str, Any]:
    """A summary of Dice, and of HD95, of `(cases, labels)`; NaN for none."""
    tables = {"dice": np.asarray(dice, float)} | ({} if hd95 is None else {"hd95": np.asarray(hd95, float)})
    cases: list[ScoredCase] = []
    for index in range(len(tables["dice"])):
        name = f"case_{index:02d}"
        scores = {
            metric: CaseScores(
                name, {x: None if np.isnan(v) else float(v) for x, v in zip(labels, table[index], strict=True)}
            )
            for metric, table in tables.items()
        }
        cases.append(
            ScoredCase(name, scores, patient=patients[index] if patients else None, reference=f"reference {index}")
        )
    return summarize_cases(cases, labels, chosen("hd95" if hd95 is not None else ()))


def write(path: Path, summary: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(summary), encoding="utf-8")
    return path
