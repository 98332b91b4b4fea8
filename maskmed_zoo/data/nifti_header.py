"""The header of a NIfTI file, looked at before anybody repairs it or reads what it promises.

Source: the NIfTI-1 and NIfTI-2 standards (https://nifti.nimh.nih.gov). Which affine counts is nibabel's rule: the sform
if its code is above 0, else the qform if its code is, else the voxel sizes alone, with x from right to left.
Deviations from nibabel, as FSL and ITK have it: a quaternion a little above 1 is scaled to 1, and a qfac other than 1
and -1 counts by its sign. A slope of 0, infinity or NaN means no scaling, in all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from maskmed_zoo.data.file_kind import kind_of
from maskmed_zoo.errors import DataError, first_line

LONGEST = 544
"""Bytes of the longest header, with the four that announce extensions."""
QUATERNION_EXCESS = 1e-3
"""How far b² + c² + d² may be above 1: rounding to 32 bits is 1e-6, to three digits 1e-3; more is a mistake."""
_NIBABEL_TAKES = 3e-7
_CODES = range(6)
_SIZES = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
_REPAIR = "correct the header, or convert the file again"
Header = nib.Nifti1Header  # of which that of NIfTI-2 is a child


@dataclass(frozen=True)
class Promise:
    """What a header says of the voxels in its file: where they begin, their type, and how many there are."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    offset: int

    @property
    def count(self) -> int:
        """Voxels."""
        return math.prod(self.shape)

    @property
    def end(self) -> int:
        """Bytes of the file up to its last voxel."""
        return self.offset + self.count * self.dtype.itemsize


def parse(head: bytes, path: Path) -> Header:
    """The header at the start of a file, as it is; raises `DataError` for another kind of file, named by its bytes."""
    header_class = next((c for size, c in _SIZES.items() for o in ("<", ">") if head[:4] == _packed(size, o)), None)
    if header_class is None:
        raise unreadable(path, kind_of(head) or "no NIfTI header", "copy or convert it again")
    size = header_class.sizeof_hdr
    if len(head) < size:
        raise unreadable(path, f"{len(head)} bytes, the header alone has {size}", "the file is cut off: copy it again")
    order = "<" if head[:4] == _packed(size, "<") else ">"
    header = header_class(head[:size], order, check=False)
    magic = bytes(header["magic"].tobytes())[:3]
    if magic in (b"ni1", b"ni2"):
        raise unreadable(path, "the header of a pair .hdr and .img", "convert the pair to one .nii.gz")
    if magic not in (b"n+1", b"n+2"):
        raise unreadable(path, "an Analyze 7.5 header, which has no orientation", "convert it to NIfTI")
    return header


def unreadable(path: Path, what: str, remedy: str) -> DataError:
    """The error for a file that is no NIfTI file, or not a whole one."""
    return DataError(f"{path}: not a readable NIfTI file ({what}); {remedy}")


def promise_of(header: Header, path: Path) -> Promise:
    """Shape, type and place of the voxels; raises `DataError` unless they can be those of a 3-D image."""
    numbers = [int(n) for n in header["dim"]]
    if not 1 <= numbers[0] <= 7:
        raise DataError(f"{path}: the header has dim[0] {numbers[0]}, expected 3, the number of axes; {_REPAIR}")
    shape = tuple(numbers[1 : numbers[0] + 1])
    if min(shape) < 0:
        raise DataError(f"{path}: shape {shape}, expected numbers of voxels; {_REPAIR}")
    if 0 in shape:
        raise DataError(
            f"{path}: shape {shape} has an empty axis; expected at least one voxel along each: export it again"
        )
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        raise DataError(f"{path}: {len(shape)}-D with shape {shape}, expected 3-D; save one file per volume or channel")
    try:
        dtype = np.dtype(header.get_data_dtype())
    except (KeyError, ValueError) as error:
        raise DataError(f"{path}: data type {int(header['datatype'])} is none of NIfTI's; {_REPAIR}") from error
    if dtype.kind not in "biuf":
        raise DataError(f"{path}: voxels of type {dtype}, expected plain numbers; save one file per channel")
    offset, first = float(header["vox_offset"]), int(header.sizeof_hdr) + 4
    if not first <= offset < 2**62 or offset != int(offset):
        raise DataError(f"{path}: the header has vox_offset {offset:g}, expected {first} bytes or more; {_REPAIR}")
    return Promise(shape, dtype, int(header["vox_offset"]))


