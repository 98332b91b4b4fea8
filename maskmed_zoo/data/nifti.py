"""Reading images and label maps from NIfTI files, and writing label maps back onto the very same voxel grid.

Idea: everything behind this file sees one orientation, `array[z, y, x]` in closest-canonical RAS: the x axis runs left
to right, y posterior to anterior, z inferior to superior. `Geometry` remembers how the file was stored, so that a
label map can be written with the shape, affine, codes and units of the image it belongs to.
Source: the NIfTI-1 standard (https://nifti.nimh.nih.gov); orientations by nibabel's `io_orientation`.
Deviations: a file is decompressed as a whole, so that a truncated or damaged .gz is noticed wherever the damage is;
label maps are always written as NIfTI-1 (an affine read from NIfTI-2 is rounded to 32 bits).
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray

from maskmed_zoo.errors import DataError
from maskmed_zoo.settings import Size3, Spacing3

HEADER_FIELDS = (
    *("pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
"""What of a header is carried over to a written label map, besides shape and units."""

_MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # NIfTI spatial unit codes: unknown, metre, mm, micrometre
_CANONICAL = np.array([[0, 1], [1, 1], [2, 1]])


@dataclass(frozen=True, eq=False)
class Geometry:
    """The voxel grid of a file as stored: `affine` maps (i, j, k) to RAS+ in the units of `xyzt_units`.

    `header` holds the raw values of `HEADER_FIELDS`; when it is empty, a written file gets an sform with code 2.
    """

    affine: NDArray[np.float64]
    shape: Size3
    xyzt_units: int = 2
    header: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def canonical_shape(self) -> Size3:
        """Shape (z, y, x) of the canonical array."""
        x, y, z = (self.shape[axis] for axis in self._stored_axes())
        return z, y, x

    @property
    def spacing(self) -> Spacing3:
        """Voxel size (z, y, x) of the canonical array, mm, from the affine (not from pixdim)."""
        sizes = np.linalg.norm(self.affine[:3, :3], axis=0) * self._millimetres
        x, y, z = (float(sizes[axis]) for axis in self._stored_axes())
        return z, y, x

    @property
    def canonical_affine(self) -> NDArray[np.float64]:
        """4x4 matrix from canonical (x, y, z) indices, in this order, to RAS+ mm."""
        to_mm = np.diag([self._millimetres] * 3 + [1.0])
        return to_mm @ self.affine @ inv_ornt_aff(io_orientation(self.affine), self.shape)

    def to_canonical(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Array (i, j, k) as stored -> contiguous, writable (z, y, x) array in closest-canonical RAS."""
        turned = apply_orientation(stored, io_orientation(self.affine)).transpose(2, 1, 0)
        return np.require(turned, requirements=["C", "W"])

    def from_canonical(self, array: NDArray[Any]) -> NDArray[Any]:
        """The inverse of `to_canonical`."""
        back = ornt_transform(_CANONICAL, io_orientation(self.affine))
        return np.asfortranarray(apply_orientation(array.transpose(2, 1, 0), back))

    @property
    def _millimetres(self) -> float:
        return _MILLIMETRES.get(self.xyzt_units & 7, 1.0)

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


def read_image(path: str | Path) -> Volume:
    """Read a 3-D .nii or .nii.gz image: float32 (z, y, x), in the file's own intensity units (HU for CT).

    Raises `DataError` if the file is missing, damaged, not 3-D, empty, without a usable affine or not finite.
    """
    data, geometry = _read(Path(path))
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused below
        array = geometry.to_canonical(data).astype(np.float32, copy=False)
    _refuse_non_finite(array, Path(path))
    return Volume(array, geometry, Path(path))


def read_labels(path: str | Path) -> Volume:
    """Read a 3-D .nii or .nii.gz label map: int16 (z, y, x).

    Raises `DataError` as `read_image` does, and for values that are not integers (to 0.001) or do not fit int16.
    """
    path = Path(path)
    data, geometry = _read(path)
    if data.dtype.kind == "f":
        _refuse_non_finite(data, path)
        rounded = np.rint(data)
        wrong = int(np.count_nonzero(np.abs(data - rounded) > 1e-3))
        if wrong:
            raise DataError(
                f"{path}: {wrong} voxels are not integers; a label map is due here: save one label per voxel"
            )
        data = rounded
    low, high = float(data.min()), float(data.max())
    if low < -(2**15) or high >= 2**15:
        raise DataError(f"{path}: label values reach {low:g} … {high:g}, expected 0 … 32767; renumber the labels")
    return Volume(geometry.to_canonical(data).astype(np.int16, copy=False), geometry, path)


