"""A predicted case on disk: its files, and which weights made them.

```
OUT/NAME.nii.gz                 label map
OUT/NAME_instances.nii.gz       where objects are told apart: their numbers 1, 2, …
OUT/NAME_instances.json         number -> label, volume_mm3, score: the class probability of its query, or null
OUT/.maskmed_predictions.json   which weights made which label map, and what its values mean; see `data.predicted`
```
A case is written in such an order that its label map stands there only when all the rest does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskmed_zoo.data.dataset import ENDING
from maskmed_zoo.data.nifti import Geometry, write_labels
from maskmed_zoo.data.predicted import LABELS, STAMP, WEIGHTS, read_stamp
from maskmed_zoo.evaluation.instances import objects_beside
from maskmed_zoo.inference.instances import Instances
from maskmed_zoo.runner.run_folder import make_folder, write_atomically


@dataclass(frozen=True, eq=False)
class Prediction:
    """Label map (z y x) of an image and, where they are told apart, its objects."""

    labels: NDArray[Any]
    instances: Instances | None
    geometry: Geometry


def files_of(target: Path, *, with_instances: bool) -> list[Path]:
    """All files of a case whose label map is `target`, the label map last."""
    numbers = objects_beside(target)
    return [numbers, _facts_file(numbers), target] if with_instances else [target]


def write_prediction(target: Path, prediction: Prediction, names: Sequence[str], weights_sha256: str) -> None:
    """Write a case's files; `names` are those of the labels 0, 1, ….

    Raises `DataError` or `CheckpointError` if a file cannot be written.
    """
    make_folder(target.parent)
    target.unlink(missing_ok=True)
    stamp = read_stamp(target.parent)
    stamp[WEIGHTS] = dict(sorted((stamp[WEIGHTS] | {target.name: weights_sha256}).items()))
    stamp[LABELS] |= {weights_sha256: {name: value for value, name in enumerate(names)}}
    _write_json(target.parent / STAMP, stamp)
    if prediction.instances is not None:
        write_instances(target, prediction.instances, names, prediction.geometry)
    write_labels(target, prediction.labels, prediction.geometry)


def write_instances(target: Path, found: Instances, names: Sequence[str], geometry: Geometry) -> None:
    """The map of objects beside the label map `target`, and for each its label's name, its volume and its score."""
    sizes = np.bincount(found.ids.ravel(), minlength=len(found.labels) + 1)[1:] * np.prod(geometry.spacing)
    facts = {
        str(number): {"label": names[label], "volume_mm3": round(float(volume), 3), "score": score}
        for number, (label, volume, score) in enumerate(zip(found.labels, sizes, found.scores, strict=True), start=1)
    }
    path = objects_beside(target)
    write_labels(path, found.ids, geometry)
    _write_json(_facts_file(path), facts)


def _facts_file(numbers: Path) -> Path:
    return numbers.with_name(f"{numbers.name.removesuffix(ENDING)}.json")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=1, allow_nan=False)
    write_atomically(path, lambda p: p.write_text(text + "\n", encoding="utf-8"))
