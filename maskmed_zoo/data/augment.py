"""Random changes to training patches, after nnU-Net's default augmentation, built from MONAI's transforms.

Deviations from nnU-Net: rotation is about physical axes (mm), so that thick slices do not shear; labels are sampled
nearest; the low-resolution simulation has probability 0.15 like the other intensity changes (nnU-Net: 0.25).
Every draw comes from the generator handed in, so a patch depends on its seed alone, not on workers or order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskmed_zoo.recipe.schema import Augmentation, Axis
from maskmed_zoo.settings import Size3, Spacing3

AXES: dict[Axis, int] = {"z": 0, "y": 1, "x": 2}


def random_matrix(config: Augmentation, spacing: Spacing3, rng: np.random.Generator) -> np.ndarray | None:
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


def random_intensity(image: Tensor, config: Augmentation, rng: np.random.Generator) -> Tensor:
    """Noise, blur, brightness, contrast, low resolution and gamma on a normalised image (c d h w)."""
    for transform in _intensity_transforms(config.intensity_probability):
        transform.set_random_state(seed=int(rng.integers(2**31)))
        image = transform(image)
    return torch.as_tensor(image).as_subclass(Tensor)


def random_mirror(
    image: Tensor, labels: Tensor, axes: Sequence[Axis], rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Flip image (… d h w) and labels (… d h w) along each of `axes` with probability 1/2."""
    flipped = [AXES[axis] - 3 for axis in axes if rng.random() < 0.5]
    return image.flip(flipped), labels.flip(flipped)


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
