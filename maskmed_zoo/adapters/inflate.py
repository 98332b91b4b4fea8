"""2-D convolutional networks of timm made 3-D, layer by layer, with their weights (after I3D, arXiv 1705.07750).

A kernel gets an axis z: `center` puts the 2-D kernel into its middle and zeros around it, `mean` spreads it evenly.
With either, a volume that is constant along z gives what the 2-D network gives of its slice; with `center` up to the
border, with `mean` where the zeros that pad the volume along z are out of reach. Norms, poolings, depthwise kernels and
squeeze-and-excitation follow; layers that work on channels alone stay. Names and order of the parameters are those of
timm. A layer this file knows no 3-D form of is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from maskmed_zoo.contracts import average_pool
from maskmed_zoo.errors import JointError

How = Literal["center", "mean"]
POINTWISE = (nn.Linear, nn.LayerNorm, nn.GroupNorm, nn.Identity, nn.Dropout)
"""Layers that ask no number of axes, beside activations."""
MIXING = ("Sequential", "Mlp", "ConvMlp", "GlobalResponseNormMlp", "DropPath")
"""Of those with layers inside, the ones that ask none either."""


@dataclass(frozen=True)
class Plan:
    """How kernels are inflated, their largest extent along z, and the stride along z of each strided layer."""

    how: How
    z_kernel: int
    z_strides: Mapping[nn.Module, int]


def inflate(module: nn.Module, plan: Plan) -> nn.Module:
    """`module` with every 2-D layer in it replaced; raises `JointError` for one that has no 3-D form here."""
    rule = _rules().get(type(module).__name__)
    if rule is not None:
        return rule(module, plan)
    if not _is_known(module):
        raise JointError(
            f"timm's layer '{type(module).__name__}' has no 3-D form here; take another backbone, or 'mode: slices', "
            f"which takes any 2-D network"
        )
    for name, child in list(module.named_children()):
        setattr(module, name, inflate(child, plan))
    return module


def inflate_kernel(weight: Tensor, depth: int, how: How) -> Tensor:
    """(o i h w) to (o i depth h w)."""
    if how == "mean":
        return (weight / depth).unsqueeze(2).expand(-1, -1, depth, -1, -1).contiguous()
    kernel = weight.new_zeros(*weight.shape[:2], depth, *weight.shape[2:])
    kernel[:, :, depth // 2] = weight
    return kernel


def inflate_conv(conv: nn.Conv2d, plan: Plan) -> nn.Conv3d:
    """Kernel, stride, padding and weights; a kernel as large as its stride is cut into patches along z as well."""
    kernel, stride, padding, dilation = (
        (int(v[0]), int(v[1])) for v in (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    )
    z = plan.z_strides.get(conv, 1)
    is_patches = kernel == stride and max(kernel) > 1
    depth = z if is_patches else min(plan.z_kernel, *kernel)
    result = nn.Conv3d(
        conv.in_channels,
        conv.out_channels,
        (depth, *kernel),
        (z, *stride),
        (0 if is_patches else depth // 2, *padding),
        (1, *dilation),
        conv.groups,
        bias=conv.bias is not None,
        device="meta",
    )
    result.weight = nn.Parameter(inflate_kernel(conv.weight.detach(), depth, plan.how))
    if conv.bias is not None:
        result.bias = nn.Parameter(conv.bias.detach())
    return result


class BatchNormAct3d(nn.BatchNorm3d):
    """timm's batch norm with its activation, for (b c d h w)."""

    def __init__(self, norm: Any) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        _share(norm, self)
        self.drop, self.act = getattr(norm, "drop", nn.Identity()), getattr(norm, "act", nn.Identity())

    def forward(self, input: Tensor) -> Tensor:  # the base class's name
        return self.act(self.drop(super().forward(input)))


class ChannelNorm3d(nn.LayerNorm):
    """timm's `LayerNorm2d`, over the channels of (b c d h w)."""

    def __init__(self, norm: Any) -> None:
        super().__init__(norm.normalized_shape, norm.eps)
        _share(norm, self)

    def forward(self, input: Tensor) -> Tensor:  # the base class's name
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class SqueezeExcite3d(nn.Module):
    """A gate per channel from the mean over the volume; of timm's module it keeps the layers and their names."""

    def __init__(self, block: nn.Module, plan: Plan) -> None:
        super().__init__()
        if getattr(block, "add_maxpool", False):
            raise JointError("timm's squeeze-and-excitation with max pooling has no 3-D form here; use 'mode: slices'")
        for name, child in block.named_children():
            self.add_module(name, inflate(child, plan))

    def forward(self, x: Tensor) -> Tensor:
        """(b c d h w), same out."""
        gate = x.mean((2, 3, 4), keepdim=True)
        for child in self.children():
            gate = child(gate)
        return x * gate


