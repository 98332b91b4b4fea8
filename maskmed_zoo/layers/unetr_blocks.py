"""MONAI's blocks of UNETR-like networks with the settings those share: kernel 3, instance norm, residual.

MONAI is imported where a block is built: that takes seconds, and settings are checked without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import nn

from maskmed_zoo.errors import JointError
from maskmed_zoo.settings import Size3


def basic_block(in_channels: int, out_channels: int) -> nn.Module:
    """`UnetrBasicBlock`: (b c d h w) to (b c' d h w) by two convolutions and a skip."""
    from monai.networks.blocks.unetr_block import UnetrBasicBlock

    return UnetrBasicBlock(3, in_channels, out_channels, 3, 1, "instance", res_block=True)


def up_block(in_channels: int, out_channels: int, stride: Size3) -> nn.Module:
    """`UnetrUpBlock`: a map and the skip `stride` finer, of `out_channels`, to a map like the skip."""
    from monai.networks.blocks.unetr_block import UnetrUpBlock

    return UnetrUpBlock(3, in_channels, out_channels, 3, stride, "instance", res_block=True)


def check_voxels(coarsest: Sequence[int], part: str) -> None:
    """Raise `JointError` if the coarsest map (d h w) is a single voxel, which a norm over voxels would make zero."""
    if prod(coarsest) <= 1:
        raise JointError(f"{part} normalizes over voxels and has one left at its coarsest level; use a larger patch")
