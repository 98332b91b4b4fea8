"""Settings common to encoders that halve their way down a pyramid: channels, strides and kernels per level."""

from __future__ import annotations

from itertools import accumulate
from typing import Self

from pydantic import Field, model_validator

from maskmed_zoo.contracts import ComponentConfig, FeatureSpec, PlannedLevels
from maskmed_zoo.settings import MOST_LEVELS, Layers, Size3, Triple, Width

WIDENING = 10
"""Of the widest level over the finest, as nnU-Net's 320 channels over 32."""


class PyramidConfig(ComponentConfig):
    """Channels, strides and kernels per level; a single number stands for (z, y, x)."""

    channels: tuple[Width, ...] = Field(default=(32, 64, 128, 256, 320, 320), min_length=2, max_length=MOST_LEVELS)
    strides: tuple[Triple, ...] | None = Field(
        default=None, description="per level, over the one above; null: 1, then 2"
    )
    kernels: tuple[Triple, ...] | None = Field(default=None, description="per level, odd; null: 3")
    blocks: Layers | tuple[Layers, ...] = Field(default=2, description="blocks per level, one number or one each")

    @model_validator(mode="after")
    def _one_per_level(self) -> PyramidConfig:
        levels = len(self.channels)
        for name in ("strides", "kernels", "blocks"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != levels:
                raise ValueError(f"'{name}' has {len(value)} entries for {levels} levels in 'channels'")
        if any(k % 2 == 0 for kernel in self.kernels or () for k in kernel):
            raise ValueError("'kernels' must be odd")
        if self.strides is not None and self.strides[0] != (1, 1, 1):
            raise ValueError("the first stride must be 1: level 0 has full resolution")
        return self

    def fitted(self, levels: PlannedLevels) -> Self:
        """As many levels as planned: channels double from the finest up to `WIDENING` times it, as nnU-Net's do."""
        count, finest = len(levels.strides), self.channels[0]
        blocks = self.blocks
        if isinstance(blocks, tuple):
            blocks = (*blocks, *(blocks[-1],) * count)[:count]
        channels = tuple(min(WIDENING * finest, finest * 2**level) for level in range(count))
        return type(self)(channels=channels, strides=levels.strides, kernels=levels.kernels, blocks=blocks)

    @property
    def level_strides(self) -> tuple[Size3, ...]:
        """Stride of each level over the one above."""
        return self.strides or ((1, 1, 1),) + ((2, 2, 2),) * (len(self.channels) - 1)

    @property
    def level_kernels(self) -> tuple[Size3, ...]:
        """Kernel of each level."""
        return self.kernels or ((3, 3, 3),) * len(self.channels)

    @property
    def out_spec(self) -> FeatureSpec:
        """Channels and cumulative strides of the levels."""
        strides = accumulate(self.level_strides, lambda a, b: (a[0] * b[0], a[1] * b[1], a[2] * b[2]))
        return FeatureSpec(self.channels, tuple(strides))
