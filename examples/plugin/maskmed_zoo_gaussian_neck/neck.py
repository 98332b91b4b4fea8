"""A neck that smooths what crosses the skip connections: a Gaussian blur of every level, mixed in by a learned amount.

The blur has the same width in millimetres along every axis and at every level, so thick slices are blurred less, in
voxels, than thin ones. The amount of a level starts at 0, where the neck is the identity. Made up for this example.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from maskmed_zoo.contracts import ComponentConfig, FeatureSpec, Neck
from maskmed_zoo.settings import Spacing3


class GaussianConfig(ComponentConfig):
    """Settings of `gaussian`."""

    kind: Literal["gaussian"] = "gaussian"
    sigma: float = Field(default=2.0, gt=0, description="width of the blur, mm")


class GaussianNeck(Neck):
    """Levels in, the same levels out, each blended with its own blur."""

    Config = GaussianConfig

    def __init__(
        self, *, in_spec: FeatureSpec, config: GaussianConfig | None = None, spacing: Spacing3 = (1.0, 1.0, 1.0)
    ) -> None:
        super().__init__()
        config = config or GaussianConfig()
        self.out_spec = in_spec
        self.amount = nn.Parameter(torch.zeros(len(in_spec)))
        self.sigmas = [  # voxels of the level, per axis
            tuple(config.sigma / (step * mm) for step, mm in zip(stride, spacing, strict=True))
            for stride in in_spec.strides
        ]

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """One (b c_e d_e h_e w_e) per level in and out."""
        return [
            x + amount * (blur(x, sigmas) - x)
            for x, amount, sigmas in zip(levels, self.amount, self.sigmas, strict=True)
        ]


def blur(x: Tensor, sigmas: tuple[float, ...]) -> Tensor:
    """(b c d h w) smoothed with a Gaussian of `sigmas` voxels along d, h and w; borders repeat the nearest voxel."""
    channels = x.shape[1]
    for axis, sigma in enumerate(sigmas, start=2):
        radius = max(1, round(3 * sigma))
        offsets = torch.arange(-radius, radius + 1, device=x.device, dtype=torch.float32)
        weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
        shape = [channels, 1, 1, 1, 1]
        shape[axis] = len(weights)
        kernel = (weights / weights.sum()).view([1, *shape[1:]]).expand(shape).to(x.dtype)
        padding = [0] * 6
        padding[2 * (4 - axis)] = padding[2 * (4 - axis) + 1] = radius
        x = F.conv3d(F.pad(x, padding, mode="replicate"), kernel, groups=channels)
    return x
