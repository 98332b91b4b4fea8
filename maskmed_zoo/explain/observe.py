"""What a network computes on its way through one window, read from outside of its parts.

Idea: forward hooks note what enters a block; attention weights and sampling points are then computed again with the
block's own projections. No component holds code for it, and what the network does is not changed (MaskMed Fig. 3-5).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from maskmed_zoo.contracts import Head, HeadOutput, full_precision
from maskmed_zoo.heads.attention_class import AttentionClassHead
from maskmed_zoo.heads.attention_mask_class import AttentionMaskClassHead
from maskmed_zoo.heads.learned_class import LearnedClassHead
from maskmed_zoo.heads.masked_query import MaskedQueryHead
from maskmed_zoo.heads.pointwise import PointwiseHead
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
    after the other. `centres` (q 3), `locations` (q h l p 3), `weights` (q h l p), which sum to 1 per head.
    """

    levels: tuple[int, ...]
    query_sizes: tuple[Size3, ...]
    centres: Tensor
    locations: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Observation:
    """A forward pass of one window. All outputs last first, as the head gives them; blocks in the order they ran.

    `mask_embeddings` holds one (n c) per output, none where the head is of an unknown kind.
    """

    output: HeadOutput
    mask_embeddings: list[Tensor]
    attention: list[BlockAttention]
    sampling: list[Sampling]


@torch.inference_mode()
def observe(model: SegmentationModel, window: Tensor) -> Observation:
    """Run `model` on one window (c d h w), which is normalised and on the model's device."""
    stages: list[Tensor] = []
    embeddings: list[Tensor] = []
    seen: list[tuple[int, QueryDecoder, Tensor, Tensor | None]] = []
    sampling: list[Sampling] = []

    def read(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        stages.extend(inputs[0])

    def embed(_module: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> None:
        embeddings.append(output[0])

    def sample(module: DeformableBlock, inputs: tuple[Any, ...]) -> None:
        sampling.append(_sampling(module, inputs, len(model.encoder.out_spec)))

    with ExitStack() as hooks:
        hooks.enter_context(model.head.register_forward_pre_hook(read))
        for module in _embedders(model.head):
            hooks.enter_context(module.register_forward_hook(embed))
        for decoder in (m for m in model.head.modules() if isinstance(m, QueryDecoder)):
            for index, block in enumerate(decoder.blocks):
                if isinstance(block, QueryBlock):
                    hooks.enter_context(block.cross.register_forward_pre_hook(_looker(seen, index, decoder)))
        for module in (m for m in model.neck.modules() if isinstance(m, DeformableBlock)):
            hooks.enter_context(module.register_forward_pre_hook(sample))
        output = model(window.unsqueeze(0))
    attention = [_on_grid(decoder, index, stages, weights, mask) for index, decoder, weights, mask in seen]
    return Observation(output, embeddings[::-1] or _kernels(model.head), attention, sampling)


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
    seen: list[tuple[int, QueryDecoder, Tensor, Tensor | None]], index: int, decoder: QueryDecoder
) -> Callable[[MultiHeadAttention, tuple[Any, ...]], None]:
    def look(module: MultiHeadAttention, inputs: tuple[Any, ...]) -> None:
        query, key, _, mask = inputs
        seen.append((index, decoder, attention_weights(module, query, key, mask).mean(1)[0], mask))

    return look


def _on_grid(
    decoder: QueryDecoder, block: int, stages: list[Tensor], weights: Tensor, mask: Tensor | None
) -> BlockAttention:
    features = stages[decoder.schedule[block]]
    grid = decoder.grid(features, block)
    if mask is not None:
        mask = mask[0].float().exp() if mask.is_floating_point() else mask[0].float()
        mask = mask.unflatten(-1, grid).cpu()
    return BlockAttention(
        (features.shape[2], features.shape[3], features.shape[4]), weights.unflatten(-1, grid).cpu(), mask
    )


def _sampling(block: DeformableBlock, inputs: tuple[Any, ...], levels: int) -> Sampling:
    tokens, position, centres, _, sizes = inputs
    locations, weights = block.sampling(tokens + position, centres, sizes)
    query_sizes: list[Size3] = []
    while sum(d * h * w for d, h, w in query_sizes) < len(centres):  # the queries are the lowest of the levels sampled
        query_sizes.insert(0, sizes[len(sizes) - 1 - len(query_sizes)])
    numbers = tuple(range(levels - len(sizes), levels))
    return Sampling(numbers, tuple(query_sizes), centres.cpu(), locations[0].cpu(), weights[0].cpu())


def _embedders(head: Head) -> nn.ModuleList | list[nn.Module]:
    """The modules whose outputs are mask embeddings, called once per output."""
    return head.mask_embeddings if isinstance(head, MaskedQueryHead | AttentionMaskClassHead) else []


def _kernels(head: Head) -> list[Tensor]:
    """The 1x1x1 convolutions that make masks, (n c) per output."""
    layers: nn.ModuleList | list[nn.Module] = []
    if isinstance(head, LearnedClassHead | AttentionClassHead):
        layers = head.masks
    elif isinstance(head, PointwiseHead):
        layers = head.projections
    return [layer.get_parameter("weight").detach().flatten(1) for layer in layers]
