"""nnU-Net's own networks and how its planner measures them: voxels of feature maps against a reference.

Idea: memory in training is about proportional to what the convolutions of a network give, so nnU-Net counts that and
compares it with a network known to fit. Its figures were found by trial and are taken as they are.
Source: nnU-Net v2, `ExperimentPlanner`, `nnUNetPlannerResEncM`, `L` and `XL` (Isensee et al., "nnU-Net Revisited",
2024); `compute_conv_feature_map_size` of dynamic-network-architectures. Deviation: M, L and XL are not chosen by name:
the budget decides, below 24, from 24 and from 40 GiB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from maskmed_zoo.contracts import PlannedLevels
from maskmed_zoo.decoders.unet import UNetConfig
from maskmed_zoo.encoders.plain_conv import PlainConvConfig
from maskmed_zoo.encoders.residual import ResidualConfig
from maskmed_zoo.heads.pointwise import PointwiseConfig
from maskmed_zoo.layers.conv import per_level
from maskmed_zoo.necks.skip import SkipConfig
from maskmed_zoo.recipe.schema import ModelRecipe

SMALLEST_BATCH = 2
SHARE = 0.05
"""Of the data set's voxels, the most that a batch may hold."""
FINEST = 32
"""Channels of the finest level."""
_RESIDUAL_BLOCKS = (1, 3, 4, 6, 6, 6)


@dataclass(frozen=True)
class Reference:
    """A network known to fit: `voxels` of its feature maps, at batch 2, and the memory, GiB, that they stand for."""

    name: str
    voxels: float
    gib: float
    share: float

    def allowed(self, gib: float) -> float:
        """Voxels of feature maps for a budget."""
        return self.voxels * (gib / self.gib)


def reference_of(model: ModelRecipe, gib: float) -> Reference | None:
    """nnU-Net's reference for one of its own networks and a budget in GiB; None for any other network."""
    if _is_plain(model):
        return Reference("nnU-Net", 560_000_000, 8, SHARE)
    if not _is_resenc(model):
        return None
    if gib < 24:
        return Reference("ResEnc M", 680_000_000, 8, 1)
    return Reference("ResEnc L", 2_100_000_000, 24, 1) if gib < 40 else Reference("ResEnc XL", 3_600_000_000, 40, 1)


def _is_plain(model: ModelRecipe) -> bool:
    encoder = model.encoder
    if type(encoder) is not PlainConvConfig or encoder.channels[0] != FINEST:
        return False
    return set(per_level(encoder.blocks, 1)) == {2} and _stages(model) == {2}


def _is_resenc(model: ModelRecipe) -> bool:
    encoder = model.encoder
    if type(encoder) is not ResidualConfig or encoder.channels[0] != FINEST or not isinstance(encoder.blocks, tuple):
        return False
    count = len(encoder.blocks)
    wanted = (*_RESIDUAL_BLOCKS, *_RESIDUAL_BLOCKS[-1:] * count)[:count]
    return count >= len(set(_RESIDUAL_BLOCKS)) and encoder.blocks == wanted and _stages(model) == {1}


def _stages(model: ModelRecipe) -> set[int] | None:
    """Convolutions per stage of nnU-Net's decoder, with plain skips and its head; None with other parts."""
    decoder = model.decoder
    if type(model.neck) is not SkipConfig or type(model.head) is not PointwiseConfig:
        return None
    if not isinstance(decoder, UNetConfig) or (decoder.residual, decoder.width, decoder.parameters) != (False, 1, None):
        return None
    return set(per_level(decoder.blocks, 1))


def feature_voxels(model: ModelRecipe, levels: PlannedLevels, labels: int) -> int:
    """What the convolutions of one of nnU-Net's networks give for one patch, voxels times channels."""
    encoder, decoder = model.encoder.fitted(levels), model.decoder.fitted(levels)
    if not isinstance(encoder, PlainConvConfig | ResidualConfig) or not isinstance(decoder, UNetConfig):
        return 0
    sizes = _sizes(levels)
    counts = per_level(encoder.blocks, len(sizes))
    if isinstance(encoder, PlainConvConfig):
        total = sum(n * c * prod(size) for n, c, size in zip(counts, encoder.channels, sizes, strict=True))
    else:
        total, before, above = encoder.channels[0] * prod(sizes[0]), encoder.channels[0], sizes[0]  # the stem
        for n, c, size in zip(counts, encoder.channels, sizes, strict=True):
            total += (2 * n + (c != before or size != above)) * c * prod(size)
            before, above = c, size
    for n, c, size in zip(per_level(decoder.blocks, len(sizes) - 1), encoder.channels, sizes, strict=False):
        total += (n + 1) * c * prod(size)  # with the transposed convolution
    return total + labels * prod(sizes[0])


def most_of_data(patch: Sequence[int], voxels: float, share: float) -> int:
    """Patches that hold a share of the data set's voxels."""
    return round(voxels * share / prod(patch))


def _sizes(levels: PlannedLevels) -> list[Sequence[int]]:
    sizes: list[Sequence[int]] = []
    size: Sequence[int] = levels.patch
    for step in levels.strides:
        size = [side // s for side, s in zip(size, step, strict=True)]
        sizes.append(size)
    return sizes
