"""The policies by name, and what each of them does."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from maskmed_zoo.data.augmentation.light import Light
from maskmed_zoo.data.augmentation.nnunet import NNUNet
from maskmed_zoo.data.augmentation.source import Read
from maskmed_zoo.recipe.schema import DataRecipe, LightAugmentation
from maskmed_zoo.settings import Size3


class Policy(Protocol):
    """How a patch is taken out of its box, and how its intensities are changed."""

    @property
    def box(self) -> Size3:
        """Voxels, z y x, of the box that is drawn in a volume; the patch lies in its middle."""
        ...

    def take(self, read: Read, start: Size3, rng: np.random.Generator) -> tuple[Tensor, NDArray[Any]]:
        """Image (c d h w) float32 and maps (m d h w) of a patch, out of the box that starts at `start`."""
        ...

    def change(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        """The image (c d h w) of a patch with other intensities, in place."""
        ...


def policy_of(recipe: DataRecipe) -> Policy:
    """The policy that a recipe names."""
    if isinstance(recipe.augmentation, LightAugmentation):
        return Light(recipe.augmentation, recipe.patch_size, recipe.spacing)
    return NNUNet(recipe.patch_size, recipe.spacing)
