"""nnU-Net's default augmentation: the steps, their order, probabilities and ranges.

Source: nnU-Net v2.8, `nnUNetTrainer.get_training_transforms` and `configure_rotation_dummyDA_mirroring_and_inital_\
patch_size`; batchgeneratorsv2 0.3, whose transforms the steps follow one by one.
Deviations: axes stay z, y, x; where nnU-Net's plan moves the coarsest axis to the front, it is an argument here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from maskmed_zoo.data.augmentation import intensity
from maskmed_zoo.data.augmentation.separable import blur, low_resolution
from maskmed_zoo.data.augmentation.source import Read
from maskmed_zoo.data.augmentation.spatial import box_size, crop_start, draw_matrix, region_of, sample
from maskmed_zoo.settings import Size3, Spacing3

SPATIAL_PROBABILITY = 0.2
"""Of rotation, and of zoom, each drawn apart."""
NOISE = 0.1
BLUR = 0.2
BRIGHTNESS = 0.15
CONTRAST = 0.15
LOW_RESOLUTION = 0.25
INVERTED_GAMMA = 0.1
GAMMA = 0.3
ANISOTROPIC = 3.0
"""A patch whose longest side is more than so many times that along the coarsest axis is rotated in plane only."""


class NNUNet:
    """The policy for patches of `patch_size` voxels at `spacing` mm, both z y x."""

    def __init__(self, patch_size: Size3, spacing: Spacing3) -> None:
        self.patch_size = patch_size
        self.coarsest = int(np.argmax(spacing))
        self.in_plane = max(patch_size) / patch_size[self.coarsest] > ANISOTROPIC
        self.box = box_size(patch_size, self.coarsest, self.in_plane)

    def take(self, read: Read, start: Size3, rng: np.random.Generator) -> tuple[Tensor, NDArray[Any]]:
        """Image (c d h w) float32 and maps (m d h w) of a patch, rotated and zoomed where that is drawn."""
        matrix = draw_matrix(rng, self.coarsest, self.in_plane, SPATIAL_PROBABILITY)
        if matrix is None:
            return read(crop_start(start, self.box, self.patch_size), self.patch_size)
        first, size, center = region_of(matrix, start, self.box, self.patch_size)
        return sample(*read(first, size), matrix, center, self.patch_size)

    def change(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        """The image (c d h w) with noise, blur, brightness, contrast, low resolution and gamma, in place."""
        if rng.random() < NOISE:
            intensity.noise(image, rng)
        if rng.random() < BLUR:
            blur(image, rng)
        if rng.random() < BRIGHTNESS:
            intensity.brightness(image, rng)
        if rng.random() < CONTRAST:
            intensity.contrast(image, rng)
        if rng.random() < LOW_RESOLUTION:
            low_resolution(image, rng, kept_axis=self.coarsest if self.in_plane else None)
        if rng.random() < INVERTED_GAMMA:
            intensity.gamma(image, rng, inverted=True)
        if rng.random() < GAMMA:
            intensity.gamma(image, rng)
        return image
