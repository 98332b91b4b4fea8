"""Feature maps as rows of channels, one per voxel, with gradients that lie in memory as the maps do.

What reads a map voxel by voxel gives gradients with the channels last. Added as they are to those of convolutions, they
make every later step of the backward pass read across memory; one transposed copy is four times cheaper. Maps in
`channels_last_3d` are rows already.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskmed_zoo.contracts import is_eager_cpu


def rows(x: Tensor) -> Tensor:
    """(b c d h w) to (b s c); on the CPU copied once, for all who read it there want it in order, else a view."""
    return _Rows.apply(x)  # pyright: ignore[reportReturnType]  # without types in PyTorch


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.size, ctx.is_in_order = x.shape[2:], x.is_contiguous()
        voxels = x.flatten(2).transpose(1, 2)
        return voxels.contiguous() if is_eager_cpu(x) else voxels

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        grad = grad_outputs[0].transpose(1, 2)
        return (grad.contiguous() if ctx.is_in_order else grad).unflatten(2, ctx.size)
