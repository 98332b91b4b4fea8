"""Mirroring (nnU-Net's `MirrorTransform`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskmed_zoo.recipe.schema import Axis

AXES: dict[Axis, int] = {"z": 0, "y": 1, "x": 2}


def mirror(
    image: Tensor, maps: NDArray[Any], axes: Sequence[Axis], rng: np.random.Generator
) -> tuple[Tensor, NDArray[Any]]:
    """Flip image (c d h w) and maps (m d h w) along each of `axes` with probability 1/2."""
    flipped = [1 + AXES[axis] for axis in axes if rng.random() < 0.5]
    if not flipped:
        return image, maps
    return torch.flip(image, flipped), np.flip(maps, tuple(flipped))
