"""Full-scale-aware deformable (FSAD) transformer neck (MaskMed §3.3, App. B, Fig. 2c and 6).

Queries are the voxels of the lowest levels; each samples a few points, at learned offsets, from **all** encoder levels
including full resolution. Where the paper is silent: values of query levels are the current tokens; see
`layers.deformable` and the config for the other choices.
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


class FSADConfig(TokenNeckConfig):
    """Settings of `fsad`."""

    kind: Literal["fsad"] = "fsad"
    query_levels: Layers = Field(
        default=3, description="how many of the lowest levels are queries (§3.3 says 4, App. B 3)"
    )
    points: Width = Field(default=4, description="K, sampling points per query, head and level")
    own_voxel: bool = Field(
        default=False, description="control: no offsets, a query reads its own voxel of every level (`points` unused)"
    )


class FSADNeck(TokenNeck):
    """Levels in, the same levels out; the lowest `query_levels` of them enriched from all."""

    Config = FSADConfig

    def __init__(
        self, *, in_spec: FeatureSpec, config: FSADConfig | None = None, spacing: Spacing3 = (1.0, 1.0, 1.0)
    ) -> None:
        config = config or FSADConfig()
        super().__init__(in_spec=in_spec, config=config, name="fsad", spacing=spacing)
        value_widths = in_spec.channels[: self.first] + (config.width,) * config.query_levels
        points = 0 if config.own_voxel else config.points
        self.layers = nn.ModuleList(DeformableBlock(value_widths, config, points) for _ in range(config.layers))

    def enrich(self, tokens: Tensor, position: Tensor, finer: list[Tensor], sizes: list[Size3]) -> Tensor:
        """Every query samples from the finer levels and from the current tokens; shapes as in `TokenNeck`."""
        centers = torch.cat([voxel_centers(size, tokens.device).flatten(0, 2) for size in sizes[self.first :]])
        for layer in self.layers:
            tokens = layer(tokens, position, centers, finer + self.split(tokens, sizes), sizes)
        return tokens
