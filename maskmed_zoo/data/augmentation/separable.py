"""Changes that work along one axis after the other: blur and simulated low resolution; images (c d h w), in place.

Source: batchgeneratorsv2, `GaussianBlurTransform` and `SimulateLowResolutionTransform`, with the arguments of nnU-Net's
default trainer. A step along an axis is linear, and patches are small: it is one product with a matrix, which holds the
kernel and what lies beyond the border.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

CHANNEL_PROBABILITY = 0.5
"""Of each channel, once the step is drawn."""
SIGMAS = (0.5, 1.0)
SCALES = (0.5, 1.0)
_TRUNCATE = 6.0


def along_axes(image: Tensor, matrices: Sequence[Tensor | None]) -> Tensor:
    """(c d h w) with its axes d, h, w multiplied by matrices (out in), None for those that stay."""
    first, second, third = matrices
    if third is not None:
        image = image @ third.T
    if second is not None:
        image = second @ image
    if first is not None:
        image = (first @ image.flatten(2)).unflatten(2, image.shape[2:])
    return image


def blur(image: Tensor, rng: np.random.Generator) -> None:
    """Gaussian blur of some channels, with a width of its own along each axis (voxels)."""
    for channel in image:
        if rng.random() < CHANNEL_PROBABILITY:
            apply_blur(channel, [rng.uniform(*SIGMAS) for _ in range(3)])


def apply_blur(channel: Tensor, sigmas: Sequence[float]) -> None:
    """Blur (d h w) along each axis; the image is reflected at its border, whose voxels are not repeated."""
    matrices = [_blur_matrix(length, sigma) for length, sigma in zip(channel.shape, sigmas, strict=True)]
    channel.copy_(along_axes(channel[None], matrices)[0])


def _blur_matrix(length: int, sigma: float) -> Tensor | None:
    """(length length) float32: a normalized Gaussian of an odd number of voxels, about 6 sigma; None for one voxel."""
    if length == 1:
        return None
    half = _kernel_size(sigma) // 2
    offsets = np.arange(-half, half + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    period = 2 * (length - 1)
    places = np.abs((np.arange(length)[:, None] + offsets) % period)
    places = np.minimum(places, period - places)
    matrix = np.zeros((length, length))
    np.add.at(matrix, (np.arange(length)[:, None], places), weights)
    return _float(matrix)


def _kernel_size(sigma: float) -> int:
    """The odd number nearest to 6 sigma + 1/2."""
    wanted = sigma * _TRUNCATE + 0.5
    size = round(wanted)
    if size % 2 == 1:
        return size
    return size + 1 if wanted >= size else size - 1


def low_resolution(image: Tensor, rng: np.random.Generator, *, kept_axis: int | None) -> None:
    """Some channels as if they had been taken with larger voxels; `kept_axis` keeps its resolution."""
    for channel in image:
        if rng.random() < CHANNEL_PROBABILITY:
            scale = rng.uniform(*SCALES)
            apply_low_resolution(channel, [1.0 if axis == kept_axis else scale for axis in range(3)])


def apply_low_resolution(channel: Tensor, scales: Sequence[float]) -> None:
    """(d h w) sampled down to its size times `scales`, nearest, and up again, linearly."""
    d, h, w = (max(1, round(n * float(np.float32(s)))) for n, s in zip(channel.shape, scales, strict=True))
    small = interpolate(channel[None, None], (d, h, w), mode="nearest-exact")
    channel.copy_(interpolate(small, channel.shape, mode="trilinear")[0, 0])


def linear_matrix(places: NDArray[np.float64], length: int) -> Tensor:
    """(n length) float32 that interpolates an axis linearly at `places` (n), voxels; 0 beyond its ends."""
    matrix = np.zeros((len(places), length + 2))
    inside = np.clip(places + 1, 0, length + 1)
    low = np.minimum(np.floor(inside).astype(np.intp), length)
    rows = np.arange(len(places))
    matrix[rows, low] = 1 - (inside - low)
    matrix[rows, low + 1] = inside - low
    return _float(matrix[:, 1:-1])


def _float(matrix: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(matrix, np.float32))
