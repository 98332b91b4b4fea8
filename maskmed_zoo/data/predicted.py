"""What is known about predicted label maps: which weights made each, and what its values mean.

```
OUT/.maskmed_predictions.json   {"weights_sha256": {label map: checksum}, "labels": {checksum: {label name: value}}}
```
The names let a label map be compared with references that number the same labels otherwise, as where several data sets
were merged for the training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from maskmed_zoo.data.dataset import foreground_labels

STAMP = ".maskmed_predictions.json"
WEIGHTS, LABELS = "weights_sha256", "labels"


def weights_of(target: Path) -> str | None:
    """Checksum of the weights that made a label map, None where it is not known."""
    found = read_stamp(target.parent)[WEIGHTS].get(target.name)
    return found if isinstance(found, str) else None


def labels_of(target: Path) -> dict[str, int] | None:
    """Label names and values of a label map, None where they are not known."""
    found = read_stamp(target.parent)[LABELS].get(weights_of(target))
    if not isinstance(found, dict):
        return None
    labels = cast(dict[str, Any], found)
    return labels if all(type(value) is int and value >= 0 for value in labels.values()) else None


def read_stamp(folder: Path) -> dict[str, dict[Any, Any]]:
    """Both tables of a folder, empty where they are missing or damaged."""
    try:
        content = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    tables = cast(dict[str, Any], content) if isinstance(content, dict) else {}
    return {key: table if isinstance(table := tables.get(key), dict) else {} for key in (WEIGHTS, LABELS)}


def renumbered(array: NDArray[np.int16], own: Mapping[str, int] | None, labels: Mapping[str, int]) -> NDArray[np.int16]:
    """A predicted map whose values mean `own`, with the values that `labels` gives the same names; others become 0.

    As it is where `own` is not known, or where each side has foreground names that the other lacks, other words then.
    """
    if own is None:
        return array
    ours, theirs = foreground_labels(own).keys(), foreground_labels(labels).keys()
    if not (ours <= theirs or theirs <= ours) or array.min() < 0 or array.max() > max(own.values()):
        return array
    table = np.zeros(max(own.values()) + 1, array.dtype)
    for name, value in own.items():
        table[value] = labels.get(name, 0)
    return table[array]
