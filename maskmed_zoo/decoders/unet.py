"""The U-Net decoder of nnU-Net v2 (`UNetDecoder`): transposed convolution, concatenation, plain convolutions.

E levels give E-1 stages, stage l at the resolution and, by default, of the width of level l. The projection to labels
is the head's. Beyond nnU-Net's default: residual blocks (its `UNetResDecoder`), and another width for the whole
decoder, given as a factor or by the number of parameters, as for "nnU-Net with larger decoder" of MaskMed Table 3.
"""

from __future__ import annotations

from functools import cache
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from maskmed_zoo.contracts import ComponentConfig, Decoder, FeatureSpec, PlannedLevels
from maskmed_zoo.decoders.pyramid import stage_strides
from maskmed_zoo.errors import JointError
from maskmed_zoo.layers.conv import ConvNormAct, ResidualBlock, init_he, per_level
from maskmed_zoo.settings import Layers, PositiveInt, Triple

HALVINGS = 50  # more than there are digits that change a channel count


class UNetConfig(ComponentConfig):
    """Settings of `unet`."""

    kind: Literal["unet"] = "unet"
    blocks: Layers | tuple[Layers, ...] = Field(
        default=2, description="convolutions (or residual blocks) per stage, one number or one each, finest first"
    )
    kernels: tuple[Triple, ...] | None = Field(default=None, description="per stage, finest first, odd; null: 3")
    residual: bool = Field(default=False, description="residual blocks of two convolutions instead of convolutions")
    width: float = Field(default=1.0, gt=0, le=1000, description="channels of a stage over those of its level")
    parameters: PositiveInt | None = Field(
        default=None,
        description="in place of `width`: grow or shrink until the decoder by itself has about so many parameters",
    )

    @model_validator(mode="after")
    def _settings_fit(self) -> UNetConfig:
        if any(k % 2 == 0 for kernel in self.kernels or () for k in kernel):
            raise ValueError("'kernels' must be odd")
        if self.parameters is not None and self.width != 1:
            raise ValueError("'width' follows from 'parameters'; give only one of them")
        return self

    def fitted(self, levels: PlannedLevels) -> Self:
        """A stage for every level but the lowest, with that level's kernel; stages beyond the settings' as the last."""
        count, blocks = len(levels.strides) - 1, self.blocks
        if isinstance(blocks, tuple):
            blocks = (*blocks, *(blocks[-1],) * count)[:count]
        return self.model_copy(update={"kernels": levels.kernels[:-1], "blocks": blocks})


class UNetDecoder(Decoder):
    """Upsample by the stride between two levels, concatenate the finer level, convolve."""

    Config = UNetConfig

    def __init__(self, *, in_spec: FeatureSpec, config: UNetConfig | None = None) -> None:
        super().__init__()
        config = config or UNetConfig()
        _check(in_spec, config)
        width = config.width if config.parameters is None else _fit_width(in_spec, config, config.parameters)
        channels = _channels(in_spec, width)
        self.out_spec = FeatureSpec(channels, in_spec.strides[:-1])
        self.upsamplers, self.stages = _layers(in_spec, channels, config)
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


def _layers(in_spec: FeatureSpec, channels: tuple[int, ...], config: UNetConfig) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Upsamplers and convolutions of stages with so many channels."""
    block = ResidualBlock if config.residual else ConvNormAct
    kernels = config.kernels or ((3, 3, 3),) * len(channels)
    below = (*channels[1:], in_spec.channels[-1])
    strides = stage_strides(in_spec, "unet")
    upsamplers, stages = nn.ModuleList(), nn.ModuleList()
    for stage, (width, count) in enumerate(zip(channels, per_level(config.blocks, len(channels)), strict=True)):
        upsamplers.append(nn.ConvTranspose3d(below[stage], width, strides[stage], strides[stage]))
        inputs = (width + in_spec.channels[stage],) + (width,) * (count - 1)
        stages.append(nn.Sequential(*(block(c, width, kernels[stage]) for c in inputs)))
    return upsamplers, stages


def _channels(in_spec: FeatureSpec, width: float) -> tuple[int, ...]:
    return tuple(max(1, round(width * c)) for c in in_spec.channels[:-1])


def _fit_width(in_spec: FeatureSpec, config: UNetConfig, parameters: int) -> float:
    """The width that brings a decoder nearest to so many parameters, by bisection: they grow with it."""

    @cache
    def size(channels: tuple[int, ...]) -> int:
        with torch.device("meta"):
            layers = _layers(in_spec, channels, config)
        return sum(p.numel() for part in layers for p in part.parameters())

    def count(width: float) -> int:
        return size(_channels(in_spec, width))

    low, high = 0.0, 1.0
    if count(low) > parameters:
        raise JointError(
            f"decoder 'unet' cannot have as few as {parameters} parameters: with one channel per stage it has "
            f"{count(low)}; set 'parameters' to at least that, or fewer 'blocks' or smaller 'kernels'"
        )
    while count(high) < parameters:
        low, high = high, 2 * high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if count(middle) < parameters else (low, middle)
    return min(low, high, key=lambda width: abs(count(width) - parameters))


def _check(in_spec: FeatureSpec, config: UNetConfig) -> None:
    stages = len(stage_strides(in_spec, "unet"))
    for name, value in (("kernels", config.kernels), ("blocks", config.blocks)):
        if isinstance(value, tuple) and len(value) != stages:
            raise JointError(f"decoder 'unet' has {len(value)} '{name}' for {stages} stages; give one per stage")
