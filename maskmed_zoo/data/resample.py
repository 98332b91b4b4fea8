"""Images and label maps at another voxel spacing, slab by slab.

Source: nnU-Net's `resample_data_or_seg_to_shape` (Isensee et al., Nat Methods 18, 203, 2021). Grids are aligned at
voxel edges: the corners of the field of view stay where they are, so a resampled axis has the spacing
`from * n_from / n_to`, which rounding keeps near the wanted one. Images take a cubic spline, within the range of their
values, labels the one whose linearly interpolated mask is the largest; along a thick axis both take the nearest slice.

What is resampled may be anything that gives slices along z, such as a file's map: it is never held as a whole, and the
result goes where it is wanted a few slices at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maskmed_zoo.data.image import Geometry, times
from maskmed_zoo.data.spline import CubicRows, cubic_blocks, cubic_rows, nearest_index, positions
from maskmed_zoo.errors import DataError
from maskmed_zoo.memory import check_available

LARGEST_FACTOR = 100
"""By how much an axis may have more or fewer voxels than before; a wrong unit makes 1000."""
LARGEST_GROWTH = 10_000
"""By how much a volume may have more voxels than before."""
FEW = 8
"""Voxels along an axis that may become a single one."""
ANISOTROPIC = 3.0
"""Above this ratio of largest to smallest spacing, the thick axis is not interpolated."""
TIE = 1e-5
"""Label scores closer than this are equal, and the nearest voxel's label wins if it is one of them, as in nnU-Net."""
CHUNK = 2**24
"""Values held at a time (64 MB of float32); one slice and its neighbours where that is more."""
ROWS = 64
"""Most slices of a result at a time: the matrix along z has the more columns the more rows it has."""


