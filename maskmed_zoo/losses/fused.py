"""Sums over voxels that losses are made of, with gradients written by hand: few passes, and no map kept for later.

What a loss needs of a map is a number or two per mask, and the gradient follows from the map and those numbers. So
nothing of the map's size is kept between the passes but what the network keeps anyway (for `dense_sums` one map of
probabilities); on the CPU masks are taken so few at a time that they stay in the cache. Differentiable once. The tests
compare both with plain PyTorch, and by `gradcheck`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from maskmed_zoo.contracts import full_precision

CHUNK = 1 << 19
"""Voxels of all masks that are taken at a time on the CPU, 2 MB in float32."""


def mask_sums(
    masks: Tensor, targets: Tensor, at: tuple[Tensor, Tensor, Tensor], valid: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """BCE summed over voxels, overlap Σ σ(m) t and size Σ σ(m), each (m), of pairs of a mask and a target.

    Args:
        masks: (b n v) logits; sums are made in float32, or float64 where the masks are.
        targets: (b t v) bool.
        at: sample, mask and target of each pair, (m) each; no mask is in two pairs.
        valid: (b v) bool, false where a voxel counts for nothing; None: all count.
    """
    return _MaskSums.apply(masks, targets, *at, valid)  # pyright: ignore[reportReturnType]  # untyped in PyTorch


def dense_sums(logits: Tensor, target: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cross-entropy summed over voxels and, (b k) each, overlap of p and label k, size Σ p, and voxels of label k.

    p is softmax(logits).

    Args:
        logits: (b k v).
        target: (b v) int64 from 0 to k - 1.
        valid: (b v) bool, false where a voxel counts for nothing; None: all count.
    """
    return _DenseSums.apply(logits, target, valid)  # pyright: ignore[reportReturnType]  # untyped in PyTorch


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) for all x, within rounding.

    As 2 artanh(e / (2 + e)) = log(1 + e): PyTorch's softplus and log1p were measured to take three to ten times as long
    with AVX-512.
    """
    e = x.abs().neg_().exp_()
    return e.div_(e + 2).atanh_().mul_(2).add_(x.clamp_min(0))


def cache_sized(count: int, each: int, device: torch.device) -> list[slice]:
    """`count` rows of `each` numbers in pieces that fit a cache, at least one; on a GPU in one."""
    size = max(1, CHUNK // max(1, each)) if device.type == "cpu" else max(1, count)
    return [slice(start, start + size) for start in range(0, max(1, count), size)]


class _MaskSums(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - PyTorch hands them over by place
        ctx: Any, masks: Tensor, targets: Tensor, sample: Tensor, query: Tensor, chosen: Tensor, valid: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(masks, targets, sample, query, chosen, valid)
        parts: list[Tensor] = []
        with full_precision(masks):
            for x, t, kept, _ in _pairs(masks, targets, sample, query, chosen, valid):
                bce, p = softplus((1 - 2 * t).mul_(x)), x.sigmoid()
                if kept is not None:
                    bce, p = bce.mul_(kept), p.mul_(kept)
                size = p.sum(-1)
                parts.append(torch.stack([bce.sum(-1), p.mul_(t).sum(-1), size]))
            sums = torch.cat(parts, 1)
        return sums[0], sums[1], sums[2]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        masks, targets, sample, query, chosen, valid = ctx.saved_tensors
        grad = torch.zeros_like(masks, memory_format=torch.contiguous_format)
        with full_precision(masks):
            for x, t, kept, piece in _pairs(masks, targets, sample, query, chosen, valid):
                bce, overlap, size = (g[piece].unsqueeze(-1) for g in grad_outputs)
                p = x.sigmoid()
                slope = (1 - p).mul_(p).mul_((overlap * t).add_(size)).add_(p.sub_(t).mul_(bce))
                if kept is not None:
                    slope *= kept
                grad[sample[piece], query[piece]] = slope.to(grad.dtype)
        return grad, None, None, None, None, None


def _pairs(  # noqa: PLR0917 - those of `forward`
    masks: Tensor, targets: Tensor, sample: Tensor, query: Tensor, chosen: Tensor, valid: Tensor | None
) -> Iterator[tuple[Tensor, Tensor, Tensor | None, slice]]:
    for piece in cache_sized(len(sample), masks.shape[-1], masks.device):
        of = sample[piece]
        x = masks[of, query[piece]].to(_wide(masks))
        yield x, targets[of, chosen[piece]].to(x.dtype), None if valid is None else valid[of], piece


class _DenseSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, valid: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        with full_precision(logits):
            log_p = logits.to(_wide(logits)).log_softmax(1)
            at = log_p.gather(1, target.unsqueeze(1))[:, 0]
            p, hit = log_p.exp_(), at.exp()
            if valid is not None:
                at, hit, p = at.masked_fill(~valid, 0), hit * valid, p.mul_(valid.unsqueeze(1))
            # One pass per label over a map without labels is less than one over a map of every label.
            labels = (target if valid is None else target.masked_fill(~valid, -1)).to(torch.int16)
            overlap, count = torch.zeros_like(p[..., 0]), torch.zeros_like(p[..., 0])
            for k in range(p.shape[1]):
                is_label = labels == k
                overlap[:, k], count[:, k] = (hit * is_label).sum(-1), is_label.sum(-1)
        ctx.save_for_backward(p, target, valid)
        ctx.dtype = logits.dtype
        ctx.mark_non_differentiable(count)
        return -at.sum(), overlap, p.sum(-1), count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        of_ce, of_overlap, of_size = grad_outputs[:3]
        p, target, valid = ctx.saved_tensors
        index = target.unsqueeze(1)
        with full_precision(p):
            # With g the gradient of p, that of the logits is p (g - Σ p g), and p - 1 at the target for cross-entropy.
            of_hit = p.gather(1, index) * of_overlap.gather(1, target).unsqueeze(1)
            mean = of_hit + torch.bmm(of_size.unsqueeze(1), p)
            grad = torch.sub(of_size.unsqueeze(-1) + of_ce, mean).mul_(p)
            extra = of_hit - (of_ce if valid is None else of_ce * valid.unsqueeze(1))
            grad.scatter_(1, index, grad.gather(1, index) + extra)
        return grad.to(ctx.dtype), None, None


def _wide(x: Tensor) -> torch.dtype:
    """Sums are made in float32, or float64 where the maps are."""
    return torch.promote_types(x.dtype, torch.float32)
