"""The encoder of UNETR (Hatamizadeh et al. 2022): a vision transformer on patches of 16 voxels, MONAI's layers.

It gives five levels: a residual block on the image; the tokens after blocks 4, 7 and 10 of 12, brought to 1/2, 1/4 and
1/8 by transposed convolutions; the normalized last tokens at 1/16. With the decoder `unetr_up` and one 1x1x1
convolution this is MONAI's `UNETR`.

Deviations: the position table, learnt for `img_size`, is resized to images of another size; layers that MONAI builds
and never uses are left out. Learning-rate group "cnn": the rates of MaskMed §4 part neck and head from encoder and
decoder, whatever these are made of.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator
from torch import Tensor, nn

from maskmed_zoo.contracts import Encoder, PlannedLevels, resize
from maskmed_zoo.encoders.pyramid import PyramidConfig
from maskmed_zoo.layers.transformer import TransformerConfig
from maskmed_zoo.layers.unetr_blocks import basic_block
from maskmed_zoo.settings import Base, Size3, Triple, Width

PATCH = 16
LAYERS = 12
TAPPED = (3, 6, 9)


class UNETRConfig(TransformerConfig):
    """Settings of `unetr`."""

    kind: Literal["unetr"] = "unetr"
    img_size: Triple = Field(
        default=(96, 96, 96), description="voxels (z, y, x) the position table is made for, multiples of 16"
    )
    feature_size: Base = Field(default=16, description="channels of the finest level, then doubling")
    width: Width = 768
    attention_heads: Width = 12

    @field_validator("img_size")
    @classmethod
    def _whole_patches(cls, size: Size3) -> Size3:
        if any(s % PATCH for s in size):
            raise ValueError(f"must be multiples of {PATCH}, got {list(size)}")
        return size

    def fitted(self, levels: PlannedLevels) -> Self:
        """The position table made for the patch."""
        return self.model_copy(update={"img_size": levels.patch})


class UNETREncoder(Encoder):
    """Vision transformer whose tokens become the levels of a pyramid."""

    Config = UNETRConfig

    def __init__(self, *, in_channels: int, config: UNETRConfig | None = None) -> None:
        super().__init__()
        from monai.networks.blocks.unetr_block import UnetrPrUpBlock
        from monai.networks.nets.vit import ViT

        config = config or UNETRConfig()
        f, width = config.feature_size, config.width
        self.out_spec = PyramidConfig(channels=(f, 2 * f, 4 * f, 8 * f, width)).out_spec
        self.grid = [s // PATCH for s in config.img_size]
        self.vit = ViT(
            in_channels,
            config.img_size,
            (PATCH,) * 3,
            hidden_size=width,
            mlp_dim=config.ffn_ratio * width,
            num_layers=LAYERS,
            num_heads=config.attention_heads,
            dropout_rate=config.dropout,
        )
        for block in self.vit.blocks:
            del block.norm_cross_attn, block.cross_attn
        self.blocks = nn.ModuleList([basic_block(in_channels, f)])
        for level in (1, 2, 3):
            up = UnetrPrUpBlock(3, width, f * 2**level, 3 - level, 3, 1, 2, "instance", conv_block=True, res_block=True)
            self.blocks.append(up)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image (b c d h w) to one (b c_e d_e h_e w_e) per level."""
        patches = self.vit.patch_embedding.patch_embeddings(image)
        table = self.vit.patch_embedding.position_embeddings.mT.unflatten(2, self.grid)
        x = self.vit.patch_embedding.dropout((patches + resize(table, patches.shape[2:])).flatten(2).mT)
        states: list[Tensor] = []
        for block in self.vit.blocks:
            x = block(x)
            states.append(x)
        tokens = (*(states[i] for i in TAPPED), self.vit.norm(x))
        *maps, lowest = (x.mT.unflatten(2, patches.shape[2:]) for x in tokens)
        return [*(block(x) for block, x in zip(self.blocks, (image, *maps), strict=True)), lowest]
