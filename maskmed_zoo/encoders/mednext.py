"""The encoder of MedNeXt (Roy et al. 2023), sizes S, B, M and L, MONAI's blocks.

There are five levels of ConvNeXt-like blocks: depth-wise convolution, norm per channel, expansion, GELU, compression,
skip; one of them with stride 2 leads to the level below. With the decoder `mednext_up` of the same settings and a 1x1x1
convolution this is MONAI's `MedNeXt`.

Deviations: none from MONAI; unlike the authors' code it does not recompute activations to save memory.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from maskmed_zoo.contracts import Encoder
from maskmed_zoo.encoders.pyramid import PyramidConfig
from maskmed_zoo.layers.conv import conv3d
from maskmed_zoo.layers.mednext import MedNeXtSettings
from maskmed_zoo.layers.unetr_blocks import check_voxels
from maskmed_zoo.settings import Base


class MedNeXtConfig(MedNeXtSettings):
    """Settings of `mednext`."""

    kind: Literal["mednext"] = "mednext"
    feature_size: Base = Field(default=32, description="channels of the finest level, then doubling")


class MedNeXtEncoder(Encoder):
    """Pointwise stem, then stacks of MedNeXt blocks with a strided one between two levels."""

    Config = MedNeXtConfig

    def __init__(self, *, in_channels: int, config: MedNeXtConfig | None = None) -> None:
        super().__init__()
        config = config or MedNeXtConfig()
        channels = tuple(config.feature_size * 2**level for level in range(5))
        self.out_spec = PyramidConfig(channels=channels).out_spec
        self.stem = conv3d(in_channels, channels[0], (1, 1, 1))
        self.levels = nn.ModuleList(config.stack(width, level) for level, width in enumerate(channels))
        self.downs = nn.ModuleList(config.down(channels[e], channels[e + 1], e) for e in range(4))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image (b c d h w) to one (b c_e d_e h_e w_e) per level."""
        check_voxels(self.out_spec.sizes(image.shape[2:])[-1], "encoder 'mednext'")
        levels: list[Tensor] = [self.levels[0](self.stem(image))]
        for down, level in zip(self.downs, self.levels[1:], strict=True):
            levels.append(level(down(levels[-1])))
        return levels
