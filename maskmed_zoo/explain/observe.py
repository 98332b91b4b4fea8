"""What a network computes on its way through one window, read from outside of its parts.

Idea: forward hooks note what enters a block; attention weights and sampling points are then computed again with the
block's own projections. What the network computes is not changed (MaskMed Fig. 3-5). Attention is that of every
`QueryDecoder` in the head, sampling points are those of every `DeformableBlock` in the neck; the head itself names the
layers that make its masks.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from maskmed_zoo.contracts import HeadOutput, full_precision
from maskmed_zoo.explain.mask_embeddings import mask_embeddings
from maskmed_zoo.layers.deformable import DeformableBlock
from maskmed_zoo.layers.query_decoder import QueryDecoder
from maskmed_zoo.layers.transformer import MultiHeadAttention, QueryBlock
from maskmed_zoo.model import SegmentationModel
from maskmed_zoo.settings import Size3


@dataclass(frozen=True)
class BlockAttention:
    """Where the queries of one transformer block looked: over tokens (d h w) of a decoder stage of `stage_size` voxels.

    `weights` (n d h w) is the mean over attention heads and sums to 1 per query; `prior` (n d h w) is how far each
    token was open to each query, from 0 to 1, None where nothing restricted them.
    """

    stage_size: Size3
    weights: Tensor
    prior: Tensor | None


@dataclass(frozen=True)
class Sampling:
    """Where the queries of one deformable block sampled, in unit coordinates (0 and 1 are the window's faces).

    `levels` are the encoder levels sampled; the queries are the voxels of the levels `query_sizes` (d h w), one level
    after the other. `centers` (q 3), `locations` (q h l p 3), `weights` (q h l p), which sum to 1 per head.
    """

    levels: tuple[int, ...]
    query_sizes: tuple[Size3, ...]
    centers: Tensor
    locations: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Observation:
    """A forward pass of one window. All outputs last first, as the head gives them; blocks in the order they ran.

    `mask_embeddings` holds one (n c) per output, none where the head names no `mask_layers`.
    """

    output: HeadOutput
    mask_embeddings: list[Tensor]
    attention: list[BlockAttention]
    sampling: list[Sampling]


@dataclass(frozen=True)
class _Look:
    """What block number `block` of a decoder did: weights (n t) over its tokens, and the mask (1 n t) it was given."""

    decoder: QueryDecoder
    block: int
    weights: Tensor
    mask: Tensor | None


@torch.inference_mode()
def observe(model: SegmentationModel, window: Tensor) -> Observation:
    """Run `model` on one window (c d h w), which is normalized and on the model's device."""
    stages: list[Tensor] = []
    looks: list[_Look] = []
    sampling: list[Sampling] = []

    def read(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        stages.extend(inputs[0])

    def sample(module: DeformableBlock, inputs: tuple[Any, ...]) -> None:
        sampling.append(_sampling(module, inputs, len(model.encoder.out_spec)))

    with ExitStack() as hooks:
        hooks.enter_context(model.head.register_forward_pre_hook(read))
        embeddings = hooks.enter_context(mask_embeddings(model.head))
        for decoder in (m for m in model.head.modules() if isinstance(m, QueryDecoder)):
            for index, block in enumerate(decoder.blocks):
                if isinstance(block, QueryBlock):
                    hooks.enter_context(block.cross.register_forward_pre_hook(_looker(looks, decoder, index)))
        for module in (m for m in model.neck.modules() if isinstance(m, DeformableBlock)):
            hooks.enter_context(module.register_forward_pre_hook(sample))
        output = model(window.unsqueeze(0))
    attention = [_on_grid(look, stages[look.decoder.schedule[look.block]]) for look in looks]
    return Observation(output, embeddings, attention, sampling)


def attention_weights(attention: MultiHeadAttention, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """(b h n t): what `attention` multiplies its values with; arguments as those of its `forward`."""
    with full_precision(query):
        q, k = (
            layer(x if x.dtype == torch.float64 else x.float()).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
            for layer, x in ((attention.query, query), (attention.key, key))
        )
        logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if mask is not None:
            mask = mask.unsqueeze(1)
            logits = logits + mask if mask.is_floating_point() else logits.masked_fill(~mask, -torch.inf)
        return logits.softmax(-1)


def _looker(
    looks: list[_Look], decoder: QueryDecoder, block: int
) -> Callable[[MultiHeadAttention, tuple[Any, ...]], None]:
    def look(module: MultiHeadAttention, inputs: tuple[Any, ...]) -> None:
        query, key, _, mask = inputs
        looks.append(_Look(decoder, block, attention_weights(module, query, key, mask).mean(1)[0], mask))

    return look


def _on_grid(look: _Look, features: Tensor) -> BlockAttention:
    """Weights and mask as volumes over the tokens of the stage's features (b c d h w)."""
    grid, mask = look.decoder.grid(features, look.block), look.mask
    if mask is not None:
        mask = mask[0].float().exp() if mask.is_floating_point() else mask[0].float()
        mask = mask.unflatten(-1, grid).cpu()
    size = (features.shape[2], features.shape[3], features.shape[4])
    return BlockAttention(size, look.weights.unflatten(-1, grid).cpu(), mask)


def _sampling(block: DeformableBlock, inputs: tuple[Any, ...], levels: int) -> Sampling:
    tokens, position, centers, _, sizes = inputs
    locations, weights = block.sampling(tokens + position, centers, sizes)
    query_sizes: list[Size3] = []
    while sum(d * h * w for d, h, w in query_sizes) < len(centers):  # the queries are the lowest of the levels sampled
        query_sizes.insert(0, sizes[len(sizes) - 1 - len(query_sizes)])
    numbers = tuple(range(levels - len(sizes), levels))
    return Sampling(numbers, tuple(query_sizes), centers.cpu(), locations[0].cpu(), weights[0].cpu())
