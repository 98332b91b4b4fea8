"""Labels on a turned and stretched grid: at every place the label of which there is most, by linear interpolation.

The label with the largest interpolated share wins, counted in thousandths with the precision of float16; where several
have the largest share, the nearest voxel's, if it is one of them, else the lowest. Most places lie between eight voxels
of one label, which the nearest voxel tells; only at the others there is something to count.
Source: batchgeneratorsv2 0.3, `SpatialTransform`, which interpolates an indicator of each label at every place.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskmed_zoo.data.augmentation.source import OUTSIDE

_SHARES = 1000


def sample_labels(maps: NDArray[Any], places: Sequence[NDArray[np.float64]]) -> NDArray[Any]:
    """Maps (m d h w) at `places` along z, y and x (voxels, each broadcast to the patch); outside is `OUTSIDE`.

    Two maps are labels and instances: an object is sampled as if it were a label, so that both go together.
    """
    if len(maps) == 1:
        return _sample(maps[0], places)[None]
    labels, instances = (part.astype(np.int64) for part in maps)
    base = int(labels.max()) + 1 - OUTSIDE
    joint = _sample(instances * base + labels - OUTSIDE, places, outside=0)
    return np.stack([joint % base + OUTSIDE, joint // base])


def _sample(labels: NDArray[Any], places: Sequence[NDArray[np.float64]], outside: int = OUTSIDE) -> NDArray[Any]:
    padded = np.pad(labels, 1, constant_values=outside)
    shape = np.broadcast_shapes(*(place.shape for place in places))
    clipped = [np.clip(p + 1, 0, n + 1).astype(np.float32) for p, n in zip(places, labels.shape, strict=True)]
    low = [np.minimum(c.astype(np.int32), n) for c, n in zip(clipped, labels.shape, strict=True)]
    near = [np.rint(c).astype(np.int32) for c in clipped]
    result = np.broadcast_to(padded.ravel()[_flat(near, padded.shape)], shape).copy()
    mixed = _mixed(padded)
    doubtful = np.nonzero(np.broadcast_to(mixed.ravel()[_flat(low, mixed.shape)], shape))
    if doubtful[0].size:
        corner = [_at(axis, doubtful) for axis in low]
        part = [_at(c, doubtful) - k for c, k in zip(clipped, corner, strict=True)]
        result[doubtful] = _vote(padded, corner, part, result[doubtful])
    return result


def _mixed(padded: NDArray[Any]) -> NDArray[np.bool_]:
    """Which cells, each between eight voxels, have more than one label: one less than voxels along each axis."""
    same = padded[1:] == padded[:-1]
    same = same[:, 1:] & same[:, :-1] & (padded[1:, 1:] == padded[1:, :-1])
    return ~(same[..., 1:] & same[..., :-1] & (padded[1:, 1:, 1:] == padded[1:, 1:, :-1]))


def _flat(index: Sequence[NDArray[np.int32]], shape: Sequence[int]) -> NDArray[np.int32]:
    z, y, x = index
    return (z * shape[1] + y) * shape[2] + x


def _at(values: NDArray[Any], where: Sequence[NDArray[np.intp]]) -> NDArray[Any]:
    """Values, of length 1 along some axes, at places of the patch."""
    return values[tuple(w if n > 1 else np.zeros_like(w) for w, n in zip(where, values.shape, strict=True))]


def _vote(
    padded: NDArray[Any], corner: Sequence[NDArray[Any]], part: Sequence[NDArray[Any]], nearest: NDArray[Any]
) -> NDArray[Any]:
    """The winning label at m places, given their lowest corner, the way from there to the next, and nearest label."""
    flat = padded.ravel()
    labels: list[NDArray[Any]] = []
    weights: list[NDArray[np.float32]] = []
    for steps in product((0, 1), repeat=3):
        weight = np.full(len(nearest), _SHARES, np.float32)
        for way, step in zip(part, steps, strict=True):
            weight = weight * (way if step else 1 - way)
        labels.append(flat[_flat([c + s for c, s in zip(corner, steps, strict=True)], padded.shape)])
        weights.append(weight)
    best, winner = np.full(len(nearest), -1, np.float16), nearest.copy()
    own = np.zeros(len(nearest), np.float16)
    for label in labels:
        share = np.zeros(len(nearest), np.float32)
        for other, weight in zip(labels, weights, strict=True):
            share += np.where(other == label, weight, np.float32(0))
        votes = share.astype(np.float16)
        np.copyto(own, votes, where=label == nearest)
        better = (votes > best) | ((votes == best) & (label < winner))
        np.copyto(winner, label, where=better)
        np.maximum(best, votes, out=best)
    return np.where(own == best, nearest, winner)
