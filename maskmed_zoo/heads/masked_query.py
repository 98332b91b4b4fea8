"""The decoupled masked-query head: N masks and N class distributions per stage (MaskMed §3.1 Eq. 5, §3.2, Fig. 2b).

One transformer block per decoder stage, lowest resolution first. A block's queries look at that stage's features
(average-pooled to a bounded number of tokens), restricted to where the previous stage's masks lie; an MLP turns each
query into a mask embedding, multiplied with the stage's own features, and another into logits over K labels and
"no object". Choices where the paper is silent are config fields; see the defaults.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from maskmed_zoo.contracts import (
    FeatureSpec,
    Head,
    HeadOutput,
    PositiveInt,
    Size3,
    Spacing3,
    StageOutput,
    resize,
)
from maskmed_zoo.errors import JointError
from maskmed_zoo.layers.position import extent_mm, sine_encoding
from maskmed_zoo.layers.transformer import QueryBlock, TransformerConfig, mlp

MaskedAttention = Literal["off", "hard", "soft"]


class MaskedQueryConfig(TransformerConfig):
    """Settings of `masked_query`."""

    kind: Literal["masked_query"] = "masked_query"
    num_queries: PositiveInt | None = Field(
        default=None, description="N; null: one per label, background included (§4.3)"
    )
    queries: Literal["shared", "per_stage"] = Field(
        default="shared",
        description="shared: a stage's output queries enter the next stage; per_stage: each has its own",
    )
    masked_attention: MaskedAttention = Field(
        default="hard",
        description="where queries look: everywhere, where the previous mask is > 0.5, or weighted by it",
    )
    max_tokens: PositiveInt = Field(
        default=4096, description="most key tokens per stage; finer stages are average-pooled"
    )


class MaskedQueryHead(Head):
    """Stages (b c_l d h w) to masks (b n d h w), class logits (b n k+1) and queries (b n c) per stage."""

    Config = MaskedQueryConfig
    parameter_group = "transformer"
    gives = "queries"

    def __init__(
        self,
        *,
        in_spec: FeatureSpec,
        num_classes: int,
        config: MaskedQueryConfig | None = None,
        spacing: Spacing3 = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        config = config or MaskedQueryConfig()
        self.num_queries = config.num_queries or num_classes
        if self.num_queries < num_classes:
            raise JointError(
                f"head 'masked_query' has {self.num_queries} queries for {num_classes} labels; "
                f"set num_queries to at least {num_classes} or to null"
            )
        self.config, self.in_spec, self.spacing = config, in_spec, spacing
        stages, width = len(in_spec), config.width
        sets = 1 if config.queries == "shared" else stages
        self.queries = nn.ParameterList(nn.Parameter(torch.randn(self.num_queries, width)) for _ in range(sets))
        self.inputs = nn.ModuleList(nn.Linear(c, width) for c in in_spec.channels)
        self.blocks = nn.ModuleList(
            QueryBlock(width, config.attention_heads, config.ffn_ratio, config.dropout) for _ in range(stages)
        )
        self.mask_embeddings = nn.ModuleList(mlp(width, c, 3) for c in in_spec.channels)
        self.classifiers = nn.ModuleList(mlp(width, num_classes + 1, 2) for _ in range(stages))

    def forward(self, stages: list[Tensor]) -> HeadOutput:
        """One (b c_l d_l h_l w_l) per stage, finest first."""
        outputs: list[StageOutput] = []
        queries, masks = self._initial(stages[-1], -1), None
        for index in reversed(range(len(stages))):
            features = stages[index]
            if self.config.queries == "per_stage":
                queries = self._initial(features, index)
            value, key, grid = self._tokens(features, index)
            queries = self.blocks[index](queries, key, value, self._prior(masks, grid))
            masks = torch.einsum("bnc,bcdhw->bndhw", self.mask_embeddings[index](queries), features)
            outputs.append(StageOutput(masks=masks, class_logits=self.classifiers[index](queries), queries=queries))
        return HeadOutput(outputs[::-1])

    def _initial(self, features: Tensor, index: int) -> Tensor:
        return self.queries[index].expand(features.shape[0], -1, -1)

    def _tokens(self, features: Tensor, index: int) -> tuple[Tensor, Tensor, Size3]:
        """Pooled features as values (b t c), keys with position, and the token grid."""
        size: Size3 = (features.shape[2], features.shape[3], features.shape[4])
        extent = extent_mm(size, self.in_spec.strides[index], self.spacing)
        grid = token_grid(size, extent, self.config.max_tokens)
        pooled = features if grid == size else F.adaptive_avg_pool3d(features, grid)
        value = self.inputs[index](pooled.flatten(2).transpose(1, 2))
        position = sine_encoding(grid, extent, self.config.width, features.device).to(value.dtype)
        return value, value + position, grid

    def _prior(self, masks: Tensor | None, grid: Size3) -> Tensor | None:
        """Attention mask (b n t) from the previous stage's masks (b n d h w), detached; None where there is none."""
        if masks is None or self.config.masked_attention == "off":
            return None
        logits = resize(masks.detach().float(), grid).flatten(2)
        if self.config.masked_attention == "soft":
            return F.logsigmoid(logits)
        allowed = logits >= 0
        return allowed | ~allowed.any(-1, keepdim=True)  # a row that may look nowhere looks everywhere


def token_grid(size: Size3, extent: tuple[float, float, float], max_tokens: int) -> Size3:
    """Halve (rounding up) the axis whose voxels are shortest in mm until at most `max_tokens` voxels are left."""
    grid = list(size)
    while grid[0] * grid[1] * grid[2] > max_tokens:
        axis = min((a for a in range(3) if grid[a] > 1), key=lambda a: (extent[a] / grid[a], -grid[a]))
        grid[axis] = -(-grid[axis] // 2)
    return (grid[0], grid[1], grid[2])
