"""What one labelled case adds to the fingerprint of its data set, measured on the voxels of its files.

Idea: mean and variance of the foreground are exact, and its distribution is kept as evenly spaced order statistics, so
that percentiles over all cases need neither the voxels again nor chance. The facts lie in a folder, one file per case,
found again as long as the case's files are the same.
Source: nnU-Net's `DatasetFingerprintExtractor`: after the crop to the non-zero region, labels above 0, 'ignore' among
them. Deviation: it draws voxels at random.

```
FOLDER/NAME-facts-KEY/CASE.npz
```
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from maskmed_zoo.data.case import Case, stamps
from maskmed_zoo.data.crop import nonzero_box
from maskmed_zoo.data.dataset import RawDataset
from maskmed_zoo.files import make_folder, write_atomically
from maskmed_zoo.settings import Size3, Spacing3

FORMAT = 1
"""Raise this number when the facts, or how they are computed, change."""
LIMIT = 10_000
"""Most order statistics per channel that are kept of a case."""
_ARRAYS = {
    "spacing": ("f", 1), "shape": ("i", 1), "shape_after_crop": ("i", 1), "means": ("f", 1), "variances": ("f", 1),
    "lows": ("f", 1), "highs": ("f", 1), "values": ("f", 2),
}  # fmt: skip
"""Kind of numbers and axes of each array in a file."""


@dataclass(frozen=True, eq=False)
class CaseFacts:
    """Of one case: grid, and foreground intensities per channel (c) in the image's units.

    `spacing` (z, y, x) mm, `shape` and `shape_after_crop` (z, y, x) are those of the file's grid. `values` (c n) are
    order statistics at evenly spaced ranks, in ascending order; n is 0, and the moments are 0, without foreground.
    """

    spacing: Spacing3
    shape: Size3
    shape_after_crop: Size3
    means: NDArray[np.float64]
    variances: NDArray[np.float64]
    lows: NDArray[np.float64]
    highs: NDArray[np.float64]
    values: NDArray[np.float32]

    @property
    def has_foreground(self) -> bool:
        """Whether a voxel of a label lies in the case."""
        return self.values.shape[1] > 0

    @property
    def relative_size(self) -> float:
        """Share of the voxels that the crop leaves."""
        return float(np.prod(self.shape_after_crop, dtype=np.float64) / np.prod(self.shape, dtype=np.float64))


def facts_of(image: NDArray[np.float32], labels: NDArray[Any], spacing: Spacing3) -> CaseFacts:
    """The facts of an image (c z y x) with labels (z y x), both as read, not cropped; `spacing` (z, y, x) mm."""
    box = nonzero_box(image)
    inside = labels[box] > 0
    count = int(np.count_nonzero(inside))
    moments = np.zeros((4, len(image)))
    kept = np.zeros((len(image), min(count, LIMIT)), np.float32)
    ranks = ((np.arange(kept.shape[1]) + 0.5) * count / max(kept.shape[1], 1)).astype(np.intp)
    for channel, values in enumerate(image if count else ()):
        ordered = np.sort(values[box][inside])
        moments[:, channel] = (
            *(ordered.mean(dtype=np.float64), ordered.var(dtype=np.float64)),
            *(ordered[0], ordered[-1]),
        )
        kept[channel] = ordered[ranks]
    z, y, x = image.shape[1:]
    depth, height, width = inside.shape
    return CaseFacts(spacing, (z, y, x), (depth, height, width), *moments, values=kept)


class FactsFolder:
    """The facts of a data set's cases, kept below `folder`; without one, none are."""

    def __init__(self, folder: Path | None, dataset: RawDataset) -> None:
        self.dataset = dataset
        root = dataset.root.resolve()
        key = hashlib.sha256(os.fsencode(root)).hexdigest()[:12]
        self.folder = None if folder is None else Path(folder) / f"{root.name}-facts-{key}"

    def read(self, case: Case) -> CaseFacts | None:
        """What was kept of a case, None where that is nothing, damaged, or of files that have changed since."""
        if self.folder is None:
            return None
        path = self.folder / f"{case.identifier}.npz"
        with suppress(Exception):  # NumPy and zipfile raise whatever a damaged file makes them raise
            if path.is_file():
                with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                    if str(archive["request"]) == self._request(case):
                        return _facts({name: archive[name] for name in _ARRAYS}, len(case.images))
        return None

    def keep(self, case: Case, facts: CaseFacts) -> None:
        """Write a case's facts; raises `OutputError` where that cannot be done."""
        if self.folder is None:
            return
        arrays = {name: np.asarray(getattr(facts, name)) for name in _ARRAYS}
        request = np.array(self._request(case))
        make_folder(self.folder)
        write_atomically(
            self.folder / f"{case.identifier}.npz",
            lambda path: np.savez(path, request=request, **cast(dict[str, Any], arrays)),
        )

    def _request(self, case: Case) -> str:
        """All that the facts depend on."""
        files = stamps((*case.images, *([case.label] if case.label else [])), self.dataset.root)
        return json.dumps([FORMAT, files])


def _facts(arrays: dict[str, NDArray[Any]], channels: int) -> CaseFacts:
    """The facts in a file's arrays; `ValueError` for others."""
    for name, (kind, axes) in _ARRAYS.items():
        array = arrays[name]
        length = len(array) if name in ("spacing", "shape", "shape_after_crop") else 3
        if array.dtype.kind != kind or array.ndim != axes or length != 3 or not np.isfinite(array).all():
            raise ValueError(name)
        if length == 3 and name not in ("spacing", "shape", "shape_after_crop") and len(array) != channels:
            raise ValueError(name)
    z, y, x = arrays["spacing"].tolist()
    sizes: list[Sequence[int]] = [arrays[name].tolist() for name in ("shape", "shape_after_crop")]
    (d, h, w), (e, i, v) = sizes
    if not min(z, y, x) > 0 or not min(e, i, v) > 0 or (arrays["variances"] < 0).any():
        raise ValueError("no facts of a case")
    moments = [arrays[name] for name in ("means", "variances", "lows", "highs")]
    return CaseFacts((z, y, x), (d, h, w), (e, i, v), *moments, values=arrays["values"])
