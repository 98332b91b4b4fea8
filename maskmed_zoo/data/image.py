"""An image apart from its file: an array in one orientation, and where its voxels lie in the world.

Idea: everything behind this file sees one orientation, `array[z, y, x]` in closest-canonical RAS: the x axis runs left
to right, y posterior to anterior, z inferior to superior. `Geometry` remembers how the file was stored, so that a
label map can be written onto the very grid of the image it belongs to.
Orientations by nibabel's `io_orientation`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray

from maskmed_zoo.data.problem import ProblemError
from maskmed_zoo.errors import ArgumentError, DataError
from maskmed_zoo.settings import Size3, Spacing3

TOLERANCE = 0.01
"""Share of the smallest voxel edge by which the voxels of one grid may be off."""
SMALLEST, LARGEST = 0.05, 10_000.0
"""mm that the longest axis of a field of view has at least, a specimen in a micro-CT, and at most, more than a body."""
SHORTEST_EDGE = 1e-5
"""mm, 10 nm: below it, no voxel of an image that was made by light or X-rays."""
THICKEST = 50.0
"""mm of a voxel's edge above which a unit is not proposed in the place of the one stated."""
FARTHEST = 1e6
"""mm from the origin, above which the positions of voxels are lost in the 32 bits that files have for them."""
_UNITS = {1000.0: "metre", 1.0: "mm", 0.001: "micrometre"}
_CANONICAL = np.array([[0, 1], [1, 1], [2, 1]])


@dataclass(frozen=True, eq=False)
class Geometry:
    """The voxel grid of a file as stored: `affine` maps (i, j, k) to RAS+ in units of `unit_mm` millimetres.

    `header` is what the file format `format` keeps of the file to write the same grid again; no other format reads it.
    `source` is the file, for messages.
    """

    affine: NDArray[np.float64]
    shape: Size3
    unit_mm: float = 1.0
    format: str = ""
    header: Mapping[str, Any] = field(default_factory=dict[str, Any])
    source: str = ""

    @property
    def canonical_shape(self) -> Size3:
        """Shape (z, y, x) of the canonical array."""
        x, y, z = (self.shape[axis] for axis in self._stored_axes())
        return z, y, x

    @property
    def spacing(self) -> Spacing3:
        """Voxel size (z, y, x) of the canonical array, mm."""
        sizes = np.linalg.norm(self.affine[:3, :3], axis=0) * self.unit_mm
        x, y, z = (float(sizes[axis]) for axis in self._stored_axes())
        return z, y, x

    @property
    def canonical_affine(self) -> NDArray[np.float64]:
        """4x4 matrix from canonical (x, y, z) indices, in this order, to RAS+ mm."""
        to_mm = np.diag([self.unit_mm] * 3 + [1.0])
        return to_mm @ self.affine @ inv_ornt_aff(io_orientation(self.affine), self.shape)

    def to_canonical(self, stored: NDArray[Any], dtype: np.dtype[Any] | None = None) -> NDArray[Any]:
        """Array (i, j, k) as stored -> contiguous, writable (z, y, x) array in closest-canonical RAS."""
        turned = apply_orientation(stored, io_orientation(self.affine)).transpose(2, 1, 0)
        return np.require(turned, dtype, requirements=["C", "W"])

    def from_canonical(self, array: NDArray[Any]) -> NDArray[Any]:
        """The inverse of `to_canonical`, a view of the array."""
        back = ornt_transform(_CANONICAL, io_orientation(self.affine))
        return apply_orientation(array.transpose(2, 1, 0), back)

    def _stored_axes(self) -> list[int]:
        """For x, y and z of the canonical array: the axis of the file it comes from."""
        return np.argsort(io_orientation(self.affine)[:, 0]).tolist()


@dataclass(frozen=True, eq=False)
class Volume:
    """A canonical array (z, y, x), float32 for images and int16 for labels, with the geometry of its file."""

    array: NDArray[Any]
    geometry: Geometry
    path: Path

    @property
    def spacing(self) -> Spacing3:
        """Voxel size (z, y, x), mm."""
        return self.geometry.spacing


