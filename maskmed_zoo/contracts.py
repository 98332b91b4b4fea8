"""The joints: what flows between encoder, neck, decoder and head, and what each of them must offer.

```
image ─> Encoder ─> [levels 0..E-1] ─> Neck ─> [same levels] ─> Decoder ─> [stages 0..L-1] ─> Head ─> HeadOutput
```

Level and stage 0 have the finest resolution. Axes are z, y, x everywhere. A component is a plain `nn.Module` with a
frozen pydantic `Config` and keyword-only arguments; what it gives (`out_spec`) follows from what it gets without data.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskmed_zoo.errors import JointError
from maskmed_zoo.settings import Settings, Size3, Spacing3

ParameterGroup = Literal["cnn", "transformer"]
FLOOR = 1e-6
"""Smallest probability before the logarithm."""


@dataclass(frozen=True)
class FeatureSpec:
    """Channels and strides of a list of feature maps, finest first.

    `strides[i]` is the number of input voxels per voxel of map i along (z, y, x).
    """

    channels: tuple[int, ...]
    strides: tuple[Size3, ...]

    def __post_init__(self) -> None:
        if not self.channels or len(self.channels) != len(self.strides):
            raise JointError(
                f"a FeatureSpec needs one stride per channel count, got {len(self.channels)} channel counts "
                f"and {len(self.strides)} strides"
            )

    def __len__(self) -> int:
        return len(self.channels)

    @property
    def total_stride(self) -> Size3:
        """Input voxels per voxel of the coarsest map."""
        return self.strides[-1]

    def sizes(self, patch: Sequence[int]) -> tuple[Size3, ...]:
        """Spatial size of every map for an input of `patch` voxels (which the strides must divide)."""
        return tuple((patch[0] // s[0], patch[1] // s[1], patch[2] // s[2]) for s in self.strides)

    def check_patch(self, patch: Sequence[int]) -> None:
        """Raise `JointError` naming the nearest valid sizes if the total stride does not divide `patch`."""
        stride = self.total_stride
        if len(patch) == 3 and all(p > 0 and p % s == 0 for p, s in zip(patch, stride, strict=True)):
            return
        if len(patch) != 3:
            raise JointError(f"patch size {tuple(patch)} has {len(patch)} axes, expected 3 (z, y, x)")
        lower = tuple(max(s, p // s * s) for p, s in zip(patch, stride, strict=True))
        upper = tuple(max(s, -(-p // s) * s) for p, s in zip(patch, stride, strict=True))
        near = f"{lower}" if lower == upper else f"{lower} and {upper}"
        raise JointError(
            f"patch size {tuple(patch)} is not divisible by the encoder's total stride {stride} (z, y, x); "
            f"nearest valid sizes: {near}"
        )


@dataclass
class StageOutput:
    """What a head says at one decoder stage of size (d h w).

    Either `logits` (b k d h w), one per label; or, for query heads, `masks` (b n d h w) mask logits with
    `class_logits` (b n k+1, the last one "no object") and `queries` (b n c), the query features they came from.
    Dense heads made of queries hold their logits and, beside them, the masks and class embeddings (b n k) whose
    product those are.
    """

    logits: Tensor | None = None
    masks: Tensor | None = None
    class_logits: Tensor | None = None
    queries: Tensor | None = None

    @classmethod
    def of_products(cls, masks: Tensor, classes: Tensor, queries: Tensor | None = None) -> StageOutput:
        """Dense logits as the product of masks (b n d h w) and class embeddings (b n k) (MaskMed §3.1 Eq. 2-4)."""
        logits = torch.einsum("bnk,bndhw->bkdhw", classes, masks)
        return cls(logits=logits, masks=masks, class_logits=classes, queries=queries)

    def log_probabilities(self) -> Tensor:
        """(b k d h w) float32 log-probabilities over the labels, floored before the log, summing to 1 over k."""
        with full_precision(self.spatial):
            if self.logits is not None:
                probabilities = self.logits.float().softmax(1)
            else:
                if self.masks is None or self.class_logits is None:
                    raise JointError("a stage holds either logits, or masks with class logits")
                classes = self.class_logits.float().softmax(-1)[..., :-1]
                probabilities = torch.einsum("bnk,bndhw->bkdhw", classes, self.masks.float().sigmoid())
            floored = probabilities.clamp_min(FLOOR)
            return (floored / floored.sum(1, keepdim=True)).log()

    @property
    def spatial(self) -> Tensor:
        """The tensor that carries the voxel axes, `logits` or `masks`."""
        tensor = self.logits if self.logits is not None else self.masks
        if tensor is None:
            raise JointError("a stage holds neither logits nor masks")
        return tensor


@dataclass
class HeadOutput:
    """A head's answer: one `StageOutput` per supervised decoder stage or transformer block, the final one first."""

    stages: list[StageOutput]

    def log_probabilities(self) -> Tensor:
        """(b k d h w) float32 log-probabilities of the final output (MaskMed §3.2, inference)."""
        return self.stages[0].log_probabilities()


for _output in (StageOutput, HeadOutput):
    torch.export.register_dataclass(_output, serialized_type_name=f"{__name__}.{_output.__name__}")


@dataclass(frozen=True)
class PlannedLevels:
    """The levels of a network that is planned for a data set, finest first.

    `strides` of each level over the one above and `kernels`, both (z, y, x); `patch` in voxels, `spacing` in mm.
    """

    strides: tuple[Size3, ...]
    kernels: tuple[Size3, ...]
    patch: Size3
    spacing: Spacing3


