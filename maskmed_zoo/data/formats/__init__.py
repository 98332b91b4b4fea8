"""Images and label maps in files of any format there is a module for in this folder.

A format is a module that names the endings it reads (`ENDINGS`) and those it writes (`WRITES`), and has two functions:

* `read(path)` gives the voxels (i, j, k) as stored and their `Geometry`, or raises `DataError` for a file that cannot
  be used: damaged, not 3-D, empty, without a size and direction of its voxels, or not `image.check_plausible`;
* `write(path, stored, geometry)` writes voxels (i, j, k), uint8 or uint16, onto the grid of `geometry`, and lets
  `OSError` pass.

Modules are found by looking into this folder, so a new format is one file. What holds for every format is done here:
orientation, number types, refusals, and that a file appears whole or not at all.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from maskmed_zoo.data.image import Geometry, Volume, is_small
from maskmed_zoo.data.problem import ProblemError
from maskmed_zoo.errors import DataError
from maskmed_zoo.files import is_file, is_folder, is_there, write_atomically
from maskmed_zoo.memory import within_memory

DEFAULT = ".nii.gz"
"""The ending of what is written where nobody says otherwise."""


class Format(Protocol):
    """What a module of this folder offers."""

    ENDINGS: tuple[str, ...]
    WRITES: tuple[str, ...]

    def read(self, path: Path) -> tuple[NDArray[Any], Geometry]:
        """Voxels (i, j, k) as stored, and their geometry."""
        ...

    def write(self, path: Path, stored: NDArray[Any], geometry: Geometry) -> None:
        """Voxels (i, j, k) onto the grid of `geometry`."""
        ...


@cache
def formats() -> dict[str, Format]:
    """Formats by the endings that they read, the longest first."""
    found: dict[str, Format] = {}
    for module in pkgutil.iter_modules(__path__):
        form: Any = importlib.import_module(f"{__name__}.{module.name}")
        found |= dict.fromkeys(form.ENDINGS, form)
    return dict(sorted(found.items(), key=lambda item: (-len(item[0]), item[0])))


def written_endings() -> tuple[str, ...]:
    """The endings that can be written too, the default first: those that files of a data set may have."""
    endings = {ending for form in formats().values() for ending in form.WRITES}
    return (DEFAULT, *sorted(endings - {DEFAULT}))


def ending_of(path: Path, known: tuple[str, ...] | None = None) -> str | None:
    """The ending of a file's name among those `known`, by default all that are read; None for another one."""
    return next((ending for ending in known or tuple(formats()) if path.name.endswith(ending)), None)


def stem_of(path: Path) -> str:
    """A file's name without the ending of its format."""
    return path.name.removesuffix(ending_of(path) or "")


def read_image(path: str | Path) -> Volume:
    """Read a 3-D image: float32 (z, y, x), in the file's own intensity units (HU for CT).

    Raises `DataError` if the file is missing, damaged, not 3-D, empty, without a usable affine, of a size that no body
    and no specimen has, not finite, or larger than the memory.
    """
    return _image(Path(path), small=False)


def read_small_image(path: str | Path) -> Volume:
    """Read a 3-D image as `read_image`, but whole numbers of up to 16 bits, which a CT has, in the file's own type.

    Float32 holds the same values and needs twice to four times the memory.
    """
    return _image(Path(path), small=True)


def _image(path: Path, *, small: bool) -> Volume:
    with within_memory(f"{path}: this image"):
        data, geometry = _read(path)
        dtype = data.dtype.newbyteorder("=") if small and is_small(data.dtype) else np.dtype(np.float32)
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused below
            array = geometry.to_canonical(data, dtype)
        _refuse_non_finite(array, path)
    return Volume(array, geometry, path)


def read_labels(path: str | Path) -> Volume:
    """Read a 3-D label map: int16 (z, y, x).

    Raises `DataError` as `read_image` does, and for values that are not integers (to 0.001) or do not fit int16.
    """
    path = Path(path)
    with within_memory(f"{path}: this label map"):
        return _labels(path)


def _labels(path: Path) -> Volume:
    data, geometry = _read(path)
    if data.dtype.kind == "f":
        _refuse_non_finite(data, path)
        rounded = np.rint(data)
        wrong = int(np.count_nonzero(np.abs(data - rounded) > 1e-3))
        if wrong:
            what, remedy = f"{wrong} voxels are not integers", "a label map is due here: save one label per voxel"
            raise ProblemError(path, what, remedy, kind="label values")
        data = rounded
    low, high = float(data.min()), float(data.max())
    if low < -(2**15) or high >= 2**15:
        what = f"label values reach {low:g} … {high:g}, expected 0 … 32767"
        raise ProblemError(path, what, "renumber the labels", kind="label values")
    return Volume(geometry.to_canonical(data).astype(np.int16, copy=False), geometry, path)


def write_labels(path: str | Path, array_zyx: NDArray[Any], geometry: Geometry) -> None:
    """Write a canonical label map (z, y, x) onto the grid of `geometry`, uint8 or, above 255, uint16.

    The file appears whole or not at all. Raises `DataError` if no format writes such a file, the array has another
    shape than `geometry.canonical_shape`, or values are not integers from 0 to 65535, and `OutputError` if it cannot
    be written.
    """
    path = Path(path)
    ending = ending_of(path, written_endings())
    if ending is None:
        raise DataError(f"{path}: label maps are written as {' or '.join(written_endings())}; give a name that ends so")
    if array_zyx.shape != geometry.canonical_shape:
        raise DataError(
            f"{path}: label map has shape {array_zyx.shape}, its image {geometry.canonical_shape} (z, y, x)"
        )
    if array_zyx.dtype.kind not in "biu":
        raise DataError(f"{path}: labels have type {array_zyx.dtype}, expected integers; take the argmax first")
    low, high = int(array_zyx.min()), int(array_zyx.max())
    if low < 0 or high > 65535:
        raise DataError(f"{path}: labels reach {low} … {high}, expected 0 … 65535; renumber them")
    stored = geometry.from_canonical(array_zyx.astype(np.uint8 if high <= 255 else np.uint16, copy=False))
    write_atomically(path, lambda temporary: formats()[ending].write(temporary, stored, geometry))


def _read(path: Path) -> tuple[NDArray[Any], Geometry]:
    ending = ending_of(path)
    if ending is None:
        known = " or ".join(sorted(formats(), key=len))
        raise DataError(f"{path}: expected a {known} file; convert it to NIfTI")
    if not is_file(path):
        what = (
            "is no plain file; give one" if is_there(path) and not is_folder(path) else "no such file; check the path"
        )
        raise DataError(f"{path}: {what}")
    return formats()[ending].read(path)


def _refuse_non_finite(array: NDArray[Any], path: Path) -> None:
    if array.dtype.kind != "f":
        return
    bad = sum(part.size - int(np.count_nonzero(np.isfinite(part))) for part in array)
    if bad:
        what = f"{bad} of {array.size} voxels are NaN or infinite"
        raise ProblemError(path, what, "replace them by a finite value", kind="not finite")
