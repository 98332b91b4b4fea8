"""The spacing and the median shape that a data set is planned with.

Idea: the median spacing, along each axis. Where one axis is three times as coarse as the others and has a third of
their voxels, slices are few, and the median would blur those of the finer cases away; there it is the 10th percentile.
Source: nnU-Net v2, `ExperimentPlanner.determine_fullres_target_spacing` and `compute_new_shape` (Isensee et al., Nat
Methods 18, 203, 2021). No deviation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maskmed_zoo.settings import Size3, Spacing3

THICK = 3
"""By how much an axis is coarser, and shorter, than every other one to be thick."""
THICK_PERCENTILE = 10
_ABOVE = 1e-5


@dataclass(frozen=True)
class Grid:
    """Target `spacing` (z, y, x) mm, the median `shape` (z, y, x) of the images at it, and the `thick` axis, if any."""

    spacing: Spacing3
    shape: tuple[float, float, float]
    thick: int | None
    cases: int

    @property
    def voxels(self) -> float:
        """Of all cases together, about."""
        return float(np.prod(self.shape, dtype=np.float64) * self.cases)


def grid_of(spacings: Sequence[Spacing3], shapes: Sequence[Size3]) -> Grid:
    """The grid for cases of these spacings (z, y, x) mm and shapes after the crop to the non-zero region (z, y, x)."""
    every = np.vstack(spacings).astype(np.float64)
    target = np.percentile(every, 50, 0)
    sizes = np.percentile(np.vstack(shapes), 50, 0)
    axis = int(np.argmax(target))
    others = [other for other in range(3) if other != axis]
    coarsest = float(target[others].max())
    is_thick = bool(target[axis] > THICK * coarsest and sizes[axis] * THICK < sizes[others].min())
    if is_thick:
        low = float(np.percentile(every[:, axis], THICK_PERCENTILE))
        target[axis] = low if low >= coarsest else coarsest + _ABOVE
    resampled = [
        [round(mm / wanted * side) for mm, wanted, side in zip(spacing, target.tolist(), shape, strict=True)]
        for spacing, shape in zip(every.tolist(), shapes, strict=True)
    ]
    z, y, x = target.tolist()
    depth, height, width = np.median(resampled, 0).tolist()
    return Grid((z, y, x), (depth, height, width), axis if is_thick else None, len(spacings))
