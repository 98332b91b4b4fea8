"""The decoder of MedNeXt (Roy et al. 2023), sizes S, B, M and L, MONAI's blocks.

From level to level a strided MedNeXt block goes upwards, the finer level is added and a stack of blocks follows. E
levels give E-1 stages, stage l at the resolution and width of level l; the projection to labels is the head's.

Deviations: strides other than 2 are taken; the authors project the lowest level too, but nnU-Net's loss, which they
use, gives that output no weight.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from maskmed_zoo.contracts import Decoder, FeatureSpec
from maskmed_zoo.decoders.pyramid import stage_strides
from maskmed_zoo.layers.mednext import MedNeXtSettings, UpBlock
from maskmed_zoo.layers.unetr_blocks import check_voxels


class MedNeXtUpConfig(MedNeXtSettings):
    """Settings of `mednext_up`."""

    kind: Literal["mednext_up"] = "mednext_up"


class MedNeXtUpDecoder(Decoder):
    """Upsample, add the finer level, MedNeXt blocks."""

    Config = MedNeXtUpConfig

    def __init__(self, *, in_spec: FeatureSpec, config: MedNeXtUpConfig | None = None) -> None:
        super().__init__()
        config = config or MedNeXtUpConfig()
        strides, channels = stage_strides(in_spec, "mednext_up"), in_spec.channels
        self.out_spec = FeatureSpec(channels[:-1], in_spec.strides[:-1])
        self.upsamplers, self.stages = nn.ModuleList(), nn.ModuleList()
        for stage, stride in enumerate(strides):
            self.upsamplers.append(UpBlock(channels[stage + 1], channels[stage], config, stage, stride))
            self.stages.append(config.stack(channels[stage], stage))

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """One (b c_e d_e h_e w_e) per level to one (b c_l d_l h_l w_l) per stage, finest first."""
        x = levels[-1]
        check_voxels(x.shape[2:], "decoder 'mednext_up'")
        outputs: list[Tensor] = []
        for stage in reversed(range(len(self.stages))):
            x = self.stages[stage](self.upsamplers[stage](x) + levels[stage])
            outputs.append(x)
        return outputs[::-1]
