"""What scores depend on besides the label maps: a recipe's section `evaluation`, or a file of its own."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

from pydantic import Discriminator, Field, PrivateAttr, Tag

from maskmed_zoo.errors import nearest
from maskmed_zoo.settings import LARGEST, Settings

TOLERANCE = 2.0
"""mm, of labels that no setting names."""
MOST_STEPS = 100
"""Of a dilation: more voxels than lie between two lesions."""
MOST_BINS = 1000
"""Of a reliability curve: more than a picture shows."""
Millimetres = Annotated[float, Field(ge=0, le=LARGEST, strict=True)]
CubicMillimetres = Annotated[float, Field(ge=0, le=LARGEST, strict=True)]
ByLabel = Annotated[
    Annotated[Millimetres, Tag("for all")] | Annotated[dict[str, Millimetres], Tag("by name")],
    Discriminator(lambda value: "by name" if isinstance(value, dict) else "for all"),  # one error, not one of each kind
]
"""A length for every label, or label name to length."""


class MetricSettings(Settings):
    """What scores depend on besides the label maps."""

    tolerance: ByLabel = Field(
        default=TOLERANCE,
        description=f"nsd: distance within which surfaces agree, mm; or label name to mm, {TOLERANCE} for the others",
    )
    boundary_width: Millimetres = Field(default=2.0, description="boundary_iou: width of the bands compared, mm")
    lesion_overlap: Annotated[float, Field(ge=0, lt=1, strict=True)] = Field(
        default=0.1, description="lesion_f1: IoU above which two lesions can be a pair"
    )
    brats_dilation: Annotated[int, Field(ge=0, le=MOST_STEPS, strict=True)] = Field(
        default=3, description="brats_*: voxels by which the reference is dilated; in BraTS 3, for MEN and MET 1"
    )
    brats_smallest: CubicMillimetres = Field(
        default=50.0, description="brats_*: mm³ up to which a lesion does not count; in BraTS 50, for MET 2"
    )
    brats_penalty: Millimetres = Field(
        default=374.0, description="brats_hd95: mm for a lesion that is missed or false; in BraTS 374"
    )
    calibration_bins: Annotated[int, Field(ge=1, le=MOST_BINS, strict=True)] = Field(
        default=15, description="ece: bins of equal width in which voxels are counted by their probability"
    )

    _has_others: bool = PrivateAttr(default=True)

    @property
    def has_others(self) -> bool:
        """Whether there may be a label that `tolerance` does not name."""
        return self._has_others

    def among(self, labels: Collection[str]) -> MetricSettings:
        """The same where these are all the labels there are."""
        found = self.model_copy()
        if isinstance(self.tolerance, dict):
            found._has_others = not self.tolerance or not set(labels) <= set(self.tolerance)
        return found

    def tolerance_of(self, label: str) -> float:
        """mm of a label."""
        return self.tolerance.get(label, TOLERANCE) if isinstance(self.tolerance, dict) else self.tolerance

    def unknown_label(self, labels: Collection[str]) -> str | None:
        """What is wrong where a label is named that is none of the foreground `labels`."""
        named = self.tolerance if isinstance(self.tolerance, dict) else {}
        for name in named:
            if name not in labels:
                hint = nearest(name, labels) or f" (labels: {', '.join(labels)})"
                return f"'tolerance' names '{name}', which is no label to score{hint}"
        return None
