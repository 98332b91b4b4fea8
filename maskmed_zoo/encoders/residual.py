"""nnU-Net's residual encoder (ResEnc; Isensee et al., "nnU-Net Revisited", 2024).

A stem convolution is followed by residual blocks per level; the first block of a level has its stride. The layers are
those of `ResidualEncoder` with `BasicBlockD` of nnU-Net v2; checkpoints load like those of `plain_conv`. No deviation.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from maskmed_zoo.contracts import Encoder
from maskmed_zoo.encoders.pyramid import PyramidConfig
from maskmed_zoo.layers.conv import ConvStack, ResidualBlock, init_he, per_level
from maskmed_zoo.settings import Layers


class ResidualConfig(PyramidConfig):
    """Settings of `residual`; the defaults are those of ResEnc-M/L: 1, 3, 4, 6, 6, 6 blocks."""

    kind: Literal["residual"] = "residual"
    blocks: Layers | tuple[Layers, ...] = Field(default=(1, 3, 4, 6, 6, 6), description="residual blocks per level")


class ResidualEncoder(Encoder):
    """Stem, then levels of `BasicBlockD`."""

    Config = ResidualConfig

    def __init__(self, *, in_channels: int, config: ResidualConfig | None = None) -> None:
        super().__init__()
        config = config or ResidualConfig()
        self.out_spec = config.out_spec
        kernels = config.level_kernels
        self.stem = ConvStack(in_channels, config.channels[0], kernels[0], (1, 1, 1), 1)
        inputs = (config.channels[0], *config.channels[:-1])
        self.levels = nn.ModuleList()
        for width_in, width, kernel, stride, count in zip(
            inputs, config.channels, kernels, config.level_strides, per_level(config.blocks, len(inputs)), strict=True
        ):
            rest = (ResidualBlock(width, width, kernel) for _ in range(count - 1))
            self.levels.append(nn.Sequential(ResidualBlock(width_in, width, kernel, stride), *rest))
        init_he(self)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image (b c d h w) to one (b c_e d_e h_e w_e) per level."""
        image = self.stem(image)
        levels: list[Tensor] = []
        for level in self.levels:
            image = level(image)
            levels.append(image)
        return levels
