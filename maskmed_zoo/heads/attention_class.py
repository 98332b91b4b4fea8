"""Masks by a 1x1x1 convolution, class embeddings by a transformer on N queries (MaskMed §3.1 Eq. 3, Fig. 1d).

The labels' logits are the N masks times the N x K class embeddings, at every stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from maskmed_zoo.contracts import FeatureSpec, Head, HeadOutput, StageOutput
from maskmed_zoo.layers.conv import conv3d, init_he
from maskmed_zoo.layers.query_decoder import QueryConfig, QueryDecoder
from maskmed_zoo.layers.transformer import init_outputs, mlp
from maskmed_zoo.settings import Spacing3


class AttentionClassConfig(QueryConfig):
    """Settings of `attention_class`."""

    kind: Literal["attention_class"] = "attention_class"
    queries: Literal["shared", "per_stage"] = "shared"


class AttentionClassHead(Head):
    """Stages (b c_l d h w) to logits (b k d h w), with masks (b n d h w), class embeddings (b n k) and queries."""

    Config = AttentionClassConfig
    parameter_group = "transformer"
    gives = "logits"

    def __init__(
        self,
        *,
        in_spec: FeatureSpec,
        num_classes: int,
        config: AttentionClassConfig | None = None,
        spacing: Spacing3 = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        config = config or AttentionClassConfig()
        self.num_queries = config.count(num_classes)
        self.out_strides = in_spec.strides
        self.masks = nn.ModuleList(conv3d(c, self.num_queries, (1, 1, 1)) for c in in_spec.channels)
        init_he(self)
        self.decoder = QueryDecoder(
            in_spec=in_spec,
            config=config,
            num_queries=self.num_queries,
            schedule=tuple(reversed(range(len(in_spec)))),
            shared=config.queries == "shared",
            spacing=spacing,
        )
        self.classifiers = nn.ModuleList(mlp(config.width, num_classes, 2) for _ in in_spec.channels)
        for classify in self.classifiers:  # as `learned_class` starts
            init_outputs(classify, self.num_queries**-0.5)

    def forward(self, stages: list[Tensor]) -> HeadOutput:
        """One (b c_l d_l h_l w_l) per stage, finest first."""
        queries = self.decoder.initial(stages[0].shape[0])
        outputs: list[StageOutput] = []
        for block, stage in enumerate(self.decoder.schedule):
            queries = self.decoder.step(block, queries, stages[stage])
            classes = self.classifiers[stage](queries)
            outputs.append(StageOutput.of_products(self.masks[stage](stages[stage]), classes, queries))
        return HeadOutput(outputs[::-1])

    def mask_layers(self) -> Sequence[nn.Module]:
        """The convolution of each stage."""
        return list(self.masks)
