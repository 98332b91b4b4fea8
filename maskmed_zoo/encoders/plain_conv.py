"""nnU-Net's plain convolutional U-Net encoder (Isensee et al. 2021), the encoder of MaskMed §4.

The layers are those of `PlainConvEncoder` of nnU-Net v2, so that with the `unet` decoder its checkpoints load through
`maskmed_zoo.weights.keys`. No deviation.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from maskmed_zoo.contracts import Encoder
from maskmed_zoo.encoders.pyramid import PyramidConfig
from maskmed_zoo.layers.conv import ConvStack, init_he, per_level


class PlainConvConfig(PyramidConfig):
    """Settings of `plain_conv`."""

    kind: Literal["plain_conv"] = "plain_conv"


class PlainConvEncoder(Encoder):
    """Stacks of convolution → instance norm → leaky ReLU; the first convolution of a level has its stride."""

    Config = PlainConvConfig

    def __init__(self, *, in_channels: int, config: PlainConvConfig | None = None) -> None:
        super().__init__()
        config = config or PlainConvConfig()
        self.out_spec = config.out_spec
        inputs = (in_channels, *config.channels[:-1])
        self.levels = nn.ModuleList(
            ConvStack(*level)
            for level in zip(
                inputs,
                config.channels,
                config.level_kernels,
                config.level_strides,
                per_level(config.blocks, len(inputs)),
                strict=True,
            )
        )
        init_he(self)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image (b c d h w) to one (b c_e d_e h_e w_e) per level."""
        levels: list[Tensor] = []
        for level in self.levels:
            image = level(image)
            levels.append(image)
        return levels
