"""A light policy for schedules too short for nnU-Net's, with strengths in the recipe, built from MONAI's transforms.

Rotation is about physical axes (mm), so that thick slices do not shear, and comes with zoom in one draw; labels are
sampled nearest; every change of intensity has one probability and is alike for all channels.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskmed_zoo.data.augmentation.source import Read
from maskmed_zoo.data.crop import OUTSIDE
from maskmed_zoo.recipe.schema import LightAugmentation
from maskmed_zoo.settings import Size3, Spacing3


class Light:
    """The policy for patches of `patch_size` voxels at `spacing` mm, both z y x; a patch is its own box."""

    def __init__(self, config: LightAugmentation, patch_size: Size3, spacing: Spacing3) -> None:
        self.config, self.box, self.spacing = config, patch_size, spacing

    def take(self, read: Read, start: Size3, rng: np.random.Generator) -> tuple[Tensor, NDArray[Any]]:
        """Image (c d h w) float32 and maps (m d h w) of a patch, rotated and scaled where that is drawn."""
        matrix = random_matrix(self.config, self.spacing, rng)
        if matrix is None:
            return read(start, self.box)
        source = source_size(matrix, self.box)
        z, y, x = (s + (n - m) // 2 for s, n, m in zip(start, self.box, source, strict=True))
        image, maps = read((z, y, x), source)
        above_zero = torch.from_numpy(maps.astype(np.float32)) - OUTSIDE
        turned = apply_matrix(above_zero, matrix, self.box, nearest=True) + OUTSIDE
        return apply_matrix(image, matrix, self.box, nearest=False), turned.numpy().astype(maps.dtype)

    def change(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        """The image (c d h w) with other intensities."""
        return random_intensity(image, self.config, rng)


def random_matrix(config: LightAugmentation, spacing: Spacing3, rng: np.random.Generator) -> np.ndarray | None:
    """(3 3) matrix from output to input voxel offsets about the patch centre (rotation, zoom), or None: no change."""
    if rng.random() >= config.spatial_probability:
        return None
    matrix = np.eye(3) / rng.uniform(*config.scale)
    for axis in range(3):
        angle = math.radians(rng.uniform(-config.rotation, config.rotation))
        one, other = (a for a in range(3) if a != axis)
        rotation = np.eye(3)
        rotation[one, one] = rotation[other, other] = math.cos(angle)
        rotation[one, other], rotation[other, one] = -math.sin(angle), math.sin(angle)
        matrix = matrix @ rotation
    mm = np.asarray(spacing)
    return matrix * mm[None, :] / mm[:, None]


def source_size(matrix: np.ndarray, size: Size3) -> Size3:
    """Voxels of the region that the patch reads from under `matrix`, a voxel of margin included."""
    extent = np.abs(matrix) @ np.asarray(size)
    return (int(extent[0]) + 2, int(extent[1]) + 2, int(extent[2]) + 2)


def apply_matrix(array: Tensor, matrix: np.ndarray, size: Size3, *, nearest: bool) -> Tensor:
    """Sample (c d h w) about its centre through `matrix` into (c *size); outside is 0."""
    from monai.transforms.spatial.array import Affine

    homogeneous = np.eye(4)
    homogeneous[:3, :3] = matrix
    mode = "nearest" if nearest else "bilinear"
    transform = Affine(affine=homogeneous, mode=mode, padding_mode="zeros", image_only=True)
    return torch.as_tensor(transform(array, spatial_size=size)).as_subclass(Tensor)


def random_intensity(image: Tensor, config: LightAugmentation, rng: np.random.Generator) -> Tensor:
    """Noise, blur, brightness, contrast, low resolution and gamma on a normalized image (c d h w)."""
    for transform in _intensity_transforms(config.intensity_probability):
        transform.set_random_state(seed=int(rng.integers(2**31)))
        image = transform(image)
    return torch.as_tensor(image).as_subclass(Tensor)


@cache
def _intensity_transforms(probability: float) -> list[Any]:
    from monai.transforms.intensity import array as monai

    return [
        monai.RandGaussianNoise(prob=probability, mean=0.0, std=0.3, sample_std=True),
        monai.RandGaussianSmooth(sigma_x=(0.5, 1.0), sigma_y=(0.5, 1.0), sigma_z=(0.5, 1.0), prob=probability),
        monai.RandScaleIntensity(factors=0.25, prob=probability),
        monai.RandScaleIntensityFixedMean(factors=0.25, preserve_range=True, prob=probability),
        _low_resolution(probability),
        monai.RandAdjustContrast(prob=probability, gamma=(0.7, 1.5), retain_stats=True),
    ]


def _low_resolution(probability: float) -> Any:
    from monai.transforms.spatial.array import RandSimulateLowResolution

    return RandSimulateLowResolution(prob=probability, zoom_range=(0.5, 1.0))
