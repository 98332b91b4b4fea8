"""The point-wise head: a 1x1x1 convolution to the labels at every stage (MaskMed Fig. 1b; nnU-Net's own head)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from maskmed_zoo.contracts import ComponentConfig, FeatureSpec, Head, HeadOutput, StageOutput
from maskmed_zoo.layers.conv import conv3d, init_he
from maskmed_zoo.settings import Spacing3


class PointwiseConfig(ComponentConfig):
    """`pointwise` has no settings."""

    kind: Literal["pointwise"] = "pointwise"


class PointwiseHead(Head):
    """Logits over the labels, background included, at every stage."""

    Config = PointwiseConfig
    gives = "logits"

    def __init__(
        self,
        *,
        in_spec: FeatureSpec,
        num_classes: int,
        config: PointwiseConfig | None = None,
        spacing: Spacing3 = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        del config, spacing  # nothing to set
        self.out_strides = in_spec.strides
        self.projections = nn.ModuleList(conv3d(c, num_classes, (1, 1, 1)) for c in in_spec.channels)
        init_he(self)

    def forward(self, stages: list[Tensor]) -> HeadOutput:
        """One (b c_l d_l h_l w_l) per stage to logits (b k d_l h_l w_l) per stage."""
        return HeadOutput([StageOutput(logits=p(x)) for p, x in zip(self.projections, stages, strict=True)])

    def mask_layers(self) -> Sequence[nn.Module]:
        """The convolution of each stage: the labels' logits are the masks."""
        return list(self.projections)
