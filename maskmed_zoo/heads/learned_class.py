"""Masks by a 1x1x1 convolution, classes by a learnable matrix (MaskMed §3.1 Eq. 2, Fig. 1c).

The first step of decoupling: the labels' logits are the N masks times an N x K matrix, at every stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from maskmed_zoo.contracts import ComponentConfig, FeatureSpec, Head, HeadOutput, StageOutput
from maskmed_zoo.layers.conv import conv3d, init_he
from maskmed_zoo.settings import Queries, Spacing3


class LearnedClassConfig(ComponentConfig):
    """Settings of `learned_class`."""

    kind: Literal["learned_class"] = "learned_class"
    num_queries: Queries | None = Field(default=None, description="N, masks per stage; null: one per label")


class LearnedClassHead(Head):
    """Stages (b c_l d h w) to logits (b k d h w), with masks (b n d h w) and class embeddings (b n k) per stage."""

    Config = LearnedClassConfig
    gives = "logits"

    def __init__(
        self,
        *,
        in_spec: FeatureSpec,
        num_classes: int,
        config: LearnedClassConfig | None = None,
        spacing: Spacing3 = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        del spacing  # nothing here depends on it
        count = self.num_queries = (config or LearnedClassConfig()).num_queries or num_classes
        self.out_strides = in_spec.strides
        self.masks = nn.ModuleList(conv3d(c, count, (1, 1, 1)) for c in in_spec.channels)
        init_he(self)
        self.classes = nn.ParameterList(
            nn.Parameter(torch.randn(count, num_classes) / count**0.5) for _ in in_spec.channels
        )

    def forward(self, stages: list[Tensor]) -> HeadOutput:
        """One (b c_l d_l h_l w_l) per stage, finest first."""
        outputs: list[StageOutput] = []
        for project, classes, features in zip(self.masks, self.classes, stages, strict=True):
            outputs.append(StageOutput.of_products(project(features), classes.expand(features.shape[0], -1, -1)))
        return HeadOutput(outputs)

    def mask_layers(self) -> Sequence[nn.Module]:
        """The convolution of each stage."""
        return list(self.masks)
