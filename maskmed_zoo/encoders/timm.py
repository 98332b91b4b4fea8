"""A 2-D backbone of timm as a 3-D encoder: inflated with its weights, or run slice by slice (2.5-D).

`inflate` turns ResNet, ConvNeXt (v1, v2), EfficientNet (v1, v2), vision and Swin transformers into 3-D networks which
give, on a volume constant along z, what the 2-D network gives on the slice (see `adapters.inflate` and
`adapters.inflated_tokens`). `slices` runs any `features_only` network of timm on every slice, with its neighbours as
further channels if `slab` is larger than 1; what lies above and below is then for neck and decoder to see.

Levels are those of timm; of several at one resolution the last. A vision transformer has one resolution: as in UNETR
(Hatamizadeh et al. 2022), the maps after a quarter, half and three quarters of its blocks are brought to 1/8, 1/4 and
1/2 of its patch by transposed convolutions. A residual block on the image is the level at full resolution.
timm is imported where a backbone is built: that takes seconds, and settings are checked without it.
"""

from __future__ import annotations

from math import log2
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from maskmed_zoo.adapters.inflate import Plan, inflate, strided_layers
from maskmed_zoo.adapters.inflated_tokens import InflatedSwin, InflatedViT
from maskmed_zoo.adapters.probe import trace
from maskmed_zoo.adapters.timm_backbone import Backbone, build_2d
from maskmed_zoo.contracts import ComponentConfig, Encoder, PlannedLevels
from maskmed_zoo.errors import JointError
from maskmed_zoo.layers.conv import InstanceNorm
from maskmed_zoo.layers.full_resolution import WithFullResolution
from maskmed_zoo.settings import Side, Size3, Width

PROBE = 64
"""Voxels along each axis of the image in which strided layers and levels are found."""


class TimmConfig(ComponentConfig):
    """Settings of `timm`."""

    kind: Literal["timm"] = "timm"
    backbone: str = Field(default="resnet18", description="a name of timm.list_models()")
    weights: str | None = Field(
        default=None,
        description="of the 2-D network: a file (.safetensors, or a state dict of torch), 'timm' for those that timm "
        "downloads; read whenever the network is built",
    )
    mode: Literal["inflate", "slices"] = Field(default="inflate", description="slices: 2.5-D, any network of timm")
    inflation: Literal["center", "mean"] = Field(
        default="center", description="where the 2-D kernel goes: into the middle, or spread along z"
    )
    z_kernel: Side = Field(
        default=3, description="largest extent of kernels along z, odd; of Swin's windows, in tokens"
    )
    z_factors: tuple[Side, ...] | None = Field(
        default=None,
        description="per level of the backbone, how much coarser along z than the one above; null: as along y, x",
    )
    slab: Side = Field(default=1, description="slices: how many neighbouring slices are channels, odd")
    stem_channels: Width = Field(default=16, description="of the level at full resolution")

    @model_validator(mode="after")
    def _odd(self) -> TimmConfig:
        for name in ("z_kernel", "slab"):
            if getattr(self, name) % 2 == 0:
                raise ValueError(f"'{name}' must be odd, got {getattr(self, name)}")
        return self

    def fitted(self, levels: PlannedLevels) -> Self:
        """Along z as coarse as planned, where that is less than along y and x; slices have no z to make coarse."""
        z_factors = tuple(z for z, _, _ in levels.strides[1:])
        is_thick = any(z < max(y, x) for z, y, x in levels.strides[1:])
        return self.model_copy(update={"z_factors": z_factors}) if is_thick and self.mode == "inflate" else self