def geometry_of(
    array: NDArray[Any], *, spacing: Spacing3 | None = None, affine: NDArray[np.float64] | None = None
) -> Geometry:
    """The geometry of a canonical array (… z y x) that comes from no file.

    `affine` maps its (x, y, z) indices to RAS+ mm; without one the array lies along the axes with `spacing` (z, y, x).
    Raises `ArgumentError` for sizes or matrices that no voxels have, and where the axes do not lie as in RAS.
    """
    z, y, x = array.shape[-3:]
    if affine is None:
        sizes = np.asarray(spacing, np.float64)
        if sizes.shape != (3,) or not np.isfinite(sizes).all() or not (sizes > 0).all():
            raise ArgumentError(f"spacing is {spacing}, expected three positive numbers (z, y, x) in mm")
        affine = np.diag([*sizes[::-1], 1.0])
    matrix = np.asarray(affine, np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not abs(np.linalg.det(matrix)) > 0:
        raise ArgumentError("affine is no invertible 4x4 matrix; expected one from (x, y, z) indices to RAS+ mm")
    if not np.array_equal(io_orientation(matrix), _CANONICAL):
        raise ArgumentError(
            "the array does not lie as in RAS: by its affine an axis is turned or exchanged; turn it first, or read "
            "the file with maskmed_zoo.data.formats.read_image"
        )
    return Geometry(matrix, (x, y, z))


def is_small(dtype: np.dtype[Any]) -> bool:
    """Whether values are whole numbers of up to 16 bits, as of a CT: float32 holds them too, in more memory."""
    return dtype.kind in "iu" and dtype.itemsize <= 2


def is_finite(array: NDArray[Any]) -> bool:
    """Whether all values are numbers."""
    return array.dtype.kind != "f" or all(bool(np.isfinite(part).all()) for one in array for part in one)


def check_same_geometry(image: Volume, label: Volume) -> None:
    """Raise `DataError` unless both volumes cover the same voxels of the world.

    Canonical shapes must be equal, and no voxel centre may lie further from its partner than 1 % of the smallest voxel
    edge (0.01 mm at 1 mm): tens of times what 32-bit affines and quaternions lose over a body's extent, and far below
    what could move a contour. Files stored in different orientations are the same grid if their affines say so.
    """
    ours, theirs = image.geometry, label.geometry
    remedy = "resample one onto the other's grid"
    if ours.canonical_shape != theirs.canonical_shape:
        shapes = f"shape {theirs.canonical_shape} (z, y, x), expected {ours.canonical_shape} as {image.path}"
        raise ProblemError(label.path, shapes, remedy, kind="geometry")
    distance = _largest_shift(ours, theirs)
    if distance > TOLERANCE * min(ours.spacing):
        where = f"voxels lie up to {distance:.3g} mm from those of {image.path}, expected the same affine"
        raise ProblemError(label.path, where, f"correct the header or {remedy}", kind="geometry")


def is_same_grid(ours: Geometry, theirs: Geometry) -> bool:
    """Whether two grids have the same voxels in the world, as `check_same_geometry` asks for."""
    return ours.shape == theirs.shape and _largest_shift(ours, theirs) <= TOLERANCE * min(ours.spacing)


def _largest_shift(ours: Geometry, theirs: Geometry) -> float:
    """Distance, mm, of the voxel centres that lie furthest from their partners, for grids of one shape."""
    corners = np.array([(*c, 1) for c in itertools.product(*((0, n - 1) for n in ours.canonical_shape[::-1]))])
    shift = corners @ (ours.canonical_affine - theirs.canonical_affine).T
    return float(np.linalg.norm(shift, axis=1).max())


def check_plausible(geometry: Geometry) -> None:
    """Raise `DataError` for a field of view that no image of a body or a specimen has, and say what its unit would be.

    The affine has to be finite and regular. Bounds are those of `SMALLEST`, `LARGEST`, `SHORTEST_EDGE`, `FARTHEST`.
    """
    edges = np.linalg.norm(geometry.affine[:3, :3], axis=0)
    extent = edges * geometry.shape
    if _is_plausible(edges, extent, geometry.unit_mm):
        far = float(np.abs(geometry.affine[:3, 3]).max()) * geometry.unit_mm
        if far > FARTHEST:
            raise DataError(f"{geometry.source}: voxels lie {far:.3g} mm from the origin; correct the header's offsets")
        return
    stated = _UNITS.get(geometry.unit_mm, f"{geometry.unit_mm:g} mm")
    others = [n for size, n in _UNITS.items() if _is_plausible(edges, extent, size) and edges.max() * size < THICKEST]
    remedy = "correct the header"
    if others:
        unit = "mm" if "mm" in others else others[0]
        remedy = f"in {unit} it would be {times(extent)} {unit}: correct the unit in the header, or the voxel size"
    raise DataError(
        f"{geometry.source}: a field of view of {times(extent * geometry.unit_mm)} mm, of {times(geometry.shape)} "
        f"voxels, is none of a body or a specimen ({SMALLEST:g} mm to {LARGEST / 1000:g} m); the header counts in "
        f"{stated}; {remedy}"
    )


def _is_plausible(edges: NDArray[np.float64], extent: NDArray[np.float64], unit_mm: float) -> bool:
    return bool(edges.min() * unit_mm >= SHORTEST_EDGE and SMALLEST <= extent.max() * unit_mm <= LARGEST)


def times(numbers: Iterable[float]) -> str:
    """Sizes along axes, as `0.5 x 20 x 1000`."""
    return " x ".join(f"{number:.4g}" if abs(number) < 1000 else f"{number:.0f}" for number in numbers)
