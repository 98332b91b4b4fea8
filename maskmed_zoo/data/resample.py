"""Images and label maps at another voxel spacing.

Source: nnU-Net's `resample_data_or_seg` (Isensee et al., Nat Methods 18, 203, 2021). Grids are aligned at voxel edges:
the corners of the field of view stay where they are, so a resampled axis has the spacing `from * n_from / n_to`, which
rounding keeps near the wanted one.
Deviation: labels are interpolated linearly along every axis; nnU-Net takes the nearest slice along a thick axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maskmed_zoo.data.image import Geometry, times
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
"""Label scores closer than this are equal, and the higher label wins, as in nnU-Net."""


def target_shape(
    shape: Sequence[int], spacing_from: Sequence[float], spacing_to: Sequence[float]
) -> tuple[int, int, int]:
    """Voxels (z, y, x) that cover the field of view of `shape` at another spacing (mm), at least one along each."""
    z, y, x = (max(1, round(n * a / b)) for n, a, b in zip(shape, spacing_from, spacing_to, strict=True))
    return z, y, x


def check_resampled(geometry: Geometry, spacing: Sequence[float], values: int) -> None:
    """Raise `DataError` where an image would be blown up, or crushed, at another spacing (z, y, x) mm, or not fit.

    `values` is how many numbers of 32 bits are kept for each resampled voxel.
    """
    stored = geometry.canonical_shape
    shape = target_shape(stored, geometry.spacing, spacing)
    factors = [m / n for n, m in zip(stored, shape, strict=True)]
    sizes = (
        f"{geometry.source or 'image'}: {times(stored)} voxels of {times(geometry.spacing)} mm (z, y, x) become "
        f"{times(shape)} at the spacing {times(spacing)} mm"
    )
    remedy = "correct the voxel size in the file, or choose another spacing (data.spacing)"
    if max(factors) > LARGEST_FACTOR or math.prod(factors) > LARGEST_GROWTH:
        raise DataError(f"{sizes}, far more than there were; {remedy}")
    if min(factors) < 1 / LARGEST_FACTOR or any(n > FEW and m == 1 for n, m in zip(stored, shape, strict=True)):
        raise DataError(f"{sizes}, far fewer than there were; {remedy}")
    check_available(4 * values * math.prod(shape), f"{sizes}, which")


def resample_image(
    array: NDArray[Any], spacing_from: Sequence[float], spacing_to: Sequence[float]
) -> NDArray[np.float32]:
    """Image (c z y x) at another spacing (z, y, x) mm: cubic spline within each channel's range of values, float32.

    When one axis is more than 3 times as coarse as the finest, before or after, it takes the nearest slice instead.
    An image whose shape would not change is returned with its values untouched.
    """
    image = array.astype(np.float32, copy=False)
    shape = target_shape(image.shape[1:], spacing_from, spacing_to)
    if shape == image.shape[1:]:
        return image
    thick = _thick_axis(spacing_from, spacing_to)
    result = np.empty((image.shape[0], *shape), np.float32)
    for channel, out in zip(image, result, strict=True):
        if thick is None:
            _spline(channel, out)
            continue
        planes, slices = np.moveaxis(channel, thick, 0), np.moveaxis(out, thick, 0)
        count, wanted = planes.shape[0], slices.shape[0]
        nearest = (2 * np.arange(wanted) + 1) * count // (2 * wanted)
        for index in np.unique(nearest):
            plane = np.empty(slices.shape[1:], np.float32)
            _spline(planes[index], plane)
            slices[nearest == index] = plane
    return result


def resample_labels(array: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """Label map (z y x) on a grid of `shape` voxels over the same field of view, of the same dtype.

    Each label's mask is interpolated linearly and the largest score wins, the higher label on a tie, so that no new
    values arise. Only the best score so far is kept, and each label works inside its bounding box.
    """
    if tuple(shape) == array.shape:
        return array
    axes = [_linear_weights(n, m) for n, m in zip(array.shape, shape, strict=True)]
    best = np.zeros(tuple(shape), np.float32)
    result = np.zeros(tuple(shape), array.dtype)
    values, inverse = np.unique(array, return_inverse=True)
    for value, box in zip(values, ndimage.find_objects(inverse.reshape(array.shape) + 1), strict=True):
        region: list[slice] = []
        for (low, high, _), bounds in zip(axes, box, strict=True):
            touched = np.flatnonzero((high >= bounds.start) & (low < bounds.stop))
            region.append(slice(touched[0], touched[-1] + 1) if touched.size else slice(0, 0))
        where = tuple(region)
        if not best[where].size:
            continue
        inner = tuple(slice(low[r].min(), high[r].max() + 1) for (low, high, _), r in zip(axes, region, strict=True))
        score = (array[inner] == value).astype(np.float32)
        for axis, ((low, high, weight), r, i) in enumerate(zip(axes, region, inner, strict=True)):
            w = weight[r].reshape([-1 if a == axis else 1 for a in range(3)])
            score = score.take(low[r] - i.start, axis) * (1 - w) + score.take(high[r] - i.start, axis) * w
        wins = (score >= best[where] - TIE) & (score > 0)
        best[where][wins] = score[wins]
        result[where][wins] = value
    return result


def _thick_axis(spacing_from: Sequence[float], spacing_to: Sequence[float]) -> int | None:
    """The coarsest axis of the first spacing that is anisotropic, if it is a single one."""
    for spacing in (spacing_from, spacing_to):
        if max(spacing) / min(spacing) > ANISOTROPIC:
            coarsest = [axis for axis, size in enumerate(spacing) if size == max(spacing)]
            return coarsest[0] if len(coarsest) == 1 else None
    return None


def _spline(source: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Cubic spline of `source` on the grid of `out`, clipped to the source's range."""
    if source.shape == out.shape:
        out[...] = source
        return
    factors = [m / n for m, n in zip(out.shape, source.shape, strict=True)]
    ndimage.zoom(source, factors, output=out, order=3, mode="nearest", grid_mode=True)
    np.clip(out, source.min(), source.max(), out=out)


def _linear_weights(size: int, wanted: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """For each of `wanted` voxels: its two neighbours among `size`, and the weight of the second."""
    twice = (2 * np.arange(wanted) + 1) * size - wanted  # position times 2 * wanted, exact
    position = np.clip(twice / (2 * wanted), 0, size - 1)
    low = np.floor(position).astype(np.intp)
    return low, np.minimum(low + 1, size - 1), (position - low).astype(np.float32)