class TimmEncoder(Encoder):
    """A timm backbone with a level at full resolution before its own."""

    Config = TimmConfig

    def __init__(self, *, in_channels: int, config: TimmConfig | None = None) -> None:
        super().__init__()
        config = config or TimmConfig()
        if config.mode == "slices":
            self.body = _Slices(build_2d(config.backbone, in_channels * config.slab, config.weights, True), config.slab)
        else:
            self.body = _inflated(build_2d(config.backbone, in_channels, config.weights, False), config)
        run = trace(self.body, in_channels, (PROBE, PROBE, PROBE))
        self.full = WithFullResolution(in_channels, run.spec(run.outputs), config.stem_channels)
        self.out_spec = self.full.out_spec

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image (b c d h w) to one (b c_e d_e h_e w_e) per level."""
        return self.full(image, self.body(image))


class _Slices(nn.Module):
    """A 2-D network on every slice, or slab of neighbouring slices; the outermost slices are repeated."""

    def __init__(self, found: Backbone, slab: int) -> None:
        super().__init__()
        self.network, self.slab, self.is_channels_last = found.module, slab, found.is_channels_last
        self.kept = [i for i, r in enumerate(found.reductions) if r not in found.reductions[i + 1 :]]

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image (b c d h w) to one (b c_e d h_e w_e) per level."""
        reach = self.slab // 2
        x = F.pad(image, (0, 0, 0, 0, reach, reach), mode="replicate") if reach else image
        slabs = x.unfold(2, self.slab, 1).permute(0, 2, 1, 5, 3, 4).flatten(2, 3)
        maps = self.network(slabs.flatten(0, 1))
        maps = [maps[i].movedim(-1, 1) if self.is_channels_last else maps[i] for i in self.kept]
        return [x.unflatten(0, slabs.shape[:2]).transpose(1, 2) for x in maps]


class _ViTPyramid(nn.Module):
    """The maps of a vision transformer, three of them brought to finer resolutions."""

    def __init__(self, vit: InflatedViT, width: int, patch: Size3) -> None:
        super().__init__()
        self.vit, self.ups = vit, nn.ModuleList()
        for doublings in (3, 2, 1, 0):
            layers, size, channels = list[nn.Module](), list(patch), width
            for _ in range(doublings):
                step = [2 if s % 2 == 0 else 1 for s in size]
                size, before, channels = [s // n for s, n in zip(size, step, strict=True)], channels, channels // 2
                up = nn.ConvTranspose3d(before, channels, (step[0], step[1], step[2]), (step[0], step[1], step[2]))
                layers += [up, InstanceNorm(channels), nn.GELU()]
            self.ups.append(nn.Sequential(*layers))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image (b c d h w) to four levels."""
        return [up(x) for up, x in zip(self.ups, self.vit(image), strict=True)]


def _inflated(found: Backbone, config: TimmConfig) -> nn.Module:
    """The 3-D form of a 2-D network; its strides along z are checked here."""
    is_vit = found.family == "vision_transformer"
    reductions = found.reductions[-1:] if is_vit else found.reductions
    if is_vit and (reductions[0] < 8 or not log2(reductions[0]).is_integer()):
        raise JointError(
            f"encoder 'timm': the patches of '{config.backbone}' have {reductions[0]} pixels, no power of two from 8 "
            f"on; take another backbone, or 'mode: slices'"
        )
    factors = tuple(r // before for r, before in zip(reductions, (1, *reductions), strict=False))
    z_factors = factors if config.z_factors is None else config.z_factors
    if len(z_factors) != len(factors) or any(f % z for f, z in zip(factors, z_factors, strict=True)):
        raise JointError(
            f"encoder 'timm': z_factors {list(z_factors)} must be {len(factors)} numbers for '{config.backbone}', each "
            f"a divisor of its level's factor along y and x, {list(factors)}"
        )
    module: Any = found.module
    plan = Plan(config.inflation, config.z_kernel, _z_strides(found, reductions, z_factors))
    if is_vit:
        depth = len(module.blocks)
        taps = tuple(depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4))
        patch = (z_factors[0], reductions[0], reductions[0])
        return _ViTPyramid(InflatedViT(module, plan, taps), found.channels[-1], patch)
    return InflatedSwin(module, plan, z_factors) if found.family == "swin_transformer" else inflate(module, plan)


def _z_strides(found: Backbone, reductions: tuple[int, ...], z_factors: tuple[int, ...]) -> dict[nn.Module, int]:
    """The factor along z of the level that each strided layer leads to, told by the size of what it gives."""
    sizes = {PROBE // r: z for r, z in zip(reductions, z_factors, strict=True)}
    result: dict[nn.Module, int] = {}

    def note(module: nn.Module, _args: Any, output: Tensor) -> None:
        result[module] = sizes.get(output.shape[-1], 1)

    handles = [m.register_forward_hook(note) for m in strided_layers(found.module)]
    weight = next(found.module.parameters())
    with torch.no_grad():
        found.module.eval()(weight.new_zeros(1, found.in_channels, PROBE, PROBE))
    found.module.train()
    for handle in handles:
        handle.remove()
    return result
