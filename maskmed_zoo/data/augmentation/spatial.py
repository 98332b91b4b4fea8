"""Rotation and zoom: what is drawn, which voxels it needs, and the patch that comes of it.

A patch lies in the middle of a larger box, which is drawn in the volume; its voxels are those of a grid that is turned
and stretched about the box's center. What a grid reaches beyond its box is empty.
Source: nnU-Net v2.8 and batchgeneratorsv2 0.3 (`SpatialTransform`, `get_patch_size`). Rotation is about the axes of
the array, in voxels, whatever the spacing.
Deviations: only those voxels of the box are read that a patch needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from maskmed_zoo.data.augmentation.label_vote import sample_labels
from maskmed_zoo.data.augmentation.separable import along_axes, linear_matrix
from maskmed_zoo.settings import Size3

ROTATION = math.radians(30)
"""Largest, about each axis; in plane, any."""
ZOOMS = (0.7, 1.4)
"""Of the grid: above 1, things become smaller."""
_SMALLEST_ZOOM = 0.85
"""What the box is made for; a grid may reach out of it."""
_ROUNDING = 1e-3


def axis_order(coarsest: int) -> tuple[int, int, int]:
    """The axes z y x in nnU-Net's order, the coarsest first."""
    second, third = (axis for axis in range(3) if axis != coarsest)
    return coarsest, second, third


def box_size(patch_size: Size3, coarsest: int, in_plane: bool) -> Size3:
    """Voxels of the box that a rotated and zoomed patch mostly fits into (nnU-Net's initial patch size)."""
    order = axis_order(coarsest)
    a, b, c = (patch_size[axis] for axis in order)
    angle = math.radians(90) if in_plane else ROTATION
    cos, sin = math.cos(angle), math.sin(angle)
    first = max(a, abs(cos * a - sin * c), abs(cos * a + sin * b))
    second = max(b, abs(cos * b + sin * c), abs(cos * b - sin * a))
    third = max(c, abs(cos * c - sin * b), abs(cos * c + sin * a))
    sizes = [int(side / _SMALLEST_ZOOM) for side in (first, second, third)]
    sizes[0] = a if in_plane else sizes[0]
    by_axis = dict(zip(order, sizes, strict=True))
    return by_axis[0], by_axis[1], by_axis[2]


