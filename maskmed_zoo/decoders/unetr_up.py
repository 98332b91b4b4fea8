"""The decoder of UNETR, Swin UNETR and 3D UX-Net: MONAI's `UnetrUpBlock` from level to level.

A step is a transposed convolution by the stride between two levels, the concatenation of the finer level and a residual
block of two convolutions. E levels give E-1 stages, stage l at the resolution and width of level l; the projection to
labels is the head's. Those networks project the finest stage alone, without deep supervision: `stages: 1`.

Deviations: none from MONAI; other strides than 2 are taken, as MONAI's block can.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from maskmed_zoo.contracts import ComponentConfig, Decoder, FeatureSpec
from maskmed_zoo.decoders.pyramid import stage_strides
from maskmed_zoo.errors import JointError
from maskmed_zoo.layers.unetr_blocks import basic_block, up_block
from maskmed_zoo.settings import Layers


class UNETRUpConfig(ComponentConfig):
    """Settings of `unetr_up`."""

    kind: Literal["unetr_up"] = "unetr_up"
    stages: Layers | None = Field(
        default=None, description="how many stages to hand on, finest first; null: all, 1: no deep supervision"
    )
    refine: bool = Field(default=False, description="another residual block on the finest stage, as 3D UX-Net has")


class UNETRUpDecoder(Decoder):
    """Upsample, concatenate the finer level, residual block."""

    Config = UNETRUpConfig

    def __init__(self, *, in_spec: FeatureSpec, config: UNETRUpConfig | None = None) -> None:
        super().__init__()
        config = config or UNETRUpConfig()
        strides, channels = stage_strides(in_spec, "unetr_up"), in_spec.channels
        handed_on = config.stages or len(strides)
        if handed_on > len(strides):
            raise JointError(f"decoder 'unetr_up' makes {len(strides)} stages here, 'stages' asks for {handed_on}")
        self.out_spec = FeatureSpec(channels[:handed_on], in_spec.strides[:handed_on])
        self.stages = nn.ModuleList(map(up_block, channels[1:], channels[:-1], strides))
        self.refine = basic_block(channels[0], channels[0]) if config.refine else nn.Identity()

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """One (b c_e d_e h_e w_e) per level to one (b c_l d_l h_l w_l) per stage, finest first."""
        x = levels[-1]
        outputs: list[Tensor] = []
        for stage in reversed(range(len(self.stages))):
            x = self.stages[stage](x, levels[stage])
            outputs.append(x)
        outputs[-1] = self.refine(x)
        return outputs[::-1][: len(self.out_spec)]
