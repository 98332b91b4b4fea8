"""Probabilities of a case in files beside its label map, written label by label, so one label is held at a time.

```
NAME_probabilities.nii.gz   (i, j, k, labels): 16-bit integers that the header scales to 0 … 1, as viewers do by
                            themselves; on the grid of the image
NAME.npz, NAME.pkl          as `nnUNetv2_predict --save_probabilities` writes them and `nnUNetv2_ensemble` reads them:
                            `probabilities` (labels, k, j, i), here float16, and the geometry
```
Labels come in the order of their values, background first, without 'ignore'. NIfTI has no float16; the step of the
integers is 1/65535. Source of the second: nnU-Net v2 `export_prediction.py` and `imageio/`.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from maskmed_zoo.data.formats import nifti
from maskmed_zoo.data.image import Geometry
from maskmed_zoo.data.predicted import Form, npz_beside, probabilities_beside
from maskmed_zoo.files import write_atomically

Probabilities = Iterable[tuple[str, NDArray[np.float32]]]
KEY = "probabilities"
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])


def write_probabilities(
    label_map: Path, probabilities: Probabilities, geometry: Geometry, forms: Sequence[Form], count: int
) -> None:
    """Write the files of these forms beside a label map on the grid of `geometry`; raises `OutputError`.

    `probabilities` are those of `count` labels, name and (z y x) of each, and can be gone through more than once.
    """
    if "nifti" in forms:
        stored = (geometry.from_canonical(values) for _, values in probabilities)
        write_atomically(
            probabilities_beside(label_map), lambda path: nifti.write_shares(path, stored, count, geometry)
        )
    if "npz" in forms:
        target = npz_beside(label_map)
        write_atomically(target, lambda path: _write_npz(path, probabilities, geometry, count))
        content = pickle.dumps(_nnunet_properties(geometry), protocol=4)
        write_atomically(target.with_suffix(".pkl"), lambda path: path.write_bytes(content))


def _write_npz(path: Path, probabilities: Probabilities, geometry: Geometry, count: int) -> None:
    """What `np.savez_compressed(path, probabilities=…)` writes of all labels at once."""
    i, j, k = geometry.shape
    header = {"descr": "<f2", "fortran_order": False, "shape": (count, k, j, i)}
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(f"{KEY}.npy", "w", force_zip64=True) as file,
    ):
        npy.write_array_header_1_0(file, header)
        for _, values in probabilities:
            file.write(geometry.from_canonical(values).T.astype("<f2").tobytes())


def _nnunet_properties(geometry: Geometry) -> dict[str, Any]:
    """What nnU-Net's readers SimpleITKIO and NibabelIO keep of a file, to write a label map onto its grid."""
    affine = np.diag([geometry.unit_mm] * 3 + [1.0]) @ geometry.affine
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    direction = _RAS_TO_LPS @ affine[:3, :3] / sizes
    return {
        "sitk_stuff": {
            "spacing": tuple(sizes.tolist()),
            "origin": tuple((_RAS_TO_LPS @ affine[:3, 3]).tolist()),
            "direction": tuple(direction.ravel().tolist()),
        },
        "nibabel_stuff": {"original_affine": geometry.affine},
        "spacing": sizes[::-1].tolist(),
    }
