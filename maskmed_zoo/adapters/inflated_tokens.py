"""timm's vision transformer and Swin transformer made 3-D, with their weights.

Both keep timm's layers and run them on a volume's tokens. So that a volume constant along z gives what the 2-D network
gives of its slice, prefix tokens (class, registers) stand once per layer of tokens along z, or their share of an
attention would shrink; the position table is repeated along z, and Swin's position bias as well. A position along z is
learnt beside them, from zero. Swin's windows get an extent along z, the largest up to `z_kernel` that divides the map.
"""

from __future__ import annotations

from itertools import product
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskmed_zoo.adapters.inflate import Plan, inflate_conv
from maskmed_zoo.settings import Size3

Z_TABLE = 16
"""Entries of the vision transformer's table of positions along z, resized to the map."""
BLOCKED = -100.0
"""Added to the logits between regions that a shift has brought together (timm's and the authors' number)."""


class InflatedViT(nn.Module):
    """timm's `VisionTransformer`; the maps after `taps` of its blocks."""

    def __init__(self, vit: Any, plan: Plan, taps: tuple[int, ...]) -> None:
        super().__init__()
        self.taps, self.grid = taps, tuple(vit.patch_embed.grid_size)
        self.prefix, self.is_prefix_placed = int(vit.num_prefix_tokens), not vit.no_embed_class
        self.project = inflate_conv(vit.patch_embed.proj, plan)
        self.embed_norm, self.norm_pre = vit.patch_embed.norm, vit.norm_pre
        self.position = vit.pos_embed
        self.position_z = nn.Parameter(torch.zeros(1, vit.embed_dim, Z_TABLE))
        self.prefix_tokens = nn.ParameterList(t for t in (vit.cls_token, vit.reg_token) if t is not None)
        self.blocks = vit.blocks[: taps[-1] + 1]

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image (b c d h w) to one (b c' d' h' w') per tapped block."""
        x = self.embed_norm(self.project(image).movedim(1, -1))
        b, d, h, w, _ = x.shape
        placed = self.prefix if self.is_prefix_placed else 0
        x = x + self._table(self.position[:, placed:], (h, w)).unsqueeze(1)
        along = F.interpolate(self.position_z, d, mode="linear", align_corners=False)
        x = (x + along.mT.view(1, d, 1, 1, -1)).flatten(1, 3)
        if self.prefix:
            prefix = torch.cat(list(self.prefix_tokens), 1)
            prefix = prefix + self.position[:, :placed] if placed else prefix
            x = torch.cat([prefix.expand(b, -1, -1).repeat(1, d, 1), x], 1)
        x, maps = self.norm_pre(x), list[Tensor]()
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.taps:
                maps.append(x[:, self.prefix * d :].mT.unflatten(2, (d, h, w)))
        return maps

    def _table(self, table: Tensor, size: tuple[int, int]) -> Tensor:
        """(1 n c) of the pretrained grid to (1 h w c), bicubic as timm's."""
        if self.grid != size:
            square = table.unflatten(1, self.grid).permute(0, 3, 1, 2)
            return F.interpolate(square.float(), size, mode="bicubic", antialias=True).to(table).permute(0, 2, 3, 1)
        return table.unflatten(1, self.grid)