class Slices(Protocol):
    """A volume (z y x) of which slices along z can be read."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, index: slice, /) -> NDArray[Any]: ...


class Target(Protocol):
    """A volume (z y x) of which slices along z can be written."""

    def __setitem__(self, index: slice, values: NDArray[Any], /) -> None: ...


def target_shape(
    shape: Sequence[int], spacing_from: Sequence[float], spacing_to: Sequence[float]
) -> tuple[int, int, int]:
    """Voxels (z, y, x) that cover the field of view of `shape` at another spacing (mm), at least one along each."""
    z, y, x = (max(1, round(a / b * n)) for n, a, b in zip(shape, spacing_from, spacing_to, strict=True))
    return z, y, x


def thick_axis(spacing_from: Sequence[float], spacing_to: Sequence[float]) -> int | None:
    """The coarsest axis of the first spacing that is anisotropic, if it is a single one: it is not interpolated."""
    for spacing in (spacing_from, spacing_to):
        if max(spacing) / min(spacing) > ANISOTROPIC:
            coarsest = [axis for axis, size in enumerate(spacing) if size == max(spacing)]
            return coarsest[0] if len(coarsest) == 1 else None
    return None


def check_resampled(
    geometry: Geometry, spacing: Sequence[float], values: int, shape: Sequence[int] | None = None
) -> None:
    """Raise `DataError` where an image would be blown up, or crushed, at another spacing (z, y, x) mm, or not fit.

    `values` is how many numbers of 32 bits are kept for each resampled voxel, `shape` what a crop leaves of the image.
    """
    stored = geometry.canonical_shape if shape is None else shape
    wanted = target_shape(stored, geometry.spacing, spacing)
    factors = [m / n for n, m in zip(stored, wanted, strict=True)]
    sizes = (
        f"{geometry.source or 'image'}: {times(stored)} voxels of {times(geometry.spacing)} mm (z, y, x) become "
        f"{times(wanted)} at the spacing {times(spacing)} mm"
    )
    remedy = "correct the voxel size in the file, or choose another spacing (data.spacing)"
    if max(factors) > LARGEST_FACTOR or math.prod(factors) > LARGEST_GROWTH:
        raise DataError(f"{sizes}, far more than there were; {remedy}")
    if min(factors) < 1 / LARGEST_FACTOR or any(n > FEW and m == 1 for n, m in zip(stored, wanted, strict=True)):
        raise DataError(f"{sizes}, far fewer than there were; {remedy}")
    check_available(4 * values * math.prod(wanted), f"{sizes}, which")


def slabs(shape: Sequence[int]) -> Iterator[slice]:
    """Slices along the first axis of a volume, a few at a time."""
    step = max(1, CHUNK // 4 // math.prod(shape[1:]))
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


class Resampled:
    """A volume (z y x) on a grid of `shape` voxels over the same field of view, float32, made when slices are read.

    A cubic spline, within the range of values; the `thick` axis takes the nearest slice, and then each slice keeps
    within its own range. Along an axis whose voxels do not change, and for an unchanged shape, values are as they were.
    """

    def __init__(self, source: Slices, shape: Sequence[int], thick: int | None) -> None:
        self.source, self.shape, self.thick = source, tuple(shape), thick
        self.sizes = tuple(source.shape)
        if self.shape == self.sizes:
            return
        self.chosen = None if thick is None else nearest_index(self.sizes[thick], shape[thick])
        low, high = _range(source, thick)
        if thick is not None and self.chosen is not None:
            low, high = low.take(self.chosen, thick), high.take(self.chosen, thick)
        self.bounds = low, high
        self.planes = [
            None if axis == thick or self.sizes[axis] == shape[axis] else [*cubic_blocks(self.sizes[axis], shape[axis])]
            for axis in (1, 2)
        ]

    def __getitem__(self, index: slice) -> NDArray[np.float32]:
        first, last, _ = index.indices(self.shape[0])
        result = np.empty((max(0, last - first), *self.shape[1:]), np.float32)
        for rows in self.parts(first, last):
            result[rows.start - first : rows.stop - first] = self._rows(rows)
        return result

    def into(self, out: Target) -> None:
        """Write all of it, a few slices at a time."""
        for rows in self.parts(0, self.shape[0]):
            out[rows] = self._rows(rows)

    def parts(self, first: int, last: int) -> Iterator[slice]:
        """Slices of the result that are made at a time, so that they and what they need stay near `CHUNK`."""
        (size, *before), (wanted, *after) = self.sizes, self.shape
        per_row = math.ceil(size / wanted) * math.prod(before) + 2 * math.prod(map(max, before, after))
        step = max(1, min(ROWS, CHUNK // per_row))
        for start in range(first, last, step):
            yield slice(start, min(start + step, last))

    def _rows(self, rows: slice) -> NDArray[np.float32]:
        if self.shape == self.sizes:
            return self.source[rows]
        slab = _along_z(self.source, rows, self.shape, self.chosen if self.thick == 0 else None)
        for axis, blocks in enumerate(self.planes, start=1):
            if axis == self.thick and self.chosen is not None:
                slab = slab.take(self.chosen, axis)
            elif blocks is not None:
                slab = _along(slab, axis, self.shape[axis], blocks)
        low, high = self.bounds
        return np.clip(slab, low[rows], high[rows]) if self.thick == 0 else np.clip(slab, low, high)


def resample_image(source: Slices, out: Target, shape: Sequence[int], thick: int | None) -> None:
    """Write a volume (z y x) on a grid of `shape` voxels over the same field of view into `out`: see `Resampled`."""
    Resampled(source, shape, thick).into(out)


def _range(source: Slices, thick: int | None) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Smallest and largest value, of the whole or of each slice along the thick axis, to be broadcast."""
    axes = tuple(axis for axis in range(3) if axis != thick)
    lows, highs = list[NDArray[Any]](), list[NDArray[Any]]()
    for part in slabs(source.shape):
        values = source[part]
        lows.append(values.min(axes, keepdims=True))
        highs.append(values.max(axes, keepdims=True))
    if thick == 0:
        return np.concatenate(lows), np.concatenate(highs)
    return np.minimum.reduce(lows), np.maximum.reduce(highs)


def _along_z(source: Slices, rows: slice, shape: Sequence[int], chosen: NDArray[np.intp] | None) -> NDArray[np.float32]:
    """Slices `rows` of the result, still with the source's rows and columns."""
    size, wanted = source.shape[0], shape[0]
    if chosen is not None:
        needed = chosen[rows]
        first, last = int(needed[0]), int(needed[-1])
        return np.asarray(source[first : last + 1], np.float32)[needed - first]
    if size == wanted:
        return np.asarray(source[rows], np.float32)
    block: CubicRows = cubic_rows(size, wanted, rows)
    slab = np.ascontiguousarray(source[block.columns], np.float32)
    return (block.weights @ slab.reshape(len(slab), -1)).reshape(-1, *slab.shape[1:])