class ConvNeXtBlock3d(nn.Module):
    """Depthwise convolution, norm, MLP over channels, scale, shortcut; the layers are timm's."""

    conv_dw: nn.Module
    norm: nn.Module
    mlp: nn.Module
    drop_path: nn.Module
    shortcut: nn.Module

    def __init__(self, block: Any, plan: Plan) -> None:
        super().__init__()
        self.is_conv_mlp = block.use_conv_mlp
        self.gamma = block.gamma
        for name, child in block.named_children():
            self.add_module(name, inflate(child, plan))

    def forward(self, x: Tensor) -> Tensor:
        """(b c d h w), same out, or strided."""
        y = self.conv_dw(x)
        y = self.mlp(self.norm(y)) if self.is_conv_mlp else self.mlp(self.norm(y.movedim(1, -1))).movedim(-1, 1)
        if self.gamma is not None:
            y = y * self.gamma.view(-1, 1, 1, 1)
        return self.drop_path(y) + self.shortcut(x)


class ResponseNorm3d(nn.Module):
    """ConvNeXt v2's response norm over a volume; x is (b d h w c), or (b c d h w) after convolutions."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.is_last = norm.channel_dim == -1

    def forward(self, x: Tensor) -> Tensor:
        """Same shape out."""
        axes, channels = ((1, 2, 3), -1) if self.is_last else ((2, 3, 4), 1)
        size = x.norm(p=2, dim=axes, keepdim=True)
        share = size / (size.mean(channels, keepdim=True) + self.eps)
        weight, bias = (v if self.is_last else v.view(-1, 1, 1, 1) for v in (self.weight, self.bias))
        return x + bias + weight * x * share


class Pool3d(nn.Module):
    """Max or average pooling with a stride of its own along z; 1 does not pool along z."""

    def __init__(self, pool: Any, z: int) -> None:
        super().__init__()
        kernel, stride, padding = (_pair(v) for v in (pool.kernel_size, pool.stride, pool.padding))
        depth = kernel[0] if z > 1 else 1
        self.sizes = ((depth, *kernel), (z, *stride), (padding[0] if z > 1 else 0, *padding))
        self.is_max, self.ceil = isinstance(pool, nn.MaxPool2d), bool(pool.ceil_mode)
        self.counts_padding = bool(getattr(pool, "count_include_pad", False))

    def forward(self, x: Tensor) -> Tensor:
        """(b c d h w) to the strided map."""
        if self.is_max:
            return F.max_pool3d(x, *self.sizes, ceil_mode=self.ceil)
        kernel, stride, padding = self.sizes
        return average_pool(
            x, kernel, stride, padding=padding, ceil_mode=self.ceil, count_include_pad=self.counts_padding
        )


def strided_layers(module: nn.Module) -> list[nn.Module]:
    """Convolutions and poolings that make a map coarser."""
    kinds = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
    return [m for m in module.modules() if isinstance(m, kinds) and max(_pair(m.stride)) > 1]


def _rules() -> dict[str, Callable[[Any, Plan], nn.Module]]:
    return {
        "Conv2d": inflate_conv,
        "BatchNorm2d": lambda norm, plan: BatchNormAct3d(norm),
        "BatchNormAct2d": lambda norm, plan: BatchNormAct3d(norm),
        "LayerNorm2d": lambda norm, plan: ChannelNorm3d(norm),
        "GlobalResponseNorm": lambda norm, plan: ResponseNorm3d(norm),
        "SEModule": SqueezeExcite3d,
        "SqueezeExcite": SqueezeExcite3d,
        "ConvNeXtBlock": ConvNeXtBlock3d,
        "MaxPool2d": lambda pool, plan: Pool3d(pool, plan.z_strides.get(pool, 1)),
        "AvgPool2d": lambda pool, plan: Pool3d(pool, plan.z_strides.get(pool, 1)),
    }


def _is_known(module: nn.Module) -> bool:
    """A layer on channels alone, or a block of timm's models, whose layers are looked at one by one."""
    kind, home = type(module).__name__, type(module).__module__
    is_block = any(module.children()) and not list(module.parameters(recurse=False)) and "timm.layers" not in home
    is_activation = home in ("torch.nn.modules.activation", "timm.layers.activations")
    is_pointwise = isinstance(module, POINTWISE) and "2d" not in kind
    return is_block or is_activation or is_pointwise or kind in MIXING


def _share(source: nn.Module, target: nn.Module) -> None:
    """The same parameters and buffers in another module."""
    for name, x in (*source.named_parameters(recurse=False), *source.named_buffers(recurse=False)):
        setattr(target, name, x)


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))
