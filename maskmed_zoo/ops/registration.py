"""Deformable attention as registered ops, one per direction: opaque to `torch.compile` and `torch.export`.

The kernel is picked by the device of the tensors when the op runs, so that a program exported here also runs on a
machine with less. Both ops check what they get, whoever calls them. The backward op has no derivative: differentiating
twice raises instead of giving zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from maskmed_zoo.ops import backend, native, reference
from maskmed_zoo.ops.arguments import check, check_types


@torch.library.custom_op("maskmed_zoo::deformable_attention", mutates_args=())
def forward(values: Tensor, locations: Tensor, weights: Tensor, shapes: Sequence[int]) -> Tensor:
    """Values (b s h c), locations (b q h l p 3), weights (b q h l p), shapes (3 l); (b q h c).

    Locations and weights are float32, or float64 where the values are. Raises `ValueError` for what does not fit.
    """
    check(values, locations, weights, shapes)
    check_types(values, locations, weights)
    taken = backend.best(values.device.type) if native.fits(shapes) else "torch"
    library, _ = native.load() if taken == "native" else (None, "")
    if library:
        return library.forward(values, shapes, locations, weights)
    if taken == "triton":
        from maskmed_zoo.ops import triton_backend

        return triton_backend.forward(values, shapes, locations, weights)
    with torch.no_grad():
        return reference.attend(values, shapes, locations, weights).contiguous()


@torch.library.custom_op("maskmed_zoo::deformable_attention_backward", mutates_args=())
def backward(  # noqa: PLR0917 - the order of a schema
    grad: Tensor, values: Tensor, locations: Tensor, weights: Tensor, shapes: Sequence[int], wants_values: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of values (without elements if not wanted), locations and weights; `grad` (b q h c) like the values."""
    check(values, locations, weights, shapes)
    check_types(values, locations, weights, grad)
    taken = backend.best(values.device.type) if native.fits(shapes) else "torch"
    library, _ = native.load() if taken == "native" else (None, "")
    if library:
        of_values, *others = library.backward(grad, values, shapes, locations, weights, wants_values=wants_values)
    elif taken == "triton":
        from maskmed_zoo.ops import triton_backend

        of_values, *others = triton_backend.backward(
            grad, values, shapes, locations, weights, wants_values=wants_values
        )
    else:
        of_values, *others = (x.contiguous() for x in reference.backward(grad, values, shapes, locations, weights))
    return values.new_empty(0) if of_values is None or not wants_values else of_values, others[0], others[1]


@forward.register_fake
def _(values: Tensor, locations: Tensor, weights: Tensor, shapes: Sequence[int]) -> Tensor:
    check(values, locations, weights, shapes)
    check_types(values, locations, weights)
    return values.new_empty((*locations.shape[:3], values.shape[-1]))


@backward.register_fake
def _(  # noqa: PLR0917 - the order of a schema
    grad: Tensor, values: Tensor, locations: Tensor, weights: Tensor, shapes: Sequence[int], wants_values: bool
) -> tuple[Tensor, Tensor, Tensor]:
    check(values, locations, weights, shapes)
    check_types(values, locations, weights, grad)
    of_values = values.new_empty(values.shape if wants_values else 0)
    return of_values, locations.new_empty(locations.shape), weights.new_empty(weights.shape)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Sequence[int]], output: Tensor) -> None:
    del output
    ctx.save_for_backward(*inputs[:3])
    ctx.shapes = inputs[3]


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
    wants_values = bool(ctx.needs_input_grad[0])
    of_values, of_locations, of_weights = backward(grad, *ctx.saved_tensors, ctx.shapes, wants_values)
    return of_values if wants_values else None, of_locations, of_weights, None


forward.register_autograd(_differentiate, setup_context=_save)


def _of_samples(
    _values: object, locations: Sequence[int], *_args: object, out_shape: Sequence[int], **_: object
) -> int:
    """Trilinear interpolation of one number: eight multiplications and additions."""
    return 2 * 8 * prod(locations[:-1]) * out_shape[-1]


def _of_gradients(_grad: object, values: Sequence[int], locations: Sequence[int], *_args: object, **_kw: object) -> int:
    """Per corner a product with the gradient, and one added to the gradient of its row."""
    return 4 * 8 * prod(locations[:-1]) * values[-1]


def _of_grid(_values: object, _grid: object, *_args: object, out_shape: Sequence[int], **_kw: object) -> int:
    return 2 * 8 * prod(out_shape)


def _of_bags(rows: Sequence[int], indices: Sequence[int], *_args: object, **_kw: object) -> int:
    return 2 * prod(indices) * rows[-1]


FLOP_FORMULAS = {
    torch.ops.maskmed_zoo.deformable_attention: _of_samples,
    torch.ops.maskmed_zoo.deformable_attention_backward: _of_gradients,
    torch.ops.aten.grid_sampler_3d: _of_grid,
    torch.ops.aten._embedding_bag: _of_bags,
    torch.ops.aten._embedding_bag_forward_only: _of_bags,
}
"""What `torch.utils.flop_counter.FlopCounterMode(custom_mapping=...)` does not know by itself."""
