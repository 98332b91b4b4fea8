"""The plain skip connection: the levels as they are. It is the control of the neck ablation (MaskMed Table 4)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from maskmed_zoo.contracts import ComponentConfig, FeatureSpec, Neck
from maskmed_zoo.settings import Spacing3


class SkipConfig(ComponentConfig):
    """`skip` has no settings."""

    kind: Literal["skip"] = "skip"


class SkipNeck(Neck):
    """The identity."""

    Config = SkipConfig

    def __init__(
        self, *, in_spec: FeatureSpec, config: SkipConfig | None = None, spacing: Spacing3 = (1.0, 1.0, 1.0)
    ) -> None:
        super().__init__()
        del config, spacing  # nothing to set
        self.out_spec = in_spec

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """One (b c_e d_e h_e w_e) per level, unchanged."""
        return levels
