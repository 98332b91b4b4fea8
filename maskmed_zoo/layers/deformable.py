"""The deformable transformer block: queries sample a few points at learned offsets from several levels.

A block is deformable attention → Add & LN → FFN → Add & LN (MaskMed App. B, Fig. 6b; Deformable DETR, Zhu et al. 2021).
One offset unit is one voxel of the sampled level; softmax over levels and points; offsets start at fixed directions
times 1 … K, weights at zero (our choices). A projection without bias and trilinear sampling are linear and commute, so
each level is projected before or after sampling, whichever is estimated to cost less.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor, nn

from maskmed_zoo.contracts import full_precision
from maskmed_zoo.layers.transformer import TransformerConfig, feed_forward, widened
from maskmed_zoo.ops.deformable import deformable_attention
from maskmed_zoo.settings import Size3

GATHERED = 2  # what a number costs that is read by sampling; measured, docs/benchmarks/msda_network.py


class DeformableBlock(nn.Module):
    """One block on tokens of one width; values may have another width per level.

    With `points` 0 a query reads its own voxel of every level, one point at offset zero.
    """

    def __init__(self, value_widths: tuple[int, ...], config: TransformerConfig, points: int) -> None:
        super().__init__()
        width, self.heads, self.points = config.width, config.attention_heads, max(points, 1)
        self.levels = len(value_widths)
        samples = self.heads * self.levels * self.points
        self.values = nn.ModuleList(nn.Linear(c, width, bias=False) for c in value_widths)
        self.offsets = _zero_ended(width, 3 * samples) if points else None
        self.weights = _zero_ended(width, samples)
        self.out = nn.Linear(width, width)
        self.ffn = feed_forward(width, config.ffn_ratio)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.dropout = nn.Dropout(config.dropout)
        if self.offsets is not None:
            with torch.no_grad():
                bias = initial_offsets(self.heads, self.points).unsqueeze(1).expand(-1, self.levels, -1, -1)
                self.offsets[-1].get_parameter("bias").copy_(bias.flatten())

    def forward(
        self, tokens: Tensor, position: Tensor, centers: Tensor, levels: list[Tensor], sizes: list[Size3]
    ) -> Tensor:
        """Tokens (b q c), position (q c), centers (q 3) in unit coordinates, one (b s_e c_e) per level; (b q c)."""
        locations, weights = self.sampling(tokens + position, centers, sizes)
        attended = self.out(self._attend(levels, sizes, locations, weights).flatten(2))
        tokens = self.norms[0](tokens + self.dropout(attended))
        return self.norms[1](tokens + self.dropout(self.ffn(tokens)))

    def _attend(self, levels: list[Tensor], sizes: list[Size3], locations: Tensor, weights: Tensor) -> Tensor:
        """(b q h c): project and sample, or sample and project."""
        late = [e for e, x in enumerate(levels) if self._late(x, locations.shape[1])]
        early = [e for e in range(self.levels) if e not in late]
        parts: list[Tensor] = []
        at, share = (x.split(1, 3) for x in (locations, weights))  # what comes back is joined once
        if early:
            values = torch.cat([self.values[e](levels[e]) for e in early], 1).unflatten(-1, (self.heads, -1))
            places, shares = (torch.cat([x[e] for e in early], 3) for x in (at, share))
            parts.append(deformable_attention(values, [sizes[e] for e in early], places, shares))
        for e in late:
            # Every (query, head) becomes a query of one head over the level's own channels.
            one = (x[e].flatten(1, 2).unsqueeze(2) for x in (at, share))
            sampled = deformable_attention(levels[e].unsqueeze(2), [sizes[e]], *one)
            sampled = sampled.squeeze(2).unflatten(1, (-1, self.heads))
            projection = self.values[e].get_parameter("weight").unflatten(0, (self.heads, -1))
            parts.append(torch.einsum("bqhc,hdc->bqhd", sampled, projection))
        return sum(parts[1:], start=parts[0])

    def _late(self, level: Tensor, queries: int) -> bool:
        """Whether sampling level (b s c) before projecting it costs less, in multiplications of a projection."""
        _, voxels, channels = level.shape
        width = self.out.in_features
        early = voxels * channels * width + queries * self.points * 8 * width * GATHERED
        late = queries * self.heads * channels * (self.points * 8 * GATHERED + width // self.heads)
        return late < early

    def sampling(self, queries: Tensor, centers: Tensor, sizes: list[Size3]) -> tuple[Tensor, Tensor]:
        """Where (b q h l p 3) in unit coordinates and how strongly (b q h l p) each query samples, float32."""
        shape = (self.heads, self.levels, self.points)
        with full_precision(queries):
            queries = queries if queries.dtype == torch.float64 else queries.float()
            weights = (
                widened(self.weights, queries).unflatten(-1, (self.heads, -1)).softmax(-1).unflatten(-1, shape[1:])
            )
            own = centers[:, None, None, None, :]
            if self.offsets is None:
                return own.expand(*weights.shape, 3).to(queries.dtype), weights
            # All on one last axis, which runs over memory faster than one of three.
            extent = torch.tensor(sizes, device=queries.device, dtype=queries.dtype).unsqueeze(1)
            extent = extent.expand((*shape, 3)).flatten()
            places = own.expand(-1, *shape, 3).flatten(1) + widened(self.offsets, queries) / extent
            return places.unflatten(-1, (*shape, 3)), weights


def initial_offsets(heads: int, points: int) -> Tensor:
    """(heads points 3) voxels: head i looks along direction i, point k at k voxels' distance (largest component k).

    The 26 directions to the neighbours of a voxel, opposite faces first, then edges and corners; repeated beyond 26.
    """
    directions = sorted((d for d in product((1, 0, -1), repeat=3) if any(d)), key=lambda d: sum(map(abs, d)))
    chosen = torch.tensor([directions[i % len(directions)] for i in range(heads)], dtype=torch.float32)
    return chosen[:, None, :] * torch.arange(1, points + 1)[None, :, None]


def _zero_ended(width: int, out: int) -> nn.Sequential:
    """Two-layer MLP whose last layer starts at zero."""
    last = nn.Linear(width, out)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), last)
