"""A level at full resolution for encoders whose own first map is coarser."""

from __future__ import annotations

from torch import Tensor, nn

from maskmed_zoo.contracts import FeatureSpec
from maskmed_zoo.layers.unetr_blocks import basic_block


class WithFullResolution(nn.Module):
    """A residual block of convolutions on the image, put before the levels where the first of them is coarser.

    SwinUNETR's and UNETR's way to a skip connection at full resolution. `out_spec` is that of all levels.
    """

    def __init__(self, in_channels: int, spec: FeatureSpec, channels: int) -> None:
        super().__init__()
        self.block: nn.Module | None = None
        self.out_spec = spec
        if spec.strides[0] != (1, 1, 1):
            self.block = basic_block(in_channels, channels)
            self.out_spec = FeatureSpec((channels, *spec.channels), ((1, 1, 1), *spec.strides))

    def forward(self, image: Tensor, levels: list[Tensor]) -> list[Tensor]:
        """Image (b c d h w) and levels (b c_e d_e h_e w_e) to all levels, finest first."""
        return levels if self.block is None else [self.block(image), *levels]
