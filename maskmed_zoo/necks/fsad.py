"""Full-scale-aware deformable (FSAD) transformer neck (MaskMed §3.3, App. B, Fig. 2c and 6).

Queries are the voxels of the lowest levels; each samples a few points, at learned offsets, from **all** encoder levels
including full resolution. Block: FSAD attention → Add & LN → FFN → Add & LN. Other levels pass unchanged.
Where the paper is silent: the result is projected back to a level's width and added to it; one offset unit is one voxel
of the sampled level; values of query levels are the current tokens. See the config for the other choices.
"""

from __future__ import annotations

from itertools import product
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from maskmed_zoo.contracts import FeatureSpec, Neck, PositiveInt, Size3, Spacing3, full_precision
from maskmed_zoo.errors import JointError
from maskmed_zoo.layers.position import extent_mm, sine_encoding, voxel_centres
from maskmed_zoo.layers.transformer import TransformerConfig, feed_forward
from maskmed_zoo.ops.deformable import deformable_attention


class FSADConfig(TransformerConfig):
    """Settings of `fsad`."""

    kind: Literal["fsad"] = "fsad"
    query_levels: PositiveInt = Field(
        default=3, description="how many of the lowest levels are queries (§3.3 says 4, App. B 3)"
    )
    layers: PositiveInt = 1
    points: PositiveInt = Field(default=4, description="K, sampling points per query, head and level")


class FSADNeck(Neck):
    """Levels in, the same levels out; the lowest `query_levels` of them enriched from all."""

    Config = FSADConfig
    parameter_group = "transformer"

    def __init__(
        self, *, in_spec: FeatureSpec, config: FSADConfig | None = None, spacing: Spacing3 = (1.0, 1.0, 1.0)
    ) -> None:
        super().__init__()
        config = config or FSADConfig()
        if config.query_levels > len(in_spec):
            raise JointError(
                f"neck 'fsad' asks for {config.query_levels} query levels, the encoder gives {len(in_spec)}; "
                f"set query_levels to at most {len(in_spec)}"
            )
        self.out_spec = self.in_spec = in_spec
        self.spacing, self.width = spacing, config.width
        self.first = len(in_spec) - config.query_levels
        query_channels = in_spec.channels[self.first :]
        self.inputs = nn.ModuleList(nn.Linear(c, config.width) for c in query_channels)
        self.outputs = nn.ModuleList(nn.Linear(config.width, c) for c in query_channels)
        self.level_embedding = nn.Parameter(torch.randn(config.query_levels, config.width) * 0.02)
        value_widths = in_spec.channels[: self.first] + (config.width,) * config.query_levels
        self.layers = nn.ModuleList(FSADLayer(value_widths, config) for _ in range(config.layers))

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """One (b c_e d_e h_e w_e) per level in and out."""
        sizes: list[Size3] = [(x.shape[2], x.shape[3], x.shape[4]) for x in levels]
        query_sizes = sizes[self.first :]
        counts = [d * h * w for d, h, w in query_sizes]
        raw = [x.flatten(2).transpose(1, 2) for x in levels]
        tokens = torch.cat([p(x) for p, x in zip(self.inputs, raw[self.first :], strict=True)], 1)
        position = self._position(query_sizes, levels[0].device).to(tokens.dtype)
        centres = torch.cat([voxel_centres(size, tokens.device).flatten(0, 2) for size in query_sizes])
        for layer in self.layers:
            values = raw[: self.first] + list(tokens.split(counts, 1))
            tokens = layer(tokens, position, centres, values, sizes)
        enriched = [
            x + p(t).transpose(1, 2).unflatten(2, x.shape[2:])
            for x, p, t in zip(levels[self.first :], self.outputs, tokens.split(counts, 1), strict=True)
        ]
        return levels[: self.first] + enriched

    def _position(self, sizes: list[Size3], device: torch.device) -> Tensor:
        """(q c) sine encoding in mm plus level embedding of every query."""
        parts = [
            sine_encoding(size, extent_mm(size, stride, self.spacing), self.width, device) + embedding
            for size, stride, embedding in zip(
                sizes, self.in_spec.strides[self.first :], self.level_embedding, strict=True
            )
        ]
        return torch.cat(parts)


