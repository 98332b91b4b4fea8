"""Bricks of query heads and necks: multi-head attention in float32, feed-forward, MLP and the masked query block."""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from maskmed_zoo.contracts import ComponentConfig, full_precision
from maskmed_zoo.settings import Width

NARROW = (torch.bfloat16, torch.float16)


class TransformerConfig(ComponentConfig):
    """Settings common to everything built from these bricks."""

    width: Width = 192
    attention_heads: Width = 8
    ffn_ratio: Width = 4
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.attention_heads:
            raise ValueError(f"'attention_heads' ({self.attention_heads}) must divide 'width' ({self.width})")
        return self


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention; logits and softmax stay float32 under autocast and with 16-bit weights.

    MaskMed §3.2, our choice.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        for layer in (self.query, self.key, self.value, self.out):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Query (b n c), key and value (b t c) to (b n c).

        `mask` (b n t): bool, True where a query may look, or float32, added to the attention logits.
        """
        with full_precision(query):
            # Keys and values of few queries need no projection: it can be moved to the queries and to what they read.
            attend = self._attend_few if query.shape[1] * self.heads <= query.shape[2] else self._attend
            attended = attend(widened(self.query, query), key, value, mask)
            return as_weights(widened(self.out, attended), self.out)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x in (query, widened(self.key, key), widened(self.value, value))
        )
        if mask is not None:  # one of another precision than the queries' would be misread
            mask = (mask.to(q.dtype) if mask.is_floating_point() else mask).unsqueeze(1)
        return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)

    def _attend_few(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """The same with the projections of keys and values moved: q (W k) = (q W) k, and a (V W) = (a V) W."""
        query = query.unflatten(-1, (self.heads, -1)) * (query.shape[-1] // self.heads) ** -0.5
        key, value = key.to(query.dtype), value.to(query.dtype)
        of_key, key_bias, of_value, value_bias = (
            x.to(query.dtype).unflatten(0, (self.heads, -1))
            for x in (self.key.weight, self.key.bias, self.value.weight, self.value.bias)
        )
        probes = torch.einsum("bnhd,hdc->bnhc", query, of_key)
        logits = torch.bmm(probes.flatten(1, 2), key.transpose(1, 2)).unflatten(1, (-1, self.heads))
        logits = logits + (query * key_bias).sum(-1, keepdim=True)
        if mask is not None:
            mask = mask.unsqueeze(2)
            logits = logits + mask if mask.is_floating_point() else logits.masked_fill(~mask, -torch.inf)
        read = torch.bmm(logits.softmax(-1).flatten(1, 2), value).unflatten(1, (-1, self.heads))
        return (torch.einsum("bnhc,hdc->bnhd", read, of_value) + value_bias).flatten(2)


def widened(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer` of `x` in float32 (float64 for float64), also where the layer's weights have 16 bits."""
    x = x if x.dtype == torch.float64 else x.float()
    narrow = {name: p.float() for name, p in layer.named_parameters() if p.dtype in NARROW}
    return functional_call(layer, narrow, x) if narrow else layer(x)


def as_weights(x: Tensor, layer: nn.Module) -> Tensor:
    """`x` in the type of the layer's weights where those have 16 bits, which the next layer wants; else as it is."""
    types = {p.dtype for p in layer.parameters() if p.dtype in NARROW}
    return x.to(types.pop()) if types else x


def feed_forward(width: int, ratio: int) -> nn.Sequential:
    """Linear → GELU → Linear with a hidden width of `ratio` x `width`."""
    return nn.Sequential(nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width))


def mlp(width: int, out: int, layers: int) -> nn.Sequential:
    """`layers` linear layers with ReLU between them; the output is not activated."""
    parts: list[nn.Module] = []
    for _ in range(layers - 1):
        parts += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(width, out))


def init_outputs(network: nn.Module, std: float) -> None:
    """Start an `mlp` so that inputs of unit variance give outputs of standard deviation `std` (He et al. 2015)."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    for layer in layers:
        gain = 2**0.5 if layer is not layers[-1] else std
        nn.init.normal_(layer.weight, std=gain / layer.in_features**0.5)
        nn.init.zeros_(layer.bias)


class QueryBlock(nn.Module):
    """Post-norm: masked cross-attention → self-attention → feed-forward, each with Add & LN (MaskMed §3.2, Fig. 2b)."""

    def __init__(self, width: int, heads: int, ffn_ratio: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.cross = MultiHeadAttention(width, heads)
        self.self_attention = MultiHeadAttention(width, heads)
        self.ffn = feed_forward(width, ffn_ratio)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, queries: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, position: Tensor | None = None
    ) -> Tensor:
        """Queries (b n c), key and value (b t c), mask as in `MultiHeadAttention`; returns (b n c).

        `position` (n c) of the queries is added where they ask and where they are keys, not to what is read of them.
        """
        placed = queries if position is None else queries + position
        queries = self.norms[0](queries + self.dropout(self.cross(placed, key, value, mask)))
        placed = queries if position is None else queries + position
        queries = self.norms[1](queries + self.dropout(self.self_attention(placed, placed, queries)))
        return self.norms[2](queries + self.dropout(self.ffn(queries)))
