"""Common to transformer necks: the voxels of the lowest levels become tokens, are enriched, and are added back.

Tokens of all query levels have one width; they differ by a sine encoding in mm and a level embedding (MaskMed App. B;
where it is silent, the result is projected back to a level's width and added to it). Other levels pass unchanged.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Self

import torch
from torch import Tensor, nn

from maskmed_zoo.contracts import FeatureSpec, Neck, PlannedLevels
from maskmed_zoo.errors import JointError
from maskmed_zoo.layers.position import extent_mm, sine_encoding
from maskmed_zoo.layers.rows import rows
from maskmed_zoo.layers.transformer import TransformerConfig
from maskmed_zoo.settings import Layers, Size3, Spacing3


class TokenNeckConfig(TransformerConfig):
    """Settings of every neck whose queries are the voxels of the lowest levels."""

    query_levels: Layers
    layers: Layers = 1

    def fitted(self, levels: PlannedLevels) -> Self:
        """Every level but the finest at most: the voxels of the full resolution would be millions of queries."""
        return self.model_copy(update={"query_levels": min(self.query_levels, len(levels.strides) - 1)})


class TokenNeck(Neck):
    """Levels in, the same levels out; the lowest `query_levels` of them enriched by `enrich`."""

    parameter_group = "transformer"

    def __init__(self, *, in_spec: FeatureSpec, config: TokenNeckConfig, name: str, spacing: Spacing3) -> None:
        super().__init__()
        if config.query_levels > len(in_spec):
            raise JointError(
                f"neck '{name}' asks for {config.query_levels} query levels, the encoder gives {len(in_spec)}; "
                f"set query_levels to at most {len(in_spec)}"
            )
        self.out_spec = self.in_spec = in_spec
        self.spacing, self.width = spacing, config.width
        self.first = len(in_spec) - config.query_levels
        query_channels = in_spec.channels[self.first :]
        self.inputs = nn.ModuleList(nn.Linear(c, config.width) for c in query_channels)
        self.outputs = nn.ModuleList(nn.Linear(config.width, c) for c in query_channels)
        self.level_embedding = nn.Parameter(torch.randn(config.query_levels, config.width) * 0.02)

    @abstractmethod
    def enrich(self, tokens: Tensor, position: Tensor, finer: list[Tensor], sizes: list[Size3]) -> Tensor:
        """Tokens (b q c) of the query levels one after the other, position (q c); returns (b q c).

        `finer`: one (b s_e c_e) per level above the query levels; `sizes`: (d h w) of every level.
        """

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """One (b c_e d_e h_e w_e) per level in and out."""
        sizes: list[Size3] = [(x.shape[2], x.shape[3], x.shape[4]) for x in levels]
        raw = [rows(x) for x in levels]
        tokens = torch.cat([p(x) for p, x in zip(self.inputs, raw[self.first :], strict=True)], 1)
        position = self._position(sizes[self.first :], tokens.device).to(tokens.dtype)
        tokens = self.enrich(tokens, position, raw[: self.first], sizes)
        enriched = [
            x + p(t).transpose(1, 2).unflatten(2, x.shape[2:])
            for x, p, t in zip(levels[self.first :], self.outputs, self.split(tokens, sizes), strict=True)
        ]
        return levels[: self.first] + enriched

    def split(self, tokens: Tensor, sizes: list[Size3]) -> list[Tensor]:
        """Tokens (b q c) to one (b s_e c) per query level."""
        return list(tokens.split([d * h * w for d, h, w in sizes[self.first :]], 1))

    def _position(self, sizes: list[Size3], device: torch.device) -> Tensor:
        """(q c) sine encoding in mm plus level embedding of every query."""
        parts = [
            sine_encoding(size, extent_mm(size, stride, self.spacing), self.width, device) + embedding
            for size, stride, embedding in zip(
                sizes, self.in_spec.strides[self.first :], self.level_embedding, strict=True
            )
        ]
        return torch.cat(parts)