class FSADLayer(nn.Module):
    """One FSAD block on tokens of one width; values may have another width per level."""

    def __init__(self, value_widths: tuple[int, ...], config: FSADConfig) -> None:
        super().__init__()
        width, self.heads, self.points = config.width, config.attention_heads, config.points
        self.levels = len(value_widths)
        samples = self.heads * self.levels * self.points
        self.values = nn.ModuleList(nn.Linear(c, width, bias=False) for c in value_widths)
        self.offsets = _zero_ended(width, 3 * samples)
        self.weights = _zero_ended(width, samples)
        self.out = nn.Linear(width, width)
        self.ffn = feed_forward(width, config.ffn_ratio)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.dropout = nn.Dropout(config.dropout)
        with torch.no_grad():
            bias = initial_offsets(self.heads, self.points).unsqueeze(1).expand(-1, self.levels, -1, -1)
            self.offsets[-1].get_parameter("bias").copy_(bias.flatten())

    def forward(
        self, tokens: Tensor, position: Tensor, centres: Tensor, levels: list[Tensor], sizes: list[Size3]
    ) -> Tensor:
        """Tokens (b q c), position (q c), centres (q 3) in unit coordinates, one (b s_e c_e) per level; (b q c)."""
        locations, weights = self.sampling(tokens + position, centres, sizes)
        attended = self.out(self._attend(levels, sizes, locations, weights).flatten(2))
        tokens = self.norms[0](tokens + self.dropout(attended))
        return self.norms[1](tokens + self.dropout(self.ffn(tokens)))

    def _attend(self, levels: list[Tensor], sizes: list[Size3], locations: Tensor, weights: Tensor) -> Tensor:
        """(b q h c): project and sample, or, where that is cheaper, sample and project; both are linear and commute."""
        late = [e for e, x in enumerate(levels) if self._late(x, locations.shape[1])]
        early = [e for e in range(self.levels) if e not in late]
        parts: list[Tensor] = []
        if early:
            values = torch.cat([self.values[e](levels[e]) for e in early], 1).unflatten(-1, (self.heads, -1))
            parts.append(
                deformable_attention(
                    values, [sizes[e] for e in early], locations[:, :, :, early], weights[:, :, :, early]
                )
            )
        for e in late:
            # Every (query, head) becomes a query of one head over the level's own channels.
            at, share = (x[:, :, :, e : e + 1].flatten(1, 2).unsqueeze(2) for x in (locations, weights))
            sampled = deformable_attention(levels[e].unsqueeze(2), [sizes[e]], at, share)
            sampled = sampled.squeeze(2).unflatten(1, (-1, self.heads))
            projection = self.values[e].get_parameter("weight").unflatten(0, (self.heads, -1))
            parts.append(torch.einsum("bqhc,hdc->bqhd", sampled, projection))
        return sum(parts[1:], start=parts[0])

    def _late(self, level: Tensor, queries: int) -> bool:
        """Whether sampling level (b s c) before projecting it takes fewer multiplications."""
        _, voxels, channels = level.shape
        width = self.out.in_features
        early = voxels * channels * width + queries * self.points * 8 * width
        late = queries * self.heads * channels * (self.points * 8 + width // self.heads)
        return late < early

    def sampling(self, queries: Tensor, centres: Tensor, sizes: list[Size3]) -> tuple[Tensor, Tensor]:
        """Where (b q h l p 3) in unit coordinates and how strongly (b q h l p) each query samples, float32."""
        shape = (self.heads, self.levels, self.points)
        with full_precision(queries):
            queries = queries if queries.dtype == torch.float64 else queries.float()
            offsets = self.offsets(queries).unflatten(-1, (*shape, 3))
            weights = self.weights(queries).unflatten(-1, (self.heads, -1)).softmax(-1).unflatten(-1, shape[1:])
            extent = torch.tensor(sizes, device=queries.device, dtype=queries.dtype)[:, None, :]
            return centres[:, None, None, None, :] + offsets / extent, weights


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
