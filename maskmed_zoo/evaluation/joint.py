"""How often each label of a prediction meets each of a reference, counted once for all that is made of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

CHUNK_VOXELS = 2**18
"""Voxels counted at a time: what is made of them stays in the processor's cache, and takes little memory."""


def joint_histogram(
    pred: NDArray[np.generic], ref: NDArray[np.generic], labels: Sequence[int], ignore: int | None
) -> NDArray[np.int64]:
    """(n+1 n+1) voxel counts, reference by prediction; row and column 0 gather all other values."""
    size = len(labels) + 1
    table = np.zeros(max(labels, default=0) + 3, np.int64)  # values -1 (and below) to largest label + 1 (and above)
    table[np.asarray(labels, np.int64) + 1] = np.arange(1, size)
    joint = np.zeros(size * size, np.int64)
    rows = max(1, CHUNK_VOXELS // max(1, ref[:1].size))
    for start in range(0, len(ref), rows):
        r = ref[start : start + rows].astype(np.int64).ravel()
        p = pred[start : start + rows].astype(np.int64).ravel()
        if ignore is not None:
            keep = r != ignore
            r, p = r[keep], p[keep]
        r, p = r.clip(-1, table.size - 2) + 1, p.clip(-1, table.size - 2) + 1
        joint += np.bincount(table[r] * size + table[p], minlength=size * size)
    return joint.reshape(size, size)
