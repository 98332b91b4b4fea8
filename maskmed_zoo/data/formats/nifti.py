"""NIfTI, plain or compressed.

Source: the NIfTI-1 standard (https://nifti.nimh.nih.gov). A label map gets the shape, affine, codes and units of its
image; what is looked at in a header is in `data.nifti_header`. Deviations: a file is decompressed to its end, so that a
truncated or damaged .gz is noticed wherever the damage is, but only what the header promises is kept; label maps are
always written as NIfTI-1 (an affine read from NIfTI-2 is rounded to 32 bits, or refused), and compressed.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable
from io import BufferedReader
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.volumeutils import apply_read_scaling
from numpy.typing import NDArray

from maskmed_zoo.data.image import Geometry, check_plausible, is_same_grid, times
from maskmed_zoo.data.nifti_header import LONGEST, Promise, parse, promise_of, repaired, scaling_of, unit_mm, unreadable
from maskmed_zoo.errors import DataError
from maskmed_zoo.memory import check_available

ENDINGS = (".nii.gz", ".nii")
WRITES = (".nii.gz",)
NAME = "nifti"
HEADER_FIELDS = (
    *("pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
"""What of a header is carried over to a written label map, besides shape and units."""
UNITS = "xyzt_units"
CARRIED = (*HEADER_FIELDS, UNITS)
LONGEST_AXIS = 2**15 - 1
"""Voxels along an axis that NIfTI-1 can count."""
HIGHEST = 2**16 - 1
"""The integer that stands for 1."""
MOST_PACKED = 1032
"""Bytes that one compressed byte can stand for."""
PIECE = 2**24
"""Bytes that are decompressed at a time."""
BEHIND = 2**20
"""Bytes that may follow the last voxel; more of them are voxels that the header does not know of."""
_GZIP = b"\x1f\x8b"
_MM = 2


def read(path: Path) -> tuple[NDArray[Any], Geometry]:
    """Scaled voxels (i, j, k) as stored, and their geometry, from the affine and not from pixdim."""
    try:
        with path.open("rb") as file:
            _check_compression(file.read(LONGEST), path)
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(LONGEST)
            header = parse(head, path)
            promise = promise_of(header, path)
            _check_there(promise, path)
            fixed, affine = repaired(header, path)
            scaling, unit = scaling_of(header, path), unit_mm(header, path)
            shape = (promise.shape[0], promise.shape[1], promise.shape[2])
            geometry = Geometry(affine, shape, unit, NAME, {name: np.array(fixed[name]) for name in CARRIED}, str(path))
            check_plausible(geometry)
            _check_written(geometry, path)
            content = _content(file, head, promise, path)
    except (OSError, EOFError, zlib.error) as error:  # what gzip makes of damaged bytes
        raise unreadable(path, _one_line(error), "copy or convert it again") from error
    voxels = np.frombuffer(content, promise.dtype, promise.count, promise.offset).reshape(shape, order="F")
    return apply_read_scaling(voxels, *scaling), geometry


def _check_compression(start: bytes, path: Path) -> None:
    """Raise `DataError` where a file's name says that it is compressed and its first bytes that it is not, or back."""
    is_zipped, is_named = start.startswith(_GZIP), path.suffix == ".gz"
    if is_zipped == is_named:
        return
    if is_zipped:
        raise unreadable(path, "gzip-compressed, its name does not say so", f"rename it to {path.name}.gz")
    parse(start, path)  # says what it is if it is no NIfTI file at all
    name = path.name.removesuffix(".gz")
    raise unreadable(path, "not gzip-compressed as its name says", f"compress it with gzip, or rename it to {name}")


def _check_there(promise: Promise, path: Path) -> None:
    """Raise `DataError` where a file cannot hold what is promised, `MemoryShortageError` where memory cannot."""
    there = path.stat().st_size
    if promise.end > there * (MOST_PACKED if path.suffix == ".gz" else 1):
        raise unreadable(
            path,
            f"{promise.end} bytes promised, {there} there",
            "the file is cut off, or its header wrong: copy it again",
        )
    check_available(2 * promise.end + 4 * promise.count, f"{path}: an image of {times(promise.shape)} voxels")


