"""What a policy reads from: boxes of a volume, completed where they reach beyond it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from maskmed_zoo.data.crop import OUTSIDE
from maskmed_zoo.settings import Size3


class Read(Protocol):
    """A box of a case by its first voxel, which may be negative, and its size, z y x.

    Returns the image (c d h w) float32, 0 outside the volume, and maps (m d h w) of whole numbers: labels, `OUTSIDE`
    outside the volume, and instances where they are asked for, 0 outside.
    """

    def __call__(self, start: Size3, size: Size3, /) -> tuple[Tensor, NDArray[Any]]: ...


def empty_outside(image: Tensor, labels: NDArray[Any], channels: Sequence[int]) -> None:
    """Set those channels of an image (c d h w) to 0 where a label (d h w) is `OUTSIDE`, in place.

    Channels that are normalized within the non-zero region alone are 0 elsewhere; changes of intensity move that
    (nnU-Net's `MaskImageTransform`).
    """
    if channels:
        outside = torch.from_numpy(labels == OUTSIDE)
        for channel in channels:
            image[channel].masked_fill_(outside, 0)
