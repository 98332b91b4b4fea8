"""Positions of voxels: centres in unit coordinates and sine encodings in physical proportion."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from maskmed_zoo.settings import Size3, Spacing3


def voxel_centers(size: Size3, device: torch.device) -> Tensor:
    """(d h w 3) float32 centres in z, y, x order; 0 and 1 are the outer faces, voxel i of n is at (i + 0.5) / n."""
    axes = [(torch.arange(n, device=device, dtype=torch.float32) + 0.5) / n for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)


def sine_encoding(
    size: Size3, extent: Sequence[float], width: int, device: torch.device, *, is_limited: bool = False
) -> Tensor:
    """(d·h·w width) float32 sine encoding of voxel centres of a volume `extent` mm large along z, y, x.

    Each axis has width/6 frequencies, in sine and cosine, from one period per 2 x the longest extent up in geometric
    steps to one period per 1/32 of it, so that a millimetre counts the same along every axis (MaskMed §3.2; the paper
    is silent on the encoding). The channels that 6 does not divide stay zero. With `is_limited` the highest
    frequency is at most half a period per voxel along the axis whose voxels are shortest; above, it would alias.
    """
    count = width // 6
    longest = max(extent)
    position = voxel_centers(size, device) * torch.tensor([e / longest for e in extent], device=device)
    top = min(64.0, max(n * longest / e for n, e in zip(size, extent, strict=True))) if is_limited else 64.0
    frequency = math.pi * top ** (torch.arange(count, device=device, dtype=torch.float32) / max(count - 1, 1))
    angle = (position.unsqueeze(-1) * frequency).reshape(-1, 3 * count)
    encoding = torch.cat([angle.sin(), angle.cos()], 1)
    return torch.nn.functional.pad(encoding, (0, width - encoding.shape[1]))


def extent_mm(size: Size3, stride: Size3, spacing: Spacing3) -> tuple[float, float, float]:
    """Physical size of a feature map along z, y, x in mm."""
    return (size[0] * stride[0] * spacing[0], size[1] * stride[1] * spacing[1], size[2] * stride[2] * spacing[2])
