"""Standard transformer neck: self-attention over the voxels of the lowest levels (MaskMed Table 4, "transformer").

A block is self-attention → Add & LN → FFN → Add & LN, with the position on queries and keys. The tokens are those of
the lowest three levels; the cost grows with the square of their number, which is the paper's argument for deformable
attention.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from maskmed_zoo.contracts import FeatureSpec
from maskmed_zoo.layers.transformer import MultiHeadAttention, TransformerConfig, feed_forward
from maskmed_zoo.necks.tokens import TokenNeck, TokenNeckConfig
from maskmed_zoo.settings import Layers, Size3, Spacing3


class TransformerNeckConfig(TokenNeckConfig):
    """Settings of `transformer`."""

    kind: Literal["transformer"] = "transformer"
    query_levels: Layers = Field(default=3, description="how many of the lowest levels attend to one another")


class TransformerNeck(TokenNeck):
    """Levels in, the same levels out; the lowest `query_levels` of them enriched from one another."""

    Config = TransformerNeckConfig

    def __init__(
        self, *, in_spec: FeatureSpec, config: TransformerNeckConfig | None = None, spacing: Spacing3 = (1.0, 1.0, 1.0)
    ) -> None:
        config = config or TransformerNeckConfig()
        super().__init__(in_spec=in_spec, config=config, name="transformer", spacing=spacing)
        self.layers = nn.ModuleList(_Block(config) for _ in range(config.layers))

    def enrich(self, tokens: Tensor, position: Tensor, finer: list[Tensor], sizes: list[Size3]) -> Tensor:
        """Every token attends to all tokens of the query levels; shapes as in `TokenNeck`."""
        del finer, sizes
        for layer in self.layers:
            tokens = layer(tokens, position)
        return tokens


class _Block(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(config.width, config.attention_heads)
        self.ffn = feed_forward(config.width, config.ffn_ratio)
        self.norms = nn.ModuleList(nn.LayerNorm(config.width) for _ in range(2))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        """Tokens (b q c), position (q c); returns (b q c)."""
        placed = tokens + position
        tokens = self.norms[0](tokens + self.dropout(self.attention(placed, placed, tokens)))
        return self.norms[1](tokens + self.dropout(self.ffn(tokens)))