def _along(slab: NDArray[np.float32], axis: int, wanted: int, blocks: Sequence[CubicRows]) -> NDArray[np.float32]:
    """A slab (z y x) with `wanted` voxels along y or x."""
    shape = list(slab.shape)
    shape[axis] = wanted
    result = np.empty(shape, np.float32)
    for block in blocks:
        if axis == 1:
            np.matmul(block.weights, slab[:, block.columns], out=result[:, block.rows])
        else:
            result[:, :, block.rows] = slab[:, :, block.columns] @ block.weights.T
    return result


def resample_labels(array: Slices, shape: Sequence[int], thick: int | None = None) -> NDArray[np.int16]:
    """Label map (z y x) on a grid of `shape` voxels over the same field of view, int16.

    Each label's mask is interpolated linearly, along a thick axis taken from the nearest slice, and the largest score
    wins; of equal ones that of the label at the nearest voxel, or else the lowest. Only the best score so far is kept,
    and each label works inside its bounding box, a slab of slices at a time.
    """
    result = np.zeros(tuple(shape), np.int16)
    if tuple(shape) == tuple(array.shape):
        result[...] = array[0 : shape[0]]
        return result
    axes = [_linear(n, m, is_thick=axis == thick) for axis, (n, m) in enumerate(zip(array.shape, shape, strict=True))]
    for rows in slabs(shape):
        low, high, weight, near = axes[0]
        low, high, weight, near = low[rows], high[rows], weight[rows], near[rows]
        first, last = int(low.min()), int(high.max())
        part = np.asarray(array[first : last + 1])
        result[rows] = _labels(part, [(low - first, high - first, weight, near - first), *axes[1:]])
    return result


Weights = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32], NDArray[np.intp]]


def _linear(size: int, wanted: int, *, is_thick: bool) -> Weights:
    """For each of `wanted` voxels: its two neighbours among `size`, the weight of the second, and the nearer one."""
    near = nearest_index(size, wanted)
    if is_thick:
        return near, near, np.zeros(wanted, np.float32), near
    place = np.clip(positions(size, wanted), 0, size - 1)
    low = np.floor(place).astype(np.intp)
    return low, np.minimum(low + 1, size - 1), (place - low).astype(np.float32), near


def _labels(array: NDArray[Any], axes: Sequence[Weights]) -> NDArray[Any]:
    """A slab of labels (z y x) where `axes` say."""
    shape = tuple(len(low) for low, *_ in axes)
    best = np.zeros(shape, np.float32)
    nearest = array[np.ix_(*(near for *_, near in axes))]
    result = np.zeros(shape, array.dtype)
    values, inverse = np.unique(array, return_inverse=True)
    for value, box in zip(values, ndimage.find_objects(inverse.reshape(array.shape) + 1), strict=True):
        region: list[slice] = []
        for (low, high, *_), bounds in zip(axes, box, strict=True):
            touched = np.flatnonzero((high >= bounds.start) & (low < bounds.stop))
            region.append(slice(touched[0], touched[-1] + 1) if touched.size else slice(0, 0))
        where = tuple(region)
        if not best[where].size:
            continue
        inner = tuple(slice(low[r].min(), high[r].max() + 1) for (low, high, *_), r in zip(axes, region, strict=True))
        score = (array[inner] == value).astype(np.float32)
        for axis, ((low, high, weight, _), r, i) in enumerate(zip(axes, region, inner, strict=True)):
            w = weight[r].reshape([-1 if a == axis else 1 for a in range(3)])
            score = score.take(low[r] - i.start, axis) * (1 - w) + score.take(high[r] - i.start, axis) * w
        held = best[where]
        wins = (score > held + TIE) | ((score >= held - TIE) & (score > 0) & (nearest[where] == value))
        held[wins] = score[wins]
        result[where][wins] = value
    return result
