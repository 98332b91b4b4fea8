"""Labels on a turned and stretched grid: at every place the label of which there is most, by linear interpolation.

The label with the largest interpolated share wins, counted in thousandths with the precision of float16; where several
have the largest share, the nearest voxel's, if it is one of them, else the lowest. Most places lie between eight voxels
of one label, and most others between two labels; shares are counted only where there is something to count.
Source: batchgeneratorsv2 0.3, `SpatialTransform`, which interpolates an indicator of each label at every place.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from maskmed_zoo.data.crop import OUTSIDE
from maskmed_zoo.settings import Size3

_SHARES = 1000


def sample_labels(
    maps: NDArray[Any], matrix: NDArray[np.float64], center: Sequence[float], size: Size3
) -> NDArray[Any]:
    """Maps (m d h w) on the grid of a patch (size), turned by `matrix` (3 3) about `center`; outside is `OUTSIDE`.

    Two maps are labels and instances: an object is sampled as if it were a label, so that both go together.
    """
    if len(maps) == 1:
        return _sample(maps[0], matrix, center, size, OUTSIDE)[None]
    labels, instances = (part.astype(np.int64) for part in maps)
    base = int(labels.max()) + 1 - OUTSIDE
    joint = _sample(instances * base + labels - OUTSIDE, matrix, center, size, 0)
    return np.stack([joint % base + OUTSIDE, joint // base])


def _sample(
    labels: NDArray[Any], matrix: NDArray[np.float64], center: Sequence[float], size: Size3, outside: int
) -> NDArray[Any]:
    padded = np.pad(labels, 1, constant_values=outside)
    mixed = np.iinfo(labels.dtype).min
    cells = _cells(padded, mixed)
    center = [c + 1 for c in center]
    flat = _cell_of(matrix, center, size, cells.shape)
    result = torch.from_numpy(cells).view(-1).index_select(0, flat.view(-1)).numpy()
    rows = np.flatnonzero(result == mixed)
    if rows.size:
        offsets = np.stack(np.unravel_index(rows, size), 1) - (np.asarray(size) - 1) / 2
        places = np.clip(offsets @ matrix.T + center, 0, cells.shape).astype(np.float32)
        result[rows] = _vote(padded, places)
    return result.reshape(size)


def _cells(padded: NDArray[Any], mixed: int) -> NDArray[Any]:
    """The label of each cell, which lies between eight voxels, `mixed` where they have several."""
    same = padded[1:] == padded[:-1]
    same = same[:, 1:] & same[:, :-1] & (padded[1:, 1:] == padded[1:, :-1])
    same = same[..., 1:] & same[..., :-1] & (padded[1:, 1:, 1:] == padded[1:, 1:, :-1])
    return np.where(same, padded[1:, 1:, 1:], padded.dtype.type(mixed))


def _cell_of(matrix: NDArray[np.float64], center: Sequence[float], size: Size3, cells: Sequence[int]) -> torch.Tensor:
    """(d h w) int32: the number of the cell in which each voxel of a patch lies, or which is nearest to it."""
    number = torch.zeros((1, 1, 1), dtype=torch.int32)
    for row, middle, length in zip(matrix, center, cells, strict=True):
        place = torch.full((1, 1, 1), float(middle))
        for axis, (slope, side) in enumerate(zip(row, size, strict=True)):
            if slope:
                shape = [-1 if other == axis else 1 for other in range(3)]
                steps = (np.arange(side) - (side - 1) / 2) * slope
                place = place + torch.from_numpy(steps.astype(np.float32)).view(shape)
        number = number * length + place.clamp_(0, length - 0.5).to(torch.int32)
    return number.expand(size).contiguous()


def _vote(padded: NDArray[Any], places: NDArray[np.float32]) -> NDArray[Any]:
    """The winning labels at places (m 3), each between voxels of several labels."""
    corner = np.minimum(places.astype(np.int32), np.asarray(padded.shape, np.int32) - 2)
    way = (places - corner).T
    _, height, width = padded.shape
    first = (corner[:, 0] * height + corner[:, 1]) * width + corner[:, 2]
    steps = [(z * height + y) * width + x for z, y, x in product((0, 1), repeat=3)]
    labels = padded.ravel()[first + np.asarray(steps, np.int32)[:, None]]
    near = (np.rint(places - 1) + 1 - corner).astype(np.int32).T
    nearest = labels[near[0] * 4 + near[1] * 2 + near[2], np.arange(len(first))]
    low, high = labels.min(0), labels.max(0)
    is_high = labels == high
    share = _interpolated(is_high, way)
    ones, others = share.astype(np.float16), (_SHARES - share).astype(np.float16)
    winner = np.where(ones > others, high, low)
    np.copyto(winner, nearest, where=ones == others)
    several = np.flatnonzero(~(is_high | (labels == low)).all(0))
    if several.size:
        winner[several] = _vote_of_many(labels[:, several], way[:, several], nearest[several])
    return winner


def _vote_of_many(labels: NDArray[Any], way: NDArray[np.float32], nearest: NDArray[Any]) -> NDArray[Any]:
    """The same, whatever the number of labels (8 m) at the corners."""
    best, own = np.full(len(nearest), -1, np.float16), np.zeros(len(nearest), np.float16)
    winner = nearest.copy()
    for label in labels:
        votes = _interpolated(labels == label, way).astype(np.float16)
        np.copyto(own, votes, where=label == nearest)
        np.copyto(winner, label, where=(votes > best) | ((votes == best) & (label < winner)))
        np.maximum(best, votes, out=best)
    return np.where(own == best, nearest, winner)


def _interpolated(corners: NDArray[np.bool_], way: NDArray[np.float32]) -> NDArray[np.float32]:
    """(8 m) indicators, in the order z y x, between which places (3 m) lie, in thousandths."""
    values = corners.astype(np.float32) * np.float32(_SHARES)
    for part in way:
        half = len(values) // 2
        values = values[:half] + (values[half:] - values[:half]) * part
    return values[0]
