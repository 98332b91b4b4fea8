"""The blocks of MedNeXt (Roy et al. 2023), MONAI's own, and the sizes S, B, M and L of the paper.

Deviation: the block that goes up takes other strides than 2. MONAI is imported where a block is built.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from maskmed_zoo.contracts import ComponentConfig
from maskmed_zoo.settings import Size3

VARIANTS = {
    "S": ((2, 2, 2, 2), (2, 2, 2, 2)),
    "B": ((2, 2, 2, 2), (2, 3, 4, 4)),
    "M": ((3, 4, 4, 4), (2, 3, 4, 4)),
    "L": ((3, 4, 8, 8), (3, 4, 8, 8)),
}
"""Blocks and expansion ratios per level, finest first; lower levels repeat the last."""


class MedNeXtSettings(ComponentConfig):
    """What MedNeXt's encoder and decoder have in common."""

    variant: Literal["S", "B", "M", "L"] = Field(default="S", description="number of blocks and their expansion")
    kernel_size: Literal[3, 5] = Field(default=3, description="of the depth-wise convolutions, cubic")

    def expansion(self, level: int) -> int:
        """Expansion ratio of the blocks at a level."""
        return _at(level, VARIANTS[self.variant][1])

    def stack(self, channels: int, level: int) -> nn.Sequential:
        """The blocks of a level: (b c d h w) to the same shape."""
        from monai.networks.blocks.mednext_block import MedNeXtBlock

        count, ratio = _at(level, VARIANTS[self.variant][0]), self.expansion(level)
        return nn.Sequential(*(MedNeXtBlock(channels, channels, ratio, self.kernel_size) for _ in range(count)))

    def down(self, in_channels: int, out_channels: int, level: int) -> nn.Module:
        """From a level to the one half as fine."""
        from monai.networks.blocks.mednext_block import MedNeXtDownBlock

        return MedNeXtDownBlock(in_channels, out_channels, self.expansion(level), self.kernel_size, True)


class UpBlock(nn.Module):
    """MONAI's `MedNeXtUpBlock` for any stride: (b c d h w) to (b c' z·d y·h x·w)."""

    def __init__(
        self, in_channels: int, out_channels: int, settings: MedNeXtSettings, level: int, stride: Size3
    ) -> None:
        super().__init__()
        from monai.networks.blocks.mednext_block import MedNeXtUpBlock

        ratio = settings.expansion(level)
        self.block = MedNeXtUpBlock(in_channels, out_channels, ratio, settings.kernel_size, True)
        self.block.conv1.stride = self.block.res_conv.stride = stride
        # n voxels become (n - 1) * stride + 1, and MONAI's block puts one zero before them, which is right for stride 2
        self.rest = [side for s in reversed(stride) for side in (s - 2, 0)]

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x)
        return F.pad(x, self.rest) if any(self.rest) else x


def _at(level: int, values: tuple[int, ...]) -> int:
    return values[min(level, len(values) - 1)]
