"""The decoupled masked-query head: N masks and N class distributions per stage (MaskMed §3.1 Eq. 5, §3.2, Fig. 2b).

One transformer block per decoder stage, lowest resolution first. A block's queries look at that stage's features,
restricted to where the previous masks lie; an MLP turns each query into a mask embedding, multiplied with the stage's
own features, and another into logits over K labels and "no object".

With `mask_features: finest` the same head is that of MaskFormer and Mask2Former (App. D.1, Fig. 7): every block's
queries predict masks on the one finest map, and the blocks go round-robin over the lowest stages. Deviations from
those: no position embedding of the queries unless `query_positions`; MaskFormer's blocks are Mask2Former's
(cross-attention first).
Choices where the paper is silent are config fields; see the defaults.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from maskmed_zoo.contracts import FeatureSpec, Head, HeadOutput, StageOutput, resize
from maskmed_zoo.errors import JointError
from maskmed_zoo.layers.query_decoder import QueryConfig, QueryDecoder
from maskmed_zoo.layers.transformer import init_outputs, mlp
from maskmed_zoo.settings import Layers, Size3, Spacing3


class MaskedQueryConfig(QueryConfig):
    """Settings of `masked_query`."""

    kind: Literal["masked_query"] = "masked_query"
    queries: Literal["shared", "per_stage"] = Field(
        default="shared",
        description="shared: a block's output queries enter the next block; per_stage: each has its own",
    )
    masked_attention: Literal["off", "hard", "soft"] = Field(
        default="hard",
        description="where queries look: everywhere, where the previous mask is > 0.5, or weighted by it",
    )
    mask_features: Literal["own", "finest"] = Field(
        default="own", description="own: each stage's masks on its own map; finest: every block's on the finest map"
    )
    attend_stages: Layers | None = Field(
        default=None, description="finest: how many of the lowest stages are read, round-robin; null: all"
    )
    layers: Layers | None = Field(default=None, description="finest: number of blocks; null: one per stage read")
    predict_first: bool = Field(
        default=False, description="the queries predict before the first block too, which gives it masks (Mask2Former)"
    )

    query_positions: bool = Field(
        default=False,
        description="a learned position of every query is added in attention, to queries and their keys (DETR)",
    )
    position_limit: bool = Field(
        default=False, description="positions of keys have no frequency above half a period per token"
    )

    @model_validator(mode="after")
    def _only_with_finest(self) -> Self:
        if self.mask_features == "own":
            for name in ("attend_stages", "layers"):
                if getattr(self, name):
                    raise ValueError(f"'{name}' needs 'mask_features: finest'")
        return self

    def schedule(self, stages: int) -> tuple[int, ...]:
        """The stage each block reads, lowest first."""
        read = [stages - 1 - i for i in range(self.attend_stages or stages)]
        return tuple(read[i % len(read)] for i in range(self.layers or len(read)))


class MaskedQueryHead(Head):
    """Stages (b c_l d h w) to masks (b n d h w), class logits (b n k+1) and queries (b n c) per output."""

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
        self.num_queries = config.count(num_classes)
        if self.num_queries < num_classes:
            raise JointError(
                f"head 'masked_query' has {self.num_queries} queries for {num_classes} labels; "
                f"set num_queries to at least {num_classes} or to null"
            )
        if (config.attend_stages or 1) > len(in_spec):
            raise JointError(
                f"head 'masked_query' reads {config.attend_stages} stages, the decoder gives {len(in_spec)}; "
                f"set attend_stages to at most {len(in_spec)} or to null"
            )
        self.config = config
        schedule = config.schedule(len(in_spec))
        self.decoder = QueryDecoder(
            in_spec=in_spec,
            config=config,
            num_queries=self.num_queries,
            schedule=schedule,
            shared=config.queries == "shared",
            spacing=spacing,
            has_positions=config.query_positions,
            is_limited=config.position_limit,
        )
        # With a map for every stage each has its own predictors; on the finest map all blocks share one pair.
        predicted = schedule if config.mask_features == "own" else (0,)
        width = config.width
        self.mask_embeddings = nn.ModuleList(mlp(width, in_spec.channels[stage], 3) for stage in predicted)
        self.classifiers = nn.ModuleList(mlp(width, num_classes + 1, 2) for _ in predicted)
        # Masks start at about 1, as by a convolution; from near 0, where torch starts an MLP, they are learnt late.
        for embed, classify, stage in zip(self.mask_embeddings, self.classifiers, predicted, strict=True):
            init_outputs(embed, (2 / in_spec.channels[stage]) ** 0.5)
            init_outputs(classify, 1.0)
        mapped = ((schedule[0],) if config.predict_first else ()) + schedule
        outputs = mapped if config.mask_features == "own" else (0,) * len(mapped)
        self.out_strides = tuple(in_spec.strides[stage] for stage in outputs[::-1])

    def forward(self, stages: list[Tensor], prior: Tensor | None = None) -> HeadOutput:
        """One (b c_l d_l h_l w_l) per stage, finest first; the outputs are those of the blocks, last first.

        `prior` (b k d h w) bool: where the first k queries look in the first block, the others everywhere.
        """
        queries = self.decoder.initial(stages[0].shape[0])
        outputs = [self._predict(queries, stages, 0)] if self.config.predict_first else []
        for block, stage in enumerate(self.decoder.schedule):
            last = outputs if block or prior is None else [self._given(prior)]
            mask = self._prior(last, self.decoder.grid(stages[stage], block))
            queries = self.decoder.step(block, queries, stages[stage], mask)
            outputs.append(self._predict(queries, stages, block))
        return HeadOutput(outputs[::-1])

    def mask_layers(self) -> Sequence[nn.Module]:
        """The MLP that turns the queries into the mask embeddings of each output, the final one first."""
        if self.config.mask_features == "finest":
            return [self.mask_embeddings[0]] * len(self.out_strides)
        layers = list(self.mask_embeddings)[::-1]
        return [*layers, layers[-1]] if self.config.predict_first else layers

    def _predict(self, queries: Tensor, stages: list[Tensor], block: int) -> StageOutput:
        is_own = self.config.mask_features == "own"
        features, index = (stages[self.decoder.schedule[block]], block) if is_own else (stages[0], 0)
        masks = torch.einsum("bnc,bcdhw->bndhw", self.mask_embeddings[index](queries), features)
        return StageOutput(masks=masks, class_logits=self.classifiers[index](queries), queries=queries)

    def _given(self, prior: Tensor) -> StageOutput:
        """The prior as masks that were predicted with certainty."""
        if self.config.masked_attention == "off":
            raise JointError("head 'masked_query' with 'masked_attention: off' takes no prior; set it to hard or soft")
        others = len(self.decoder.queries[0]) - prior.shape[1]
        everywhere = prior.new_ones(len(prior), others, *prior.shape[2:])
        return StageOutput(masks=torch.cat([prior, everywhere], 1) * 40.0 - 20)

    def _prior(self, outputs: list[StageOutput], grid: Size3) -> Tensor | None:
        """Attention mask (b n t) from the last masks (b n d h w), detached; None where there is none."""
        if not outputs or self.config.masked_attention == "off":
            return None
        masks = outputs[-1].spatial.detach().float()
        if self.config.mask_features == "own":  # sampled at token centres, organs smaller than a token would vanish
            masks = F.adaptive_max_pool3d(masks, [min(n, m) for n, m in zip(masks.shape[2:], grid, strict=True)])
        logits = resize(masks, grid).flatten(2)
        if self.config.masked_attention == "soft":
            return F.logsigmoid(logits)
        allowed = logits >= 0
        return allowed | ~allowed.any(-1, keepdim=True)  # a row that may look nowhere looks everywhere