def write_labels(path: str | Path, array_zyx: NDArray[Any], geometry: Geometry) -> None:
    """Write a canonical label map (z, y, x) onto the grid of `geometry`, uint8 or, above 255, uint16.

    The file appears whole or not at all. Raises `DataError` if `path` is not a .nii.gz that can be written, the array
    has another shape than `geometry.canonical_shape`, or values are not integers from 0 to 65535.
    """
    path = Path(path)
    if not path.name.endswith(".nii.gz"):
        raise DataError(f"{path}: label maps are written as .nii.gz; give a name that ends so")
    if array_zyx.shape != geometry.canonical_shape:
        raise DataError(
            f"{path}: label map has shape {array_zyx.shape}, its image {geometry.canonical_shape} (z, y, x)"
        )
    if array_zyx.dtype.kind not in "biu":
        raise DataError(f"{path}: labels have type {array_zyx.dtype}, expected integers; take the argmax first")
    low, high = int(array_zyx.min()), int(array_zyx.max())
    if low < 0 or high > 65535:
        raise DataError(f"{path}: labels reach {low} … {high}, expected 0 … 65535; renumber them")
    data = geometry.from_canonical(array_zyx.astype(np.uint8 if high <= 255 else np.uint16))
    header = nib.Nifti1Header()
    header.set_data_dtype(data.dtype)
    if geometry.header:
        for name in HEADER_FIELDS:
            header[name] = geometry.header[name]
    else:
        header.set_data_shape(data.shape)
        header.set_zooms(np.linalg.norm(geometry.affine[:3, :3], axis=0))
        header.set_sform(geometry.affine, 2)
    header["xyzt_units"] = geometry.xyzt_units
    content = gzip.compress(nib.Nifti1Image(data, None, header).to_bytes(), compresslevel=6, mtime=0)
    temporary = path.with_name(f".{uuid.uuid4().hex}.nii.gz")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)  # noqa: PTH105 - the name everybody looks for
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error}); check the folder") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


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
        raise DataError(f"{label.path}: {shapes}; {remedy}")
    corners = np.array([(*c, 1) for c in itertools.product(*((0, n - 1) for n in ours.canonical_shape[::-1]))])
    shift = corners @ (ours.canonical_affine - theirs.canonical_affine).T
    distance = float(np.linalg.norm(shift, axis=1).max())
    if distance > 0.01 * min(ours.spacing):
        where = f"voxels lie up to {distance:.3g} mm from those of {image.path}, expected the same affine"
        raise DataError(f"{label.path}: {where}; correct the header or {remedy}")


def _refuse_non_finite(array: NDArray[Any], path: Path) -> None:
    bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if bad:
        raise DataError(f"{path}: {bad} of {array.size} voxels are NaN or infinite; replace them by a finite value")


def _read(path: Path) -> tuple[NDArray[Any], Geometry]:
    """Scaled voxels (i, j, k) as stored, and their geometry."""
    if not path.name.endswith((".nii", ".nii.gz")):
        raise DataError(f"{path}: expected a .nii or .nii.gz file; convert it to NIfTI")
    if not path.is_file():
        raise DataError(f"{path}: no such file; check the path")
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
        loader = nib.Nifti2Image if nib.Nifti2Header.may_contain_header(raw) else nib.Nifti1Image
        image = loader.from_bytes(raw)
    except Exception as error:  # whatever nibabel, gzip or zlib make of damaged bytes
        raise DataError(f"{path}: not a readable NIfTI file ({_one_line(error)}); copy or convert it again") from error
    shape = image.shape
    if any(n < 1 for n in shape):
        raise DataError(
            f"{path}: shape {shape} has an empty axis; expected at least one voxel along each: export it again"
        )
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        raise DataError(f"{path}: {len(shape)}-D with shape {shape}, expected 3-D; save one file per volume or channel")
    affine = np.asarray(image.affine, np.float64)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not (np.isfinite(affine).all() and lengths.all()) or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:
        raise DataError(f"{path}: the affine is singular, voxels have no size or direction; repair the header")
    try:
        data = np.asanyarray(image.dataobj)
    except Exception as error:
        raise DataError(
            f"{path}: voxels cannot be read ({_one_line(error)}); the file is cut off: copy it again"
        ) from error
    if data.dtype.kind not in "biuf":
        raise DataError(f"{path}: voxels of type {data.dtype}, expected plain numbers; save one file per channel")
    i, j, k = shape[:3]
    header = {name: np.array(image.header[name]) for name in HEADER_FIELDS}
    return data.reshape(i, j, k), Geometry(affine, (i, j, k), int(image.header["xyzt_units"]), header)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
