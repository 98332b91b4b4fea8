"""The connected parts of a mask, found a slab at a time.

Idea: numbers of all voxels of a large image take four bytes for each, and counting them eight more. Here only a slab is
numbered at a time. Neighbouring slabs share a plane of voxels; what has two numbers there is one part. A later pass
numbers the slabs again, now with the numbers of whole parts. Compared in the tests with SciPy's `label` of the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

SLAB_VOXELS = 2**22
"""Numbered at a time, or one plane and its neighbour where those have more."""
Mask = NDArray[np.bool_]
Numbers = NDArray[np.int32]


class Parts:
    """Parts of a mask (z y x), numbered 1, 2, … in the order in which a scan from first voxel to last meets them.

    `mask` gives some planes of it, and gives the same when it is asked again. Voxels are connected with their 6 or 26
    `neighbours`. `sizes` (parts) are in voxels. Memory: some 20 bytes for each voxel of a slab, and 30 for each part.
    """

    def __init__(self, mask: Callable[[slice], Mask], shape: Sequence[int], neighbours: Literal[6, 26]) -> None:
        self._mask, self._depth = mask, shape[0]
        self._structure = ndimage.generate_binary_structure(3, 1 if neighbours == 6 else 3)
        self._step = max(1, SLAB_VOXELS // max(1, shape[1] * shape[2]))
        self._starts = range(0, self._depth, self._step)
        sizes, met, counts, shared = [np.zeros(0, np.int64)], [np.zeros((2, 0), np.int64)], list[int](), None
        for start in self._starts:
            numbers, count = self._numbered(start)
            if shared is not None:
                pairs = np.unique(shared[shared > 0].astype(np.int64) * (count + 1) + numbers[0][shared > 0])
                first, second = np.divmod(pairs, count + 1)
                met.append(np.stack([first + sum(counts[:-1]) - 1, second + sum(counts) - 1]))
            sizes.append(np.bincount(numbers[: self._step].ravel(), minlength=count + 1)[1:])
            shared = numbers[self._step].copy() if start + self._step < self._depth else None
            counts.append(count)
        total, (first, second) = sum(counts), np.concatenate(met, axis=1)
        graph = coo_array((np.ones(len(first), np.bool_), (first, second)), shape=(total, total))
        found: Any = connected_components(graph, directed=False) if total else (0, np.zeros(0, np.int32))
        self.count, roots = cast(tuple[int, Numbers], found)
        self.sizes = np.bincount(roots, np.concatenate(sizes), self.count).astype(np.int64)
        self._tables = [
            np.concatenate([[0], table + 1]).astype(np.int32) for table in np.split(roots, np.cumsum(counts)[:-1])
        ]

    def slabs(self) -> Iterator[tuple[slice, Numbers]]:
        """Planes and their numbers (z y x), 0 outside the mask. A slab that was given may change before the next."""
        for start, table in zip(self._starts, self._tables, strict=True):
            numbers, _ = self._numbered(start)
            yield slice(start, min(start + self._step, self._depth)), table[numbers[: self._step]]

    def _numbered(self, start: int) -> tuple[Numbers, int]:
        """Of a slab by itself, with the plane that it shares with the next."""
        mask = self._mask(slice(start, min(start + self._step + 1, self._depth)))
        return cast(tuple[Numbers, int], ndimage.label(mask, self._structure))


def boxes_of(labels: NDArray[np.integer[Any]], values: Sequence[int]) -> dict[int, tuple[slice, slice, slice]]:
    """The box (z y x) around each of `values`, of those that a label map has."""
    found = ndimage.find_objects(labels, max(values, default=0))
    return {value: box for value in values if (box := found[value - 1]) is not None}


def parts_of(labels: NDArray[np.integer[Any]], value: int) -> Parts:
    """The parts (26 neighbours) of one value of a label map (z y x)."""
    return Parts(lambda planes: labels[planes] == value, labels.shape, 26)
