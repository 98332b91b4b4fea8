"""Separated objects of one label: counted in the label map, or read from a map of numbers beside it.

```
root/instancesTr/CASE.nii.gz   0 where the label map has background or 'ignore', else the number of the object
```
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from maskmed_zoo.data.case import Case
from maskmed_zoo.data.dataset import RawDataset
from maskmed_zoo.data.formats import read_labels
from maskmed_zoo.data.image import Geometry, Volume, check_same_geometry
from maskmed_zoo.errors import DataError

FOLDER = "instancesTr"


def components(labels: NDArray[np.int16], values: Sequence[int]) -> NDArray[np.int32]:
    """Numbers 1, 2, … of the 26-connected parts of each of `values` in a label map (z y x), 0 elsewhere."""
    numbers = np.zeros(labels.shape, np.int32)
    count = 0
    boxes = ndimage.find_objects(labels)
    for value in values:
        box = boxes[value - 1] if value <= len(boxes) else None
        if box is not None:
            parts, found = cast(tuple[NDArray[np.int32], int], ndimage.label(labels[box] == value, np.ones((3, 3, 3))))
            numbers[box] += np.where(parts > 0, parts + count, 0)
            count += found
    return numbers


def instances_file(case: Case, dataset: RawDataset) -> Path:
    """Where the case's map of numbers lies."""
    return dataset.root / FOLDER / f"{case.identifier}{dataset.ending}"


def read_instances(case: Case, dataset: RawDataset, labels: NDArray[np.int16], geometry: Geometry) -> NDArray[np.int16]:
    """The case's map of numbers (z y x), on the voxels of its label map.

    Raises `DataError` for a map that is missing, damaged or on another grid, and unless labelled voxels, and they
    alone, have numbers above 0, each number on one label.
    """
    volume = read_labels(instances_file(case, dataset))
    check_same_geometry(Volume(labels, geometry, case.label or case.images[0]), volume)
    numbers, path = volume.array, volume.path
    if numbers.min() < 0:
        raise DataError(f"{path}: number {numbers.min()}, expected 1, 2, … for objects and 0 elsewhere; renumber them")
    inside = np.isin(labels, list(dataset.labels.foreground.values()))
    if (wrong := inside != (numbers > 0)).any():
        first = tuple(np.argwhere(wrong)[0].tolist())
        raise DataError(
            f"{path}: {np.count_nonzero(wrong)} voxels have a number and no label or a label and no number, the first "
            f"at {first} (z, y, x); number the objects of {case.label}, all of them and nothing else"
        )
    pairs = np.unique(np.stack([numbers[inside], labels[inside]]), axis=1)
    repeated = pairs[0][1:][np.diff(pairs[0]) == 0]
    if repeated.size:
        raise DataError(f"{path}: number {repeated[0]} is on several labels; give each object a number of its own")
    return numbers


def resample_instances(
    numbers: NDArray[np.int16],
    labels: NDArray[np.int16],
    resampled: NDArray[np.int16],
    values: Sequence[int],
    spacing: Sequence[float],
) -> NDArray[np.int16]:
    """Numbers for the voxels of `values` in `resampled`, a label map over the field of view of `labels`.

    Each takes the number of the nearest voxel of its own label, so that the two maps agree whatever their grids.
    `spacing` (z, y, x) is that of `labels`.
    """
    result = np.zeros(resampled.shape, numbers.dtype)
    scale = np.array(labels.shape) / resampled.shape
    for value in values:
        known, wanted = np.argwhere(labels == value), np.argwhere(resampled == value)
        if len(wanted):
            _, nearest = KDTree(known * spacing).query(((wanted + 0.5) * scale - 0.5) * spacing)
            result[tuple(wanted.T)] = numbers[tuple(known[nearest].T)]
    return result
