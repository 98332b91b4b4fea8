"""NIfTI, plain or compressed.

Source: the NIfTI-1 standard (https://nifti.nimh.nih.gov). A label map gets the shape, affine, codes and units of its
image. Deviations: a file is decompressed as a whole, so that a truncated or damaged .gz is noticed wherever the damage
is; label maps are always written as NIfTI-1 (an affine read from NIfTI-2 is rounded to 32 bits), and compressed.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from maskmed_zoo.data.image import Geometry
from maskmed_zoo.errors import DataError

ENDINGS = (".nii.gz", ".nii")
WRITES = (".nii.gz",)
NAME = "nifti"
HEADER_FIELDS = (
    *("pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
"""What of a header is carried over to a written label map, besides shape and units."""
UNITS = "xyzt_units"
_MILLIMETERS = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # spatial unit codes: unknown, metre, mm, micrometre
_MM = 2


def read(path: Path) -> tuple[NDArray[Any], Geometry]:
    """Scaled voxels (i, j, k) as stored, and their geometry, from the affine and not from pixdim."""
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
    header = {name: np.array(image.header[name]) for name in (*HEADER_FIELDS, UNITS)}
    unit_mm = _MILLIMETERS.get(int(header[UNITS]) & 7, 1.0)
    return data.reshape(i, j, k), Geometry(affine, (i, j, k), unit_mm, NAME, header)


def write(path: Path, stored: NDArray[Any], geometry: Geometry) -> None:
    """Voxels (i, j, k) with the header fields of the image or, of another origin, an sform in mm with code 2."""
    header = nib.Nifti1Header()
    header.set_data_dtype(stored.dtype)
    if geometry.format == NAME:
        for name in (*HEADER_FIELDS, UNITS):
            header[name] = geometry.header[name]
    else:
        affine = np.diag([geometry.unit_mm] * 3 + [1.0]) @ geometry.affine
        header.set_data_shape(stored.shape)
        header.set_zooms(np.linalg.norm(affine[:3, :3], axis=0))
        header.set_sform(affine, 2)
        header[UNITS] = _MM
    path.write_bytes(gzip.compress(nib.Nifti1Image(stored, None, header).to_bytes(), compresslevel=6, mtime=0))


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