def crop_start(start: Size3, box: Size3, size: Size3) -> Size3:
    """First voxel of the patch in the middle of a box that starts at `start`."""
    z, y, x = (s + b // 2 - n // 2 for s, b, n in zip(start, box, size, strict=True))
    return z, y, x


def draw_matrix(
    rng: np.random.Generator, coarsest: int, in_plane: bool, probability: float
) -> NDArray[np.float64] | None:
    """(3 3) from voxel offsets in the patch to those in the volume, both from the center; None: no change.

    Rotation about each axis and zoom, the same along all axes, each with `probability`; `in_plane`, about the coarsest
    axis alone, which is not zoomed either.
    """
    rotates, zooms = rng.random() < probability, rng.random() < probability
    limit = math.pi if in_plane else ROTATION
    angles = rng.uniform(-limit, limit, 1 if in_plane else 3) if rotates else np.zeros(1 if in_plane else 3)
    zoom = rng.uniform(*ZOOMS) if zooms else 1.0
    return matrix_of(angles, zoom, coarsest) if rotates or zooms else None


def matrix_of(angles: Sequence[float] | NDArray[Any], zoom: float, coarsest: int) -> NDArray[np.float64]:
    """The matrix of a rotation by `angles` (radians, in nnU-Net's order of axes) after a zoom.

    One angle is that about the coarsest axis, in whose plane alone there is zoom.
    """
    order = list(axis_order(coarsest))
    matrix = np.diag([1.0 if len(angles) == 1 else zoom, zoom, zoom])
    if len(angles) == 1:
        matrix = _rotation(1, 2, angles[0]) @ matrix
    else:
        first, second, third = angles
        matrix = _rotation(0, 1, third) @ _rotation(2, 0, second) @ _rotation(1, 2, first) @ matrix
    result = np.empty_like(matrix)
    result[np.ix_(order, order)] = matrix
    return result


def _rotation(one: int, other: int, angle: float) -> NDArray[np.float64]:
    """(3 3) that turns axis `one` towards axis `other`; exactly the identity without an angle."""
    matrix = np.eye(3)
    matrix[one, one] = matrix[other, other] = math.cos(angle)
    matrix[one, other], matrix[other, one] = -math.sin(angle), math.sin(angle)
    return matrix


def region_of(
    matrix: NDArray[np.float64], start: Size3, box: Size3, size: Size3
) -> tuple[Size3, Size3, tuple[float, ...]]:
    """First voxel and size of the part of a box that a patch reads, and the box's center counted from that voxel."""
    center = (np.asarray(box) - 1) / 2
    reach = np.abs(matrix) @ ((np.asarray(size) - 1) / 2) + _ROUNDING
    low = np.maximum(np.floor(center - reach), 0).astype(int) // 2 * 2  # even, for rounding half-way places to even
    high = np.minimum(np.floor(center + reach) + 1, np.asarray(box) - 1).astype(int)
    z, y, x = (int(value) for value in low)
    d, h, w = (int(value) for value in high - low + 1)
    return (start[0] + z, start[1] + y, start[2] + x), (d, h, w), tuple(center - low)


def sample(
    image: Tensor, maps: NDArray[Any], matrix: NDArray[np.float64], center: Sequence[float], size: Size3
) -> tuple[Tensor, NDArray[Any]]:
    """Image (c d h w) and maps (m d h w) on the turned and stretched grid of a patch (size) about `center` (voxels)."""
    return sample_image(image, matrix, center, size), sample_labels(maps, matrix, center, size)


def sample_image(image: Tensor, matrix: NDArray[np.float64], center: Sequence[float], size: Size3) -> Tensor:
    """(c d h w) on the grid of a patch, linearly; outside is 0."""
    straight = [np.count_nonzero(matrix[axis]) == 1 == np.count_nonzero(matrix[:, axis]) for axis in range(3)]
    if all(straight):
        axes = zip(np.diag(matrix), center, size, image.shape[1:], strict=True)
        return along_axes(image, [linear_matrix(m + s * (np.arange(n) - (n - 1) / 2), r) for s, m, n, r in axes])
    for axis, length in enumerate(size):
        if straight[axis] and matrix[axis, axis] == 1 and image.shape[1 + axis] == length:
            return _sample_planes(image, matrix, center, size, axis)
    return _sample_grid(image, matrix, center, size)


def _sample_planes(
    image: Tensor, matrix: NDArray[np.float64], center: Sequence[float], size: Size3, axis: int
) -> Tensor:
    """Each plane across `axis` by itself, which stays as it is: torch samples many planes at once, and faster."""
    kept = [other for other in range(3) if other != axis]
    planes = image.movedim(1 + axis, 1)
    sampled = _sample_grid(
        planes.flatten(0, 1), matrix[np.ix_(kept, kept)], [center[k] for k in kept], [size[k] for k in kept]
    )
    return sampled.unflatten(0, planes.shape[:2]).movedim(1, 1 + axis)


def _sample_grid(image: Tensor, matrix: NDArray[np.float64], center: Sequence[float], size: Sequence[int]) -> Tensor:
    """(c ...) on a grid of `size` in two or three dimensions; torch counts from -1 to 1 and the last axis first."""
    read = np.asarray(image.shape[1:])
    linear = matrix * np.asarray(size)[None, :] / read[:, None]
    shift = (2 * np.asarray(center) + 1) / read - 1
    theta = np.concatenate([linear[::-1, ::-1], shift[::-1, None]], axis=1).astype(np.float32)
    grid = affine_grid(torch.from_numpy(theta)[None], [1, 1, *size], align_corners=False)
    return grid_sample(image[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
