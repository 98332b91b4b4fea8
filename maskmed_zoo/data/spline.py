"""Interpolation along one axis as a matrix, a few rows at a time.

Idea: a cubic spline is a linear map of the values along each axis, of which a voxel feels its neighbours less and less:
by the factor `sqrt(3) - 2` per voxel. So any rows of that matrix are known from the few voxels around them, the three
axes are three multiplications, and a volume is resampled in slabs of slices which need not all be in memory.
Source: `scipy.ndimage.zoom` with `grid_mode` and mode 'nearest', which is what nnU-Net's resampling comes to: an image
goes on beyond its edge with the value that it has there, for `PAD` voxels, and is then mirrored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

PAD = 12
"""Voxels by which SciPy continues an image before it computes its spline."""
MARGIN = 14
"""Voxels on each side that a row of the matrix looks at: those further away count less than 2e-8."""
BLOCK = 32
"""Rows of the matrix at a time, where that is not too many columns."""


def positions(size: int, wanted: int, rows: slice | None = None) -> NDArray[np.float64]:
    """Where `wanted` voxels over the field of view of `size` voxels lie among these, edges aligned."""
    index = np.arange(wanted)[rows or slice(None)]
    return np.asarray((size / wanted) * (index + 0.5) - 0.5, np.float64)


def nearest_index(size: int, wanted: int) -> NDArray[np.intp]:
    """For each of `wanted` voxels: the nearest of `size` ones, the later of two."""
    return np.clip(np.floor(positions(size, wanted) + 0.5), 0, size - 1).astype(np.intp)


@dataclass(frozen=True)
class CubicRows:
    """Output voxels `rows` of an axis, as weights (rows, columns) of the input voxels `columns`."""

    rows: slice
    columns: slice
    weights: NDArray[np.float32]


def cubic_rows(size: int, wanted: int, rows: slice) -> CubicRows:
    """Some rows of the cubic spline from `size` to `wanted` voxels."""
    place = positions(size, wanted, rows)
    low = np.floor(place).astype(np.intp)
    columns = slice(max(0, int(low[0]) - MARGIN), min(size, int(low[-1]) + 2 + MARGIN))
    unit = np.pad(np.eye(columns.stop - columns.start), ((PAD, PAD), (0, 0)), mode="edge")
    coefficients = ndimage.spline_filter1d(unit, 3, axis=0, mode="nearest")
    t = (place - low)[:, None]
    taps = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    first = low - columns.start + PAD - 1
    weights = sum(tap / 6 * coefficients[first + step] for step, tap in enumerate(taps))
    return CubicRows(rows, columns, np.asarray(weights, np.float32))


def cubic_blocks(size: int, wanted: int) -> Iterator[CubicRows]:
    """All rows from `size` to `wanted` voxels, a block of them at a time."""
    step = max(1, min(BLOCK, round(BLOCK * wanted / size) + 1))
    for start in range(0, wanted, step):
        yield cubic_rows(size, wanted, slice(start, min(start + step, wanted)))
