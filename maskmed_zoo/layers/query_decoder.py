"""Queries that read decoder stages, one transformer block after the other (MaskMed §3.2, Fig. 2b).

Shared by every head with a transformer. Keys and values are a stage's features, average-pooled to a bounded number of
tokens, keys with a sine encoding in mm. Which block reads which stage is a schedule: by default one block per stage,
lowest resolution first; MaskFormer and Mask2Former go several times round a few of the lowest stages.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from maskmed_zoo.contracts import FeatureSpec
from maskmed_zoo.layers.pool import average_to
from maskmed_zoo.layers.position import extent_mm, sine_encoding
from maskmed_zoo.layers.transformer import QueryBlock, TransformerConfig
from maskmed_zoo.settings import PositiveInt, Queries, Size3, Spacing3


class QueryConfig(TransformerConfig):
    """Settings of every head with queries."""

    num_queries: Queries | None = Field(default=None, description="N; null: `queries_per_class` for every label")
    queries_per_class: Queries = Field(
        default=1, description="N over the number of labels, background included (§4.3, Table 6)"
    )
    max_tokens: PositiveInt = Field(
        default=4096, description="most key tokens per stage; finer stages are average-pooled"
    )

    def count(self, num_classes: int) -> int:
        """N for so many labels."""
        return self.num_queries or self.queries_per_class * num_classes


class QueryDecoder(nn.Module):
    """Blocks over stages. `schedule[i]` is the stage block i reads; with `shared` its queries are block i-1's.

    With `has_positions` a learned position of every query, the same in all blocks, is added to it in the attention;
    `is_limited` is that of `sine_encoding`.
    """

    def __init__(
        self,
        *,
        in_spec: FeatureSpec,
        config: QueryConfig,
        num_queries: int,
        schedule: tuple[int, ...],
        shared: bool,
        spacing: Spacing3,
        has_positions: bool = False,
        is_limited: bool = False,
    ) -> None:
        super().__init__()
        self.in_spec, self.config, self.schedule, self.spacing = in_spec, config, schedule, spacing
        sets = 1 if shared else len(schedule)
        self.queries = nn.ParameterList(nn.Parameter(torch.randn(num_queries, config.width)) for _ in range(sets))
        self.read = sorted(set(schedule))
        self.inputs = nn.ModuleList(nn.Linear(in_spec.channels[stage], config.width) for stage in self.read)
        self.blocks = nn.ModuleList(
            QueryBlock(config.width, config.attention_heads, config.ffn_ratio, config.dropout) for _ in schedule
        )
        self.is_limited = is_limited
        self.positions = nn.Parameter(torch.randn(num_queries, config.width)) if has_positions else None

    def initial(self, batch: int) -> Tensor:
        """(b n c), what the first block starts from."""
        return self.queries[0].expand(batch, -1, -1)

    def step(self, block: int, queries: Tensor, features: Tensor, masks: Tensor | None = None) -> Tensor:
        """Queries (b n c) after they read a stage's features (b c_l d h w).

        `masks` (b n t) as in `MultiHeadAttention`, over the tokens of `grid(features, block)`.
        """
        if len(self.queries) > 1:
            queries = self.queries[block].expand(features.shape[0], -1, -1)
        stage = self.schedule[block]
        grid = self.grid(features, block)
        pooled = average_to(features, grid)
        value = self.inputs[self.read.index(stage)](pooled.flatten(2).transpose(1, 2))
        extent, width = self._extent(features, stage), self.config.width
        position = sine_encoding(grid, extent, width, features.device, is_limited=self.is_limited)
        return self.blocks[block](queries, value + position.to(value.dtype), value, masks, self.positions)

    def grid(self, features: Tensor, block: int) -> Size3:
        """The token grid of the stage that `block` reads."""
        size: Size3 = (features.shape[2], features.shape[3], features.shape[4])
        return token_grid(size, self._extent(features, self.schedule[block]), self.config.max_tokens)

    def _extent(self, features: Tensor, stage: int) -> tuple[float, float, float]:
        size: Size3 = (features.shape[2], features.shape[3], features.shape[4])
        return extent_mm(size, self.in_spec.strides[stage], self.spacing)


def token_grid(size: Size3, extent: tuple[float, float, float], max_tokens: int) -> Size3:
    """Halve (rounding up) the axis whose voxels are shortest in mm until at most `max_tokens` voxels are left."""
    grid = list(size)
    while grid[0] * grid[1] * grid[2] > max_tokens:
        axis = min((a for a in range(3) if grid[a] > 1), key=lambda a: (extent[a] / grid[a], -grid[a]))
        grid[axis] = -(-grid[axis] // 2)
    return (grid[0], grid[1], grid[2])