class InflatedSwin(nn.Module):
    """timm's `SwinTransformer`; the maps after its stages."""

    def __init__(self, swin: Any, plan: Plan, z_factors: tuple[int, ...]) -> None:
        super().__init__()
        self.project, self.embed_norm = inflate_conv(swin.patch_embed.proj, plan), swin.patch_embed.norm
        self.z_factors = z_factors
        self.merges = nn.ModuleList(stage.downsample for stage in swin.layers)
        self.stages = nn.ModuleList(
            nn.ModuleList(SwinBlock3d(block, plan.z_kernel) for block in stage.blocks) for stage in swin.layers
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image (b c d h w) to one (b c_e d_e h_e w_e) per stage."""
        x, maps = self.embed_norm(self.project(image).movedim(1, -1)), list[Tensor]()
        for z, merge, blocks in zip(self.z_factors, self.merges, self.stages, strict=True):
            if not isinstance(merge, nn.Identity):
                slices = merge(x.flatten(0, 1)).unflatten(0, x.shape[:2])
                x = slices.unflatten(1, (-1, z)).mean(2)  # along z neighbours are averaged, not concatenated
            for block in blocks:  # pyright: ignore[reportGeneralTypeIssues]
                x = block(x)
            maps.append(x.movedim(-1, 1))
        return maps


class SwinBlock3d(nn.Module):
    """Attention in (shifted) windows and an MLP; the layers are timm's."""

    index: Tensor

    def __init__(self, block: Any, z_kernel: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp
        self.drop_path1, self.drop_path2 = block.drop_path1, block.drop_path2
        self.qkv, self.proj = block.attn.qkv, block.attn.proj
        self.heads, self.z_kernel = int(block.attn.num_heads), z_kernel
        self.window, self.is_shifted = tuple(block.window_size), any(block.target_shift_size)
        self.table = block.attn.relative_position_bias_table
        self.register_buffer("index", block.attn.relative_position_index, persistent=False)
        self.table_z = nn.Parameter(torch.zeros(2 * z_kernel - 1, self.heads))

    def forward(self, x: Tensor) -> Tensor:
        """(b d h w c), same out."""
        x = x + self.drop_path1(self._attend(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor) -> Tensor:
        size: Size3 = (x.shape[1], x.shape[2], x.shape[3])
        window: Size3 = (max(n for n in range(1, self.z_kernel + 1) if size[0] % n == 0), *self.window)
        shift = tuple(n // 2 for n in window) if self.is_shifted else (0, 0, 0)
        x = x.roll([-s for s in shift], (1, 2, 3))
        counts = tuple(ceil(n / w) for n, w in zip(size, window, strict=True))
        after = [c * w - n for c, w, n in zip(counts, window, size, strict=True)]
        x = F.pad(x, (0, 0, 0, after[2], 0, after[1], 0, after[0]))
        padded: Size3 = (x.shape[1], x.shape[2], x.shape[3])
        tokens = _windows(x, counts, window)
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self._bias(window[0]).to(q.dtype)
        if self.is_shifted:
            regions = _windows(_regions(padded, window, shift, x.device), counts, window)
            apart = (regions != regions.mT).to(q.dtype) * BLOCKED
            bias = (bias + apart.unsqueeze(1)).repeat(len(x), 1, 1, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)
        x = _volume(self.proj(mixed), counts, window)
        return x[:, : size[0], : size[1], : size[2]].roll(shift, (1, 2, 3))

    def _bias(self, depth: int) -> Tensor:
        """(1 heads t t) for windows of so many tokens along z."""
        area = self.window[0] * self.window[1]
        plane = self.table[self.index.flatten()].view(1, area, 1, area, self.heads)
        steps = torch.arange(depth, device=self.table.device)
        along = self.table_z[steps[:, None] - steps + self.z_kernel - 1].view(depth, 1, depth, 1, self.heads)
        return (plane + along).permute(4, 0, 1, 2, 3).reshape(1, self.heads, depth * area, depth * area)


def _windows(x: Tensor, counts: tuple[int, ...], window: Size3) -> Tensor:
    """(b d h w c) to (b x windows, tokens, c)."""
    x = x.unflatten(3, (counts[2], window[2])).unflatten(2, (counts[1], window[1])).unflatten(1, (counts[0], window[0]))
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4, 6).flatten(0, 3)


def _volume(tokens: Tensor, counts: tuple[int, ...], window: Size3) -> Tensor:
    """The way back of `_windows`."""
    x = tokens.unflatten(1, window).unflatten(0, (-1, *counts)).permute(0, 1, 4, 2, 5, 3, 6, 7)
    return x.flatten(5, 6).flatten(3, 4).flatten(1, 2)


def _regions(size: Size3, window: Size3, shift: tuple[int, ...], device: torch.device) -> Tensor:
    """(1 d h w 1): numbers of the parts that a cyclic shift has put beside each other."""
    regions = torch.zeros(1, *size, 1, device=device)
    cuts = [((0, n - w), (n - w, n - s), (n - s, n)) for n, w, s in zip(size, window, shift, strict=True)]
    for number, ((z0, z1), (y0, y1), (x0, x1)) in enumerate(product(*cuts)):
        regions[:, z0:z1, y0:y1, x0:x1] = number
    return regions
