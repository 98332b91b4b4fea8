"""Where in a case a patch lies.

Source: nnU-Net v2.8, `nnUNetDataLoader`: some places of every batch are kept for foreground, the box that is drawn is
larger than the patch, and may reach over the border by half of what it is larger, or by what the volume lacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskmed_zoo.settings import Size3

_TRIES, _DRAWN = 4, 64


def is_forced(slot: int, batch_size: int, share: float) -> bool:
    """Whether the patch at `slot` of a batch is centered on foreground: the last ones, as many as nnU-Net rounds to."""
    return slot >= round(batch_size * (1 - share))


def any_start(shape: Sequence[int], box: Size3, patch: Size3, rng: np.random.Generator) -> Size3:
    """First voxel of a box (z y x) anywhere in a volume; negative where it reaches over the border."""
    z, y, x = (int(rng.integers(low, high + 1)) for low, high in _limits(shape, box, patch))
    return z, y, x


def start_around(center: Sequence[int] | NDArray[Any], shape: Sequence[int], box: Size3, patch: Size3) -> Size3:
    """First voxel of the box about a voxel; it keeps to the lower limit, and may reach over the upper one."""
    limits = _limits(shape, box, patch)
    z, y, x = (max(low, int(c) - b // 2) for c, b, (low, _) in zip(center, box, limits, strict=True))
    return z, y, x


def foreground_voxel(places: Mapping[int, NDArray[np.int32]], rng: np.random.Generator) -> NDArray[np.int32] | None:
    """A voxel (3), z y x, of a label drawn among those of a case; None without one. No other label's are looked at."""
    if not places:
        return None
    voxels = places[list(places)[rng.integers(len(places))]]
    return voxels[rng.integers(len(voxels))]


def annotated_voxel(labels: NDArray[Any], ignore: int, rng: np.random.Generator) -> NDArray[np.intp] | None:
    """A voxel (3), z y x, drawn among all that have not the value `ignore`; None without one."""
    flat = labels.reshape(-1)
    for _ in range(_TRIES):
        drawn = rng.integers(flat.size, size=_DRAWN)
        found = drawn[flat[drawn] != ignore]
        if found.size:
            return np.array(np.unravel_index(found[0], labels.shape))
    places = np.flatnonzero(flat != ignore)
    return np.array(np.unravel_index(places[rng.integers(places.size)], labels.shape)) if places.size else None


def _limits(shape: Sequence[int], box: Size3, patch: Size3) -> list[tuple[int, int]]:
    """Lowest and highest first voxel of a box along each axis."""
    limits: list[tuple[int, int]] = []
    for length, side, inner in zip(shape, box, patch, strict=True):
        more = max(side - inner, side - length)
        limits.append((-more // 2, length + more // 2 + more % 2 - side))
    return limits


def window(
    shape: Sequence[int], start: Sequence[int], size: Sequence[int]
) -> tuple[tuple[slice, ...], list[tuple[int, int]]]:
    """The part of a window that lies inside a volume, as slices, and the padding that completes the window."""
    inside: list[slice] = []
    padding: list[tuple[int, int]] = []
    for n, first, length in zip(shape, start, size, strict=True):
        low, high = min(max(first, 0), n), min(max(first + length, 0), n)
        inside.append(slice(low, high))
        before = min(max(-first, 0), length)
        padding.append((before, length - before - (high - low)))
    return tuple(inside), padding