def _content(file: gzip.GzipFile | BufferedReader, head: bytes, promise: Promise, path: Path) -> bytearray:
    """A file from its start to its last voxel; raises `DataError` if it holds less, or much more, than promised.

    Whatever the header or the compression promise, no more is taken into memory than there is in the file.
    """
    packed = path.suffix == ".gz"
    content = bytearray(head[: promise.end])
    while len(content) < promise.end and (piece := file.read(min(PIECE, promise.end - len(content)))):
        content += piece
    if len(content) < promise.end:
        raise DataError(
            f"{path}: {len(content)} of {promise.end} bytes of its header's promise; the file is cut off: copy it again"
        )
    more = max(len(head) - promise.end, 0)
    while more <= BEHIND and (piece := file.read(BEHIND if packed else 0)):  # to the checksum
        more += len(piece)
    if (more if packed else path.stat().st_size - promise.end) > BEHIND:
        raise DataError(
            f"{path}: holds far more than the {promise.end} bytes that its header promises; correct the shape there"
        )
    return content


def _check_written(geometry: Geometry, path: Path) -> None:
    """Raise `DataError` unless a label map can be written onto the grid of an image."""
    if max(geometry.shape) > LONGEST_AXIS:
        raise DataError(
            f"{path}: shape {geometry.shape}; label maps are written as NIfTI-1, which has up to {LONGEST_AXIS} voxels "
            f"along an axis: crop the image"
        )
    written = Geometry(np.asarray(_header(geometry, np.uint8).get_best_affine()), geometry.shape, geometry.unit_mm)
    if not is_same_grid(geometry, written):
        raise DataError(
            f"{path}: label maps are written as NIfTI-1, whose 32 bits do not hold this affine; move the image nearer "
            f"to the origin"
        )


def write(path: Path, stored: NDArray[Any], geometry: Geometry) -> None:
    """Voxels (i, j, k) with the header fields of the image or, of another origin, an sform in mm with code 2."""
    header = _header(geometry, stored.dtype)
    header.set_slope_inter(1, 0)
    with path.open("wb") as file, gzip.GzipFile("", "wb", 6, file, 0) as packed:
        header.write_to(packed)
        for plane in range(stored.shape[2]):  # never a second copy of all
            packed.write(stored[..., plane].tobytes("F"))


def write_shares(path: Path, stored: Iterable[NDArray[Any]], count: int, geometry: Geometry) -> None:
    """Maps (i, j, k) of numbers from 0 to 1, `count` of them, as one file (i, j, k, count), a map at a time.

    They are kept as 16-bit integers, which the header's slope of 1/65535 scales back.
    """
    header = _header(geometry, np.uint16)
    header.set_data_shape((*geometry.shape, count))
    header["pixdim"][4], header["vox_offset"] = 1, header.single_vox_offset
    header.set_slope_inter(1 / HIGHEST, 0)
    with path.open("wb") as raw, gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as file:
        header.write_to(file)
        for values in stored:
            file.write(np.rint(values * np.float32(HIGHEST)).astype(np.uint16).tobytes(order="F"))


def _header(geometry: Geometry, dtype: npt.DTypeLike) -> nib.Nifti1Header:
    """The header of a label map on a grid."""
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(geometry.shape)
    if geometry.format == NAME:
        with np.errstate(over="ignore"):  # in the fields that say nothing of this grid
            for name in CARRIED:
                header[name] = geometry.header[name]
    else:
        affine = np.diag([geometry.unit_mm] * 3 + [1.0]) @ geometry.affine
        header.set_zooms(np.linalg.norm(affine[:3, :3], axis=0))
        header.set_sform(affine, 2)
        header[UNITS] = _MM
    return header


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
