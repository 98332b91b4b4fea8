"""Deformable transformer neck: the encoder of Deformable DETR (Zhu et al. 2021) in three dimensions.

Queries and values are the voxels of the lowest levels alone; the row "deformable" of MaskMed Table 4, which FSAD
extends by values from every level.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from maskmed_zoo.contracts import FeatureSpec
from maskmed_zoo.layers.deformable import DeformableBlock
from maskmed_zoo.layers.position import voxel_centers
from maskmed_zoo.necks.tokens import TokenNeck, TokenNeckConfig
from maskmed_zoo.settings import Layers, Size3, Spacing3, Width


class DeformableConfig(TokenNeckConfig):
    """Settings of `deformable`."""

    kind: Literal["deformable"] = "deformable"
    query_levels: Layers = Field(default=4, description="how many of the lowest levels are queries and values")
    points: Width = Field(default=4, description="sampling points per query, head and level")


class DeformableNeck(TokenNeck):
    """Levels in, the same levels out; the lowest `query_levels` of them enriched from one another."""

    Config = DeformableConfig

    def __init__(
        self, *, in_spec: FeatureSpec, config: DeformableConfig | None = None, spacing: Spacing3 = (1.0, 1.0, 1.0)
    ) -> None:
        config = config or DeformableConfig()
        super().__init__(in_spec=in_spec, config=config, name="deformable", spacing=spacing)
        value_widths = (config.width,) * config.query_levels
        self.layers = nn.ModuleList(DeformableBlock(value_widths, config, config.points) for _ in range(config.layers))

    def enrich(self, tokens: Tensor, position: Tensor, finer: list[Tensor], sizes: list[Size3]) -> Tensor:
        """Every query samples from the current tokens of the query levels; shapes as in `TokenNeck`."""
        del finer
        sizes = sizes[self.first :]
        centers = torch.cat([voxel_centers(size, tokens.device).flatten(0, 2) for size in sizes])
        counts = [d * h * w for d, h, w in sizes]
        for layer in self.layers:
            tokens = layer(tokens, position, centers, list(tokens.split(counts, 1)), sizes)
        return tokens
