"""Patch and levels after nnU-Net's rules: where an axis is halved, where a kernel spans it, and how a patch shrinks.

Idea: a patch is as long in mm along every axis, as far as the images' median shape goes. An axis is halved as long as
it keeps 4 voxels and is not twice as coarse as the finest one; convolutions stay in the plane until then. Where a
network needs too much memory, the axis that covers most of the images gives.
Source: nnU-Net v2, `get_pool_and_conv_props` and the loop of `ExperimentPlanner.get_plans_for_configuration` (Isensee
et al., Nat Methods 18, 203, 2021). No deviation. Axes are in nnU-Net's order here, the coarsest first; see `Order`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import TypeVar

import numpy as np

from maskmed_zoo.contracts import PlannedLevels
from maskmed_zoo.settings import Size3, Spacing3

SHORTEST = 4
"""Voxels that an axis keeps at the coarsest level."""
START = 256
"""Side of the cube that the largest patch has the volume of."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class Order:
    """nnU-Net's order of the axes, the coarsest first: `axes[i]` is the place in (z, y, x) of its i-th."""

    axes: Size3

    @classmethod
    def of(cls, spacing: Sequence[float]) -> Order:
        """Of several equally coarse axes the first."""
        first = list(spacing).index(max(spacing))
        second, third = (axis for axis in range(3) if axis != first)
        return cls((first, second, third))

    def there(self, values: Sequence[_T]) -> tuple[_T, _T, _T]:
        """From (z, y, x) to nnU-Net's order."""
        a, b, c = (values[axis] for axis in self.axes)
        return a, b, c

    def back(self, values: Sequence[_T]) -> tuple[_T, _T, _T]:
        """From nnU-Net's order to (z, y, x)."""
        z, y, x = (values[self.axes.index(axis)] for axis in range(3))
        return z, y, x

    def levels_back(self, levels: PlannedLevels) -> PlannedLevels:
        """The same levels in (z, y, x)."""
        return PlannedLevels(
            tuple(map(self.back, levels.strides)),
            tuple(map(self.back, levels.kernels)),
            self.back(levels.patch),
            self.back(levels.spacing),
        )


def levels_of(spacing: Spacing3, patch: Sequence[float]) -> PlannedLevels:
    """The levels for a patch, which is padded to what their strides divide."""
    sizes, spacings = [float(side) for side in patch], list(spacing)
    strides, kernels, kernel = [(1, 1, 1)], list[Size3](), [1, 1, 1]
    while axes := _halved(spacings, sizes):
        kernel = [3 if k == 3 or s / min(spacings) < 2 else 1 for k, s in zip(kernel, spacings, strict=True)]
        kernels.append((kernel[0], kernel[1], kernel[2]))
        step = [2 if axis in axes else 1 for axis in range(3)]
        strides.append((step[0], step[1], step[2]))
        sizes = [ceil(side / 2) if s == 2 else side for side, s in zip(sizes, step, strict=True)]
        spacings = [mm * s for mm, s in zip(spacings, step, strict=True)]
    total = total_stride(strides)
    z, y, x = (ceil(side / s) * s for side, s in zip(patch, total, strict=True))
    return PlannedLevels(tuple(strides), (*kernels, (3, 3, 3)), (z, y, x), spacing)


def kernels_along(spacing: Spacing3, strides: Sequence[Size3]) -> tuple[Size3, ...]:
    """Kernels by the same rule for levels whose strides an encoder has set."""
    found, spacings, kernel = list[Size3](), list(spacing), [1, 1, 1]
    for step in (*strides[1:], (1, 1, 1)):
        kernel = [3 if k == 3 or s / min(spacings) < 2 else 1 for k, s in zip(kernel, spacings, strict=True)]
        found.append((kernel[0], kernel[1], kernel[2]))
        spacings = [mm * s for mm, s in zip(spacings, step, strict=True)]
    return (*found[:-1], (3, 3, 3))


def total_stride(strides: Sequence[Size3]) -> Size3:
    """Voxels of the image per voxel of the coarsest level."""
    z, y, x = (prod(step[axis] for step in strides) for axis in range(3))
    return z, y, x


def first_patch(spacing: Spacing3, median: Sequence[float]) -> tuple[float, float, float]:
    """As large as `START` cubed in the images' aspect, cut to their median shape, which may be half a voxel."""
    inverse = 1 / np.array(spacing)
    wished = inverse * (START**3 / np.prod(inverse)) ** (1 / 3)
    z, y, x = (min(round(float(side)), most) for side, most in zip(wished, median, strict=True))
    return z, y, x


def shrinking(spacing: Spacing3, median: Sequence[float]) -> Iterator[PlannedLevels]:
    """The patches that nnU-Net tries, largest first, as long as there are two levels."""
    levels = levels_of(spacing, first_patch(spacing, median))
    while len(levels.strides) > 1:
        yield levels
        axis = widest(levels.patch, median)
        smaller = list(levels.patch)
        # First by the stride of these levels, then by that of the levels which the smaller patch would have: 256 by 64
        # would be 192, but 224 can be halved often enough too.
        smaller[axis] -= total_stride(levels.strides)[axis]
        step = total_stride(levels_of(spacing, smaller).strides)[axis]
        smaller[axis] = levels.patch[axis] - step
        if smaller[axis] < 1:
            return
        levels = levels_of(spacing, smaller)


def multiples(spacing: Spacing3, median: Sequence[float], strides: Sequence[Size3]) -> Iterator[PlannedLevels]:
    """Likewise for an encoder whose strides are its own: multiples of them, with two voxels at the coarsest level."""
    total, kernels = total_stride(strides), kernels_along(spacing, strides)
    start = first_patch(spacing, median)
    patch = [max(1, ceil(side / s)) * s for side, s in zip(start, total, strict=True)]
    if tuple(patch) == total:
        patch[widest(tuple(-side for side in patch), median)] *= 2
    while True:
        yield PlannedLevels(tuple(strides), kernels, (patch[0], patch[1], patch[2]), spacing)
        left = [axis for axis in range(3) if patch[axis] > total[axis]]
        if prod(p // s for p, s in zip(patch, total, strict=True)) <= 2 or not left:
            return
        axis = max(left, key=lambda a: (patch[a] / median[a], a))
        patch[axis] -= total[axis]


def widest(patch: Sequence[float], median: Sequence[float]) -> int:
    """The axis along which a patch covers most of the images; of several the last, as in nnU-Net."""
    return max(range(3), key=lambda axis: (patch[axis] / median[axis], axis))


def _halved(spacings: Sequence[float], sizes: Sequence[float]) -> list[int]:
    """The axes that are halved once more, perhaps none."""
    long = [axis for axis in range(3) if sizes[axis] >= 2 * SHORTEST]
    if not long:
        return []
    finest = min(spacings[axis] for axis in long)
    axes = [axis for axis in long if spacings[axis] / finest < 2]
    return [] if len(axes) == 1 and sizes[axes[0]] < 3 * SHORTEST else axes
