"""Probabilities beside a label map, as nnU-Net writes them with `--save_probabilities`.

```
PRED/NAME.npz    'probabilities', floating point (labels, k, j, i): the classes in the order of their values, without
                 'ignore'; voxels in the order of the label map's file NAME.nii.gz, its last axis first
```
The file is read label by label, so there is never more of it in memory than that; nothing in it is executed.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from maskmed_zoo.data.image import Volume
from maskmed_zoo.errors import DataError, first_line

KEY = "probabilities"
SLACK = 0.01
"""How far a sum of probabilities may be from 1; in 16 bits, a hundred of them are off by less."""
EXPECTED = f"expected '{KEY}' (labels, k, j, i), as nnUNetv2_predict --save_probabilities writes them"


class ProbabilityFile:
    """Probabilities (z y x) of the labels `names`, one after the other, on the voxels of a label map.

    Raises `DataError` for a file that is missing or damaged, for another number of labels, another grid, and where what
    stands there cannot be probabilities of labels that exclude each other: NaN, beyond [0, 1], or no sum of 1.
    """

    def __init__(self, path: Path, label_map: Volume, names: Sequence[str]) -> None:
        self.path, self.geometry, self.names = path, label_map.geometry, names
        self.label_map = label_map.path

    def __iter__(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        if not self.path.is_file():
            raise DataError(f"{self.path}: no such file, though metrics of probabilities are asked for; {EXPECTED}")
        total = np.zeros(self.geometry.canonical_shape, np.float32)
        for name, values in self._read():
            low, high = float(values.min()), float(values.max())
            if not (low >= -SLACK and high <= 1 + SLACK):  # NaN is neither
                what = "NaN" if np.isnan(low) else f"{low:.3g} … {high:.3g}"
                raise DataError(f"{self.path}: values of '{name}' are {what}, no probabilities; {EXPECTED}")
            total += values
            yield name, values.clip(0, 1)
        if (off := float(np.abs(total - 1).max())) > SLACK:
            raise DataError(
                f"{self.path}: probabilities sum to up to {off:.2g} more or less than 1; those of regions, which "
                f"overlap, are none of labels"
            )

    def _read(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{KEY}.npy") as file:
                dtype = self._header(file)
                i, j, k = self.geometry.shape
                for name in self.names:
                    content = file.read(dtype.itemsize * i * j * k)
                    stored = np.frombuffer(content, dtype).reshape(k, j, i).transpose()
                    yield name, self.geometry.to_canonical(stored).astype(np.float32)
        except (DataError, MemoryError):
            raise
        except Exception as error:  # whatever zipfile, zlib or numpy make of damaged bytes
            raise DataError(f"{self.path}: cannot be read ({first_line(error)}); {EXPECTED}") from error

    def _header(self, file: IO[bytes]) -> np.dtype[Any]:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, is_fortran, dtype = read(file)
        if dtype.kind != "f" or is_fortran:
            order = " in Fortran's order" if is_fortran else ""
            raise DataError(f"{self.path}: '{KEY}' holds {dtype}{order}; {EXPECTED}")
        i, j, k = self.geometry.shape
        if shape[1:] != (k, j, i):
            raise DataError(f"{self.path}: '{KEY}' is {shape}, expected (labels, {k}, {j}, {i}) as {self.label_map}")
        if shape[0] != len(self.names):
            names = ", ".join(self.names)
            raise DataError(f"{self.path}: {shape[0]} labels, expected {len(self.names)}: {names}")
        return dtype