class ComponentConfig(Settings):
    """Base of every component's settings."""

    def fitted(self, levels: PlannedLevels) -> Self:
        """These settings for planned levels; as they are, unless a component has some that hang on levels or patch."""
        del levels
        return self


class Component(nn.Module):
    """Common to all kinds: its settings class and the learning-rate group of its parameters (MaskMed §4)."""

    Config: ClassVar[type[ComponentConfig]] = ComponentConfig
    parameter_group: ClassVar[ParameterGroup] = "cnn"


class Encoder(Component, ABC):
    """Image (b c d h w) to feature levels, finest first. Constructed with `config=, in_channels=`."""

    out_spec: FeatureSpec

    @abstractmethod
    def forward(self, image: Tensor) -> list[Tensor]:
        """(b c d h w) to one (b c_e d_e h_e w_e) per level."""


class Neck(Component, ABC):
    """Feature levels to the same levels: same channels, same sizes. Constructed with `config=, in_spec=, spacing=`."""

    out_spec: FeatureSpec

    @abstractmethod
    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """One (b c_e d_e h_e w_e) per level in and out."""


class Decoder(Component, ABC):
    """Feature levels to decoder stages, finest first. Constructed with `config=, in_spec=`."""

    out_spec: FeatureSpec

    @abstractmethod
    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """One (b c_e d_e h_e w_e) per level to one (b c_l d_l h_l w_l) per stage."""


class Head(Component, ABC):
    """Decoder stages to a `HeadOutput`. Constructed with `config=, in_spec=, num_classes=, spacing=`.

    `gives` says what its outputs hold, so that a loss can be checked against it before any data flows; `out_strides`
    the input voxels per voxel (z, y, x) of each output, the final one, at full resolution, first.
    """

    gives: ClassVar[Literal["logits", "queries"]]
    num_queries: int | None = None
    out_strides: tuple[Size3, ...]

    @abstractmethod
    def forward(self, stages: list[Tensor]) -> HeadOutput:
        """One (b c_l d_l h_l w_l) per stage to a `HeadOutput` with one entry per `out_strides`."""

    def mask_layers(self) -> Sequence[nn.Module]:
        """The layer that makes the masks of each output, in the order of the outputs; `explain` reads them.

        A mask is the product of a mask embedding with a stage's features. A layer is either an `nn.Conv3d` of kernel 1,
        whose weights (n c) are the embeddings, or a module that returns them, (b n c), in every call. A module that
        serves several outputs is listed once for each, and its call for the final output comes last. The default, no
        layers, leaves the head without mask embeddings in `explain`, which says so.
        """
        return ()


class Loss(Component, ABC):
    """`HeadOutput` and a label map to a scalar. Constructed with `config=, num_classes=, ignore_label=`.

    `annotated` (b k) bool says which labels are annotated in each sample; where some are not, a voxel of label 0 may
    be background or any of those. None: all are. `instances` (b d h w) integer numbers the separate objects of a label,
    0 for none; dense losses have no use for it.

    `forward` begins with an `InputCheck` (`losses.inputs`), which all losses share. It takes labels and instances also
    with a channel axis of 1 and as whole numbers in floating point, as MONAI's loaders give them, and raises
    `JointError` for what does not fit the final output or is no label.

    A batch may be divided, among processes or into pieces whose gradients are added. Its loss is then the sum of the
    pieces' losses, each divided by the `counts` of the whole batch.
    """

    accepts: ClassVar[Literal["logits", "queries"]]

    @abstractmethod
    def forward(
        self,
        output: HeadOutput,
        labels: Tensor,
        *,
        annotated: Tensor | None = None,
        instances: Tensor | None = None,
        counts: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Labels (b d h w) integer; returns the loss and its detached parts by name.

        `counts`: those of the whole batch, if this is a piece of it; loss and parts are then its share of them.
        """

    def counts(
        self,
        output: HeadOutput,
        labels: Tensor,
        *,
        annotated: Tensor | None = None,
        instances: Tensor | None = None,
    ) -> Tensor:
        """What the sums over a batch are divided by, (n) int64; those of pieces add up to those of the whole.

        They follow from the arguments of `forward` but from no value of `output`, of which sizes alone are read. A loss
        without this method trains in one process and in one piece alone.
        """
        raise NotImplementedError

    def prior(self, labels: Tensor, size: Size3, *, annotated: Tensor | None, share: float) -> Tensor | None:
        """(b k d h w) bool of that size, where the query of each label looks in the first block in training.

        `share` is the part of the samples that have one, from 1 to 0; in the others all is true. None: no head is told.
        """
        del labels, size, annotated, share
        return None

    @abstractmethod
    def stage_weights(self, stages: int) -> list[float]:
        """Weight of each stage, finest first."""

    def check_instances(self) -> None:
        """Raise `JointError` if these settings cannot separate instances."""


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Trilinear resize of (b c d h w) to `size` by voxel centres; the identity where the size is right."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="trilinear", align_corners=False)


def average_pool(x: Tensor, kernel: Size3, stride: Size3, **settings: Any) -> Tensor:
    """`avg_pool3d` of (b c d h w), also for 16-bit maps on the CPU, for which PyTorch has none."""
    is_missing = x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16)
    return F.avg_pool3d(x.float() if is_missing else x, kernel, stride, **settings).to(x.dtype)


def at_least_float32(x: Tensor) -> Tensor:
    """In float32, or float64 where it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Autocast off on the device of `x`, where there is such a thing (not on meta)."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def is_eager_cpu(x: Tensor) -> bool:
    """Whether PyTorch's own CPU kernels run on `x` now, and not what a compiler or an export makes of the layers."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()
