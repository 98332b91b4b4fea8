"""Mask embeddings and class embeddings both by a transformer on N queries (MaskMed §3.1 Eq. 4, Fig. 1e).

Masks are the N mask embeddings times the stage's own features; the labels' logits are the masks times the N x K class
embeddings, a softmax over labels at every voxel: still a dense prediction, without matching.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from maskmed_zoo.contracts import FeatureSpec, Head, HeadOutput, StageOutput
from maskmed_zoo.layers.query_decoder import QueryConfig, QueryDecoder
from maskmed_zoo.layers.transformer import init_outputs, mlp
from maskmed_zoo.settings import Spacing3


class AttentionMaskClassConfig(QueryConfig):
    """Settings of `attention_mask_class`."""

    kind: Literal["attention_mask_class"] = "attention_mask_class"
    queries: Literal["shared", "per_stage"] = "shared"


class AttentionMaskClassHead(Head):
    """Stages (b c_l d h w) to logits (b k d h w), with masks (b n d h w), class embeddings (b n k) and queries."""

    Config = AttentionMaskClassConfig
    parameter_group = "transformer"
    gives = "logits"

    def __init__(
        self,
        *,
        in_spec: FeatureSpec,
        num_classes: int,
        config: AttentionMaskClassConfig | None = None,
        spacing: Spacing3 = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        config = config or AttentionMaskClassConfig()
        self.num_queries = config.count(num_classes)
        self.out_strides = in_spec.strides
        self.decoder = QueryDecoder(
            in_spec=in_spec,
            config=config,
            num_queries=self.num_queries,
            schedule=tuple(reversed(range(len(in_spec)))),
            shared=config.queries == "shared",
            spacing=spacing,
        )
        self.mask_embeddings = nn.ModuleList(mlp(config.width, c, 3) for c in in_spec.channels)
        self.classifiers = nn.ModuleList(mlp(config.width, num_classes, 2) for _ in in_spec.channels)
        # A product of two factors learns slowly where both start near 0: masks start at about 1, as by a convolution.
        for embed, classify, channels in zip(self.mask_embeddings, self.classifiers, in_spec.channels, strict=True):
            init_outputs(embed, (2 / channels) ** 0.5)
            init_outputs(classify, self.num_queries**-0.5)

    def forward(self, stages: list[Tensor]) -> HeadOutput:
        """One (b c_l d_l h_l w_l) per stage, finest first."""
        queries = self.decoder.initial(stages[0].shape[0])
        outputs: list[StageOutput] = []
        for block, stage in enumerate(self.decoder.schedule):
            queries = self.decoder.step(block, queries, stages[stage])
            masks = torch.einsum("bnc,bcdhw->bndhw", self.mask_embeddings[stage](queries), stages[stage])
            outputs.append(StageOutput.of_products(masks, self.classifiers[stage](queries), queries))
        return HeadOutput(outputs[::-1])

    def mask_layers(self) -> Sequence[nn.Module]:
        """The MLP that turns the queries into the mask embeddings of each stage."""
        return list(self.mask_embeddings)
