"""The encoder of 3D UX-Net (Lee et al. 2023): a Swin transformer's shape made of large depth-wise convolutions.

A stem convolution 7x7x7 of stride 2 is followed by four stages of blocks, each half as fine and twice as wide. A block
is depth-wise 7x7x7 → layer norm over channels → depth-wise scaling (every channel by itself to four and back to one,
GELU between) → a learnt factor per channel that starts at 1e-6 → skip. It gives five levels, by MONAI's residual block
on the image and on every stage's normalized output, doubling its channels. The paper's network has the decoder
`unetr_up` with `refine`.

No deviation; the paper's number of parameters is checked in the tests.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from maskmed_zoo.contracts import ComponentConfig, Encoder
from maskmed_zoo.encoders.pyramid import PyramidConfig
from maskmed_zoo.layers.conv import conv3d
from maskmed_zoo.layers.unetr_blocks import basic_block, check_voxels
from maskmed_zoo.settings import Base, Layers

KERNEL = (7, 7, 7)
SCALING = 4
FACTOR = 1e-6


class UXNetConfig(ComponentConfig):
    """Settings of `ux_net`."""

    kind: Literal["ux_net"] = "ux_net"
    feature_size: Base = Field(default=48, description="channels of the finest level, then doubling")
    depths: tuple[Layers, Layers, Layers, Layers] = Field(default=(2, 2, 2, 2), description="blocks per stage")


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of every voxel of (b c d h w)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, input: Tensor) -> Tensor:  # the base class's name
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class UXBlock(nn.Module):
    """(b c d h w) to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv3d(channels, channels, KERNEL, padding="same", groups=channels)
        self.norm = ChannelNorm(channels)
        self.scaling = nn.Sequential(
            nn.Conv3d(channels, SCALING * channels, 1, groups=channels),
            nn.GELU(),
            nn.Conv3d(SCALING * channels, channels, 1, groups=channels),
        )
        self.factor = nn.Parameter(torch.full((channels, 1, 1, 1), FACTOR))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.factor * self.scaling(self.norm(self.depthwise(x)))


class UXNetEncoder(Encoder):
    """Four stages of large-kernel blocks, every level through a residual block."""

    Config = UXNetConfig

    def __init__(self, *, in_channels: int, config: UXNetConfig | None = None) -> None:
        super().__init__()
        config = config or UXNetConfig()
        channels = tuple(config.feature_size * 2**level for level in range(5))
        self.out_spec = PyramidConfig(channels=channels).out_spec
        self.downs, self.stages, self.norms = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for stage, depth in enumerate(config.depths):
            width = channels[stage]
            down = (
                nn.Sequential(ChannelNorm(width // 2), nn.Conv3d(width // 2, width, 2, 2))
                if stage
                else nn.Sequential(conv3d(in_channels, width, KERNEL, (2, 2, 2)), ChannelNorm(width))
            )
            self.downs.append(down)
            self.stages.append(nn.Sequential(*(UXBlock(width) for _ in range(depth))))
            self.norms.append(ChannelNorm(width))
        inputs = (in_channels, *channels[:-1])
        self.blocks = nn.ModuleList(basic_block(i, o) for i, o in zip(inputs, channels, strict=True))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image (b c d h w) to one (b c_e d_e h_e w_e) per level."""
        check_voxels(self.out_spec.sizes(image.shape[2:])[-1], "encoder 'ux_net'")
        x, maps = image, [image]
        for down, stage, norm in zip(self.downs, self.stages, self.norms, strict=True):
            x = stage(down(x))
            maps.append(norm(x))
        return [block(x) for block, x in zip(self.blocks, maps, strict=True)]
