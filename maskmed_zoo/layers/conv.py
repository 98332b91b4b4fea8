"""Convolution bricks of nnU-Net's networks: convolution → instance norm → leaky ReLU, plain and residual.

Source: nnU-Net v2 (`PlainConvUNet`, `ResidualEncoderUNet`): convolutions with bias, affine instance norm with eps
1e-5, slope 0.01, He initialisation. Compared in the tests with dynamic-network-architectures' numbers of parameters
and, through a key map, its outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskmed_zoo.contracts import average_pool, is_eager_cpu
from maskmed_zoo.settings import Size3

SLOPE = 0.01


def conv3d(
    in_channels: int, out_channels: int, kernel: Size3, stride: Size3 = (1, 1, 1), *, bias: bool = True
) -> nn.Conv3d:
    """Convolution that keeps the size up to its stride: padding is half the (odd) kernel."""
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    return nn.Conv3d(in_channels, out_channels, kernel, stride, padding, bias=bias)


class ConvNormAct(nn.Module):
    """(b c d h w) → convolution → instance norm → leaky ReLU (left out with `activation=False`)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Size3,
        stride: Size3 = (1, 1, 1),
        *,
        bias: bool = True,
        activation: bool = True,
    ) -> None:
        super().__init__()
        self.conv = conv3d(in_channels, out_channels, kernel, stride, bias=bias)
        self.norm = InstanceNorm(out_channels)
        self.activation = LeakyReLU() if activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(x)))


class InstanceNorm(nn.InstanceNorm3d):
    """Affine instance norm (eps 1e-5) that also takes maps of a single voxel, whose normalized value is 0.

    On the CPU it is computed as a group norm of one channel per group, the same numbers in a third of the time.
    With the channels last PyTorch's kernel for that takes the variance as a difference of squares, so means are taken
    off first.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-5, affine=True)

    def forward(self, input: Tensor) -> Tensor:  # the base class's name
        if input.shape[2:].numel() == 1:
            return torch.zeros_like(input) * self.weight.view(-1, 1, 1, 1) + self.bias.view(-1, 1, 1, 1)
        if is_eager_cpu(input):
            if not input.is_contiguous():
                input = input - input.detach().mean((2, 3, 4), keepdim=True)
            return F.group_norm(input, self.num_features, self.weight, self.bias, self.eps)
        return super().forward(input)


class LeakyReLU(nn.LeakyReLU):
    """Leaky ReLU with slope 0.01 of what nobody else reads: on the CPU it overwrites its input.

    On a GPU the norm before it gives a view, of which overwriting costs the backward pass a copy more. A backward hook
    on this module, or on the one before, makes its input a view, which PyTorch refuses to have overwritten.
    """

    def __init__(self) -> None:
        super().__init__(SLOPE)

    def forward(self, input: Tensor) -> Tensor:  # the base class's name
        is_own = is_eager_cpu(input) and not input._is_view()  # pyright: ignore[reportPrivateUsage]  # nothing public
        return F.leaky_relu(input, self.negative_slope, inplace=is_own)


class AveragePool(nn.AvgPool3d):
    """Average pooling by the stride, of maps in any precision."""

    def __init__(self, stride: Size3) -> None:
        super().__init__(stride, stride)
        self.factors = stride

    def forward(self, input: Tensor) -> Tensor:  # the base class's name
        return average_pool(input, self.factors, self.factors)


class ConvStack(nn.Sequential):
    """`count` ConvNormAct blocks; the first one has the stride."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Size3, stride: Size3, count: int) -> None:
        first = ConvNormAct(in_channels, out_channels, kernel, stride)
        super().__init__(first, *(ConvNormAct(out_channels, out_channels, kernel) for _ in range(count - 1)))


class ResidualBlock(nn.Module):
    """nnU-Net's BasicBlockD: two convolutions, skip by average pooling and 1x1x1 projection where shapes change."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Size3, stride: Size3 = (1, 1, 1)) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(in_channels, out_channels, kernel, stride)
        self.conv2 = ConvNormAct(out_channels, out_channels, kernel, activation=False)
        self.activation = LeakyReLU()
        pool: nn.Module = AveragePool(stride) if max(stride) > 1 else nn.Identity()
        project: nn.Module = nn.Identity()
        if in_channels != out_channels:
            project = ConvNormAct(in_channels, out_channels, (1, 1, 1), bias=False, activation=False)
        self.skip = nn.Sequential(pool, project)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.conv2(self.conv1(x)) + self.skip(x))


def init_he(module: nn.Module) -> None:
    """Kaiming-normal weights for leaky ReLU and zero biases in every convolution below `module` (nnU-Net's own)."""
    for child in module.modules():
        if isinstance(child, nn.Conv3d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(child.weight, a=1e-2)
            if child.bias is not None:
                nn.init.zeros_(child.bias)


def per_level(value: Sequence[int] | int, levels: int) -> list[int]:
    """One number for all levels, or one for each."""
    return [value] * levels if isinstance(value, int) else list(value)
