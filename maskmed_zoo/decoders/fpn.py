"""The pixel decoder of MaskFormer and Mask2Former in 3-D, a feature pyramid network (MaskMed App. D.1, Fig. 7).

From the lowest level to the finest: the lowest goes through a 3x3x3 convolution; every other one is projected (1x1x1),
gets the resized stage below added and goes through a 3x3x3 convolution of its own. E levels give E stages of one
width, the lowest included, so that queries can attend to it.

Source: Cheng et al., MaskFormer (2021), Mask2Former (2022); the tests compare with Hugging Face's. Deviations:
nnU-Net's norm and activation (instance norm, leaky ReLU) instead of group norm and ReLU; trilinear resizing, as
bilinear in Mask2Former (MaskFormer: nearest); the finest stage itself takes the place of the mask features; queries
read stages of this pyramid, those of MaskFormer the encoder's lowest level and those of Mask2Former the levels that its
deformable attention gives.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from maskmed_zoo.contracts import ComponentConfig, Decoder, FeatureSpec, resize
from maskmed_zoo.layers.conv import ConvNormAct, init_he
from maskmed_zoo.settings import Width


class FPNConfig(ComponentConfig):
    """Settings of `fpn`."""

    kind: Literal["fpn"] = "fpn"
    channels: Width = Field(default=64, description="channels of every stage")


class FPNDecoder(Decoder):
    """Project a level, add the resized stage below, convolve."""

    Config = FPNConfig

    def __init__(self, *, in_spec: FeatureSpec, config: FPNConfig | None = None) -> None:
        super().__init__()
        width = (config or FPNConfig()).channels
        *finer, lowest = in_spec.channels
        self.out_spec = FeatureSpec((width,) * len(in_spec), in_spec.strides)
        self.lowest = ConvNormAct(lowest, width, (3, 3, 3), bias=False)
        self.laterals = nn.ModuleList(ConvNormAct(c, width, (1, 1, 1), bias=False, activation=False) for c in finer)
        self.stages = nn.ModuleList(ConvNormAct(width, width, (3, 3, 3), bias=False) for _ in finer)
        init_he(self)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """One (b c_e d_e h_e w_e) per level to one (b c d_e h_e w_e) per level, finest first; any sizes."""
        x = self.lowest(levels[-1])
        outputs = [x]
        for index in reversed(range(len(self.stages))):
            lateral = self.laterals[index](levels[index])
            x = self.stages[index](lateral + resize(x, lateral.shape[2:]))
            outputs.append(x)
        return outputs[::-1]
