"""The encoder of Swin UNETR (Hatamizadeh et al. 2022) and of SwinUNETR-V2 (He et al. 2023), MONAI's layers.

It gives six levels: a residual block on the image; the Swin transformer's patch embedding and the first two of its four
stages, each through a residual block; the third stage as it is; the last one through a residual block. With the decoder
`unetr_up` and one 1x1x1 convolution this is MONAI's `SwinUNETR`. V2 puts a residual block before every Swin stage.

Deviations: none from MONAI, whose feature size defaults to half of the papers' 48. Learning-rate group "cnn": the
rates of MaskMed §4 part neck and head from encoder and decoder, whatever these are made of.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from maskmed_zoo.contracts import ComponentConfig, Encoder
from maskmed_zoo.encoders.pyramid import PyramidConfig
from maskmed_zoo.layers.unetr_blocks import basic_block, check_voxels
from maskmed_zoo.settings import Base, Layers, Width, Window


class SwinUNETRConfig(ComponentConfig):
    """Settings of `swin_unetr`."""

    kind: Literal["swin_unetr"] = "swin_unetr"
    version: Literal["v1", "v2"] = Field(default="v1", description="v2: a residual block before every Swin stage")
    feature_size: Base = Field(default=48, description="channels of the two finest levels, then doubling")
    depths: tuple[Layers, Layers, Layers, Layers] = Field(
        default=(2, 2, 2, 2), description="transformer blocks per stage"
    )
    attention_heads: Width = Field(default=3, description="of the first stage, doubling at each")
    window_size: Window = Field(default=(7, 7, 7), description="tokens that attend to each other, (z, y, x)")

    @model_validator(mode="after")
    def _heads_divide_channels(self) -> SwinUNETRConfig:
        if self.feature_size % self.attention_heads:
            raise ValueError(
                f"'attention_heads' ({self.attention_heads}) must divide 'feature_size' ({self.feature_size})"
            )
        return self


class SwinUNETREncoder(Encoder):
    """Swin transformer, every level but one through a residual block."""

    Config = SwinUNETRConfig

    def __init__(self, *, in_channels: int, config: SwinUNETRConfig | None = None) -> None:
        super().__init__()
        from monai.networks.nets.swin_unetr import SwinTransformer

        config = config or SwinUNETRConfig()
        f = config.feature_size
        self.out_spec = PyramidConfig(channels=(f, f, 2 * f, 4 * f, 8 * f, 16 * f)).out_spec
        device = torch.get_default_device()
        with torch.device("cpu"):  # MONAI reads numbers back from a tensor, which has none on meta
            swin = SwinTransformer(
                in_chans=in_channels,
                embed_dim=f,
                window_size=config.window_size,
                patch_size=(2, 2, 2),
                depths=config.depths,
                num_heads=[config.attention_heads * 2**stage for stage in range(4)],
                use_v2=config.version == "v2",
            )
        self.swin = swin.to(device)
        self.blocks = nn.ModuleList(basic_block(i, o) for i, o in ((in_channels, f), (f, f), (2 * f, 2 * f)))
        self.blocks += [basic_block(4 * f, 4 * f), nn.Identity(), basic_block(16 * f, 16 * f)]

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image (b c d h w) to one (b c_e d_e h_e w_e) per level."""
        check_voxels(self.out_spec.sizes(image.shape[2:])[-1], "encoder 'swin_unetr'")
        states = self.swin(image)
        return [block(x) for block, x in zip(self.blocks, (image, *states), strict=True)]
