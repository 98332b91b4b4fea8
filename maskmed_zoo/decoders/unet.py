"""The U-Net decoder of nnU-Net v2 (`UNetDecoder`): transposed convolution, concatenation, plain convolutions.

E levels give E-1 stages, stage l at the resolution and width of level l. The projection to labels is the head's.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from maskmed_zoo.contracts import ComponentConfig, Decoder, FeatureSpec, PositiveInt, Size3, Triple
from maskmed_zoo.errors import JointError
from maskmed_zoo.layers.conv import ConvStack, init_he


class UNetConfig(ComponentConfig):
    """Settings of `unet`."""

    kind: Literal["unet"] = "unet"
    blocks: PositiveInt = Field(default=2, description="convolutions per stage")
    kernels: tuple[Triple, ...] | None = Field(default=None, description="per stage, finest first, odd; null: 3")


class UNetDecoder(Decoder):
    """Upsample by the stride between two levels, concatenate the finer level, convolve."""

    Config = UNetConfig

    def __init__(self, *, in_spec: FeatureSpec, config: UNetConfig | None = None) -> None:
        super().__init__()
        config = config or UNetConfig()
        if len(in_spec) < 2:
            raise JointError(f"decoder 'unet' needs at least 2 levels, the encoder gives {len(in_spec)}")
        stages = len(in_spec) - 1
        self.out_spec = FeatureSpec(in_spec.channels[:-1], in_spec.strides[:-1])
        kernels = config.kernels or ((3, 3, 3),) * stages
        if len(kernels) != stages:
            raise JointError(f"decoder 'unet' has {len(kernels)} 'kernels' for {stages} stages; give one per stage")
        self.upsamplers = nn.ModuleList()
        self.stages = nn.ModuleList()
        for stage in range(stages):
            stride = _ratio(in_spec, stage)
            width = in_spec.channels[stage]
            self.upsamplers.append(nn.ConvTranspose3d(in_spec.channels[stage + 1], width, stride, stride))
            self.stages.append(ConvStack(2 * width, width, kernels[stage], (1, 1, 1), config.blocks))
        init_he(self)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """One (b c_e d_e h_e w_e) per level to one (b c_l d_l h_l w_l) per stage, finest first."""
        x = levels[-1]
        outputs: list[Tensor] = []
        for stage in reversed(range(len(self.stages))):
            x = torch.cat([self.upsamplers[stage](x), levels[stage]], 1)
            x = self.stages[stage](x)
            outputs.append(x)
        return outputs[::-1]


def _ratio(spec: FeatureSpec, level: int) -> Size3:
    fine, coarse = spec.strides[level], spec.strides[level + 1]
    if any(c % f for f, c in zip(fine, coarse, strict=True)):
        raise JointError(
            f"decoder 'unet' needs every stride to be a multiple of the one above, "
            f"got {coarse} below {fine} at level {level + 1}"
        )
    return (coarse[0] // fine[0], coarse[1] // fine[1], coarse[2] // fine[2])
