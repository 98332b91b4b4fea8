"""Where to look: a window around a point of a volume, the middle of a label, the token at a place.

Points are voxel indices (z, y, x); the centre of voxel i is at i.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskmed_zoo.settings import Size3

Point = tuple[float, float, float]
Mask = NDArray[np.bool_]


def centroid(mask: Mask) -> Point:
    """Mean of the voxels of a mask (z y x) that has some."""
    axes: list[float] = []
    for axis, size in enumerate(mask.shape):
        profile = mask.sum(tuple(a for a in range(3) if a != axis), dtype=np.int64)
        axes.append(float(profile @ np.arange(size) / profile.sum()))
    return axes[0], axes[1], axes[2]


def middle_voxel(mask: Mask) -> Size3:
    """The voxel of a mask (z y x) nearest to its centroid, so that it lies inside even where the label is bent."""
    voxels = np.argwhere(mask)
    z, y, x = voxels[((voxels - np.array(centroid(mask))) ** 2).sum(1).argmin()].tolist()
    return z, y, x


def window_around(point: Point, size: Sequence[int], window: Size3) -> tuple[slice, slice, slice]:
    """The window of a volume of `size` voxels, none smaller than the window, whose middle is nearest to a point."""
    starts = [min(max(round(p - (w - 1) / 2), 0), n - w) for p, n, w in zip(point, size, window, strict=True)]
    z, y, x = (slice(s, s + w) for s, w in zip(starts, window, strict=True))
    return z, y, x


def on_other_grid(point: Point, size: Sequence[int], other: Sequence[int]) -> Point:
    """The same place on a grid of `other` voxels over the same field of view."""
    z, y, x = ((p + 0.5) * m / n - 0.5 for p, n, m in zip(point, size, other, strict=True))
    return z, y, x


def voxel_of(voxel: Size3, size: Sequence[int], grid: Size3) -> Size3:
    """The voxel of a coarser grid that holds the centre of a voxel of a grid of `size`."""
    z, y, x = (min(int((v + 0.5) / n * g), g - 1) for v, n, g in zip(voxel, size, grid, strict=True))
    return z, y, x


def largest_label(labels: NDArray[Any]) -> int | None:
    """The foreground label with most voxels, None without foreground."""
    counts = np.bincount(labels.ravel())
    counts[0] = 0
    return int(counts.argmax()) if counts.any() else None
