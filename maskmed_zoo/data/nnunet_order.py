"""The order in which nnU-Net sees the voxels of a file: that of the file itself, and then that of its plan.

nnU-Net does not turn images, so its axes, which it mirrors and along which windows are spread, are those of each file.
Source: nnU-Net v2's `SimpleITKIO` and `NibabelIO`, which give (k j i), `NibabelIOWithReorient`, which gives (z y x) in
RAS as `data.image` does, and `transpose_forward` of a plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import NDArray

from maskmed_zoo.data.image import Geometry

Value = TypeVar("Value", bound=np.generic)
READERS = {"SimpleITKIO": False, "NibabelIO": False, "NibabelIOWithReorient": True}
"""Of nnU-Net, for 3-D images; whether they turn them to RAS."""


@dataclass(frozen=True)
class VoxelOrder:
    """From canonical arrays (… z y x): their axis `axes[i]` becomes axis i, the axes `flipped` are then reversed."""

    axes: tuple[int, int, int]
    flipped: tuple[int, ...]

    @classmethod
    def of(cls, geometry: Geometry, transpose: Sequence[int], *, turns: bool) -> VoxelOrder:
        """For a file, the `transpose_forward` of a plan, and whether the plan's reader `turns` images to RAS."""
        if turns:
            return cls((transpose[0], transpose[1], transpose[2]), ())
        orientation = io_orientation(geometry.affine)[::-1]  # of k, j, i: which of x, y, z, and whether forward
        axes = [2 - int(orientation[axis, 0]) for axis in transpose]
        flipped = tuple(place for place, axis in enumerate(transpose) if orientation[axis, 1] < 0)
        return cls((axes[0], axes[1], axes[2]), flipped)

    def turned(self, array: NDArray[Value]) -> NDArray[Value]:
        """A view of a canonical array (… z y x) in nnU-Net's order."""
        leading = array.ndim - 3
        view = array.transpose(*range(leading), *(leading + axis for axis in self.axes))
        return np.flip(view, tuple(leading + axis for axis in self.flipped))

    def back(self, array: NDArray[Value]) -> NDArray[Value]:
        """An array in nnU-Net's order as a canonical one, contiguous: the inverse of `turned`."""
        leading = array.ndim - 3
        view = np.flip(array, tuple(leading + axis for axis in self.flipped))
        order = np.argsort(self.axes).tolist()
        return np.ascontiguousarray(view.transpose(*range(leading), *(leading + axis for axis in order)))

    def geometry(self, geometry: Geometry) -> Geometry:
        """The grid of a turned array: sizes and spacings alone mean something."""
        shape, spacing = geometry.canonical_shape, geometry.spacing
        z, y, x = self.axes
        affine = np.diag([spacing[x], spacing[y], spacing[z], 1.0])
        return Geometry(affine, (shape[x], shape[y], shape[z]), source=geometry.source)