def scaling_of(header: Header, path: Path) -> tuple[float, float]:
    """Slope and intercept from stored to real values; raises `DataError` for an intercept that is no number."""
    try:
        slope, intercept = header.get_slope_inter()
    except HeaderDataError as error:
        raise DataError(f"{path}: scl_inter cannot be used ({first_line(error)}); {_REPAIR}") from error
    return (1.0 if slope is None else slope), (0.0 if intercept is None else intercept)


def unit_mm(header: Header, path: Path) -> float:
    """Millimetres of the header's unit of length, 1 where it is not stated."""
    code = int(header["xyzt_units"])
    known = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # unknown, metre, mm, micrometre
    if not 0 <= code <= 255 or code & 7 not in known:
        raise DataError(f"{path}: xyzt_units {code} is no code of a unit, expected 2 for mm; {_REPAIR}")
    return known[code & 7]


def repaired(header: Header, path: Path) -> tuple[Header, NDArray[np.float64]]:
    """A header that nibabel reads as this one is meant, and its affine in the header's unit.

    Raises `DataError` where neither sform nor qform nor voxel sizes say where the voxels lie.
    """
    fixed = header.copy()
    codes = {name: int(header[name]) for name in ("sform_code", "qform_code")}
    for name, code in codes.items():
        if code not in _CODES:
            raise DataError(f"{path}: {name} {code} is none of NIfTI's, 0 to {_CODES[-1]}; {_REPAIR}")
    sizes = np.asarray(header["pixdim"][1:4], np.float64)
    has_sizes = bool(((sizes > 1e-30) & (sizes < 1e30)).all())  # what 32 bits hold, and never NaN
    fixed["pixdim"][0] = -1 if header["pixdim"][0] < 0 else 1
    if codes["sform_code"] == 0:
        if not has_sizes:
            raise DataError(
                f"{path}: voxel sizes {sizes.tolist()} (pixdim) and no sform, expected three numbers above 0; {_REPAIR}"
            )
        if codes["qform_code"] > 0:
            _scale_quaternion(fixed, path)
    affine = np.asarray(fixed.get_best_affine(), np.float64)
    if not (np.isfinite(affine).all() and np.abs(affine).max() < 1e15) or not _is_regular(affine):
        raise DataError(f"{path}: the affine is singular or not finite, voxels have no size or direction; {_REPAIR}")
    if not has_sizes:
        fixed["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
    return fixed, affine


def _scale_quaternion(header: Header, path: Path) -> None:
    names = ("quatern_b", "quatern_c", "quatern_d")
    bcd = np.array([float(header[name]) for name in names])
    with np.errstate(over="ignore"):
        square = float(bcd @ bcd)
    if not square <= 1 + QUATERNION_EXCESS:
        raise DataError(f"{path}: the quaternion {bcd.tolist()} of the qform is longer than 1; {_REPAIR}")
    if square > 1 + _NIBABEL_TAKES:
        for name, value in zip(names, bcd / math.sqrt(square), strict=True):
            header[name] = value


def _is_regular(affine: NDArray[np.float64]) -> bool:
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return bool(lengths.all()) and abs(np.linalg.det(affine[:3, :3] / lengths)) >= 1e-3


def _packed(number: int, order: str) -> bytes:
    return number.to_bytes(4, "little" if order == "<" else "big")
