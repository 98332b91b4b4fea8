"""What the kernels take for granted: they get raw pointers, so what is not checked here reads memory of others."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check(values: Tensor, locations: Tensor, weights: Tensor, shapes: Sequence[int]) -> None:
    """Raise `ValueError` unless the arguments of `deformable_attention`, shapes flat, belong together."""
    fits = values.dim() == 4 and locations.dim() == 6 and weights.shape == locations.shape[:-1] and len(shapes) % 3 == 0
    if fits:
        b, s, h, _ = values.shape
        expected = (b, locations.shape[1], h, len(shapes) // 3, locations.shape[4], 3)
        fits = locations.shape == expected and all(n >= 0 for n in shapes)
        fits = fits and sum(prod(shapes[at : at + 3]) for at in range(0, len(shapes), 3)) == s
    if not fits:
        levels = [tuple(shapes[at : at + 3]) for at in range(0, len(shapes), 3)]
        raise ValueError(
            f"deformable_attention: values {tuple(values.shape)}, shapes {levels}, locations "
            f"{tuple(locations.shape)} and weights {tuple(weights.shape)} do not belong together; expected (b s h c), "
            f"one (d h w) per level with s voxels in all, (b q h levels points 3) and (b q h levels points)"
        )
    tensors = (values, locations, weights)
    one_device = all(x.device == values.device for x in tensors)
    if values.dtype not in TYPES or not one_device or any(x.layout != torch.strided for x in tensors):
        raise ValueError(
            f"deformable_attention: values are {values.dtype} on {values.device}, locations on {locations.device}, "
            f"weights on {weights.device}; all belong on one device, values in float32, bfloat16, float16 or float64, "
            f"none of them sparse"
        )


def check_types(values: Tensor, locations: Tensor, weights: Tensor, grad: Tensor | None = None) -> None:
    """Raise `ValueError` unless the tensors have the types the kernels read, and `grad` is one of the output."""
    precision = torch.promote_types(values.dtype, torch.float32)
    if locations.dtype != precision or weights.dtype != precision:
        raise ValueError(
            f"deformable_attention: locations are {locations.dtype} and weights {weights.dtype}, for values in "
            f"{values.dtype} both are {precision}; maskmed_zoo.ops.deformable.deformable_attention converts them"
        )
    if grad is None:
        return
    output = (*locations.shape[:3], values.shape[-1])
    place = (values.dtype, values.device, torch.strided)
    if grad.shape != output or (grad.dtype, grad.device, grad.layout) != place:
        raise ValueError(
            f"deformable_attention: the gradient is {tuple(grad.shape)}, {grad.dtype} on {grad.device}; expected that "
            f"of the output, {tuple(output)}, {values.dtype} on {values.device}, dense"
        )
