"""3D UX-Net: its block against the formula written out, its size against the paper's."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from maskmed_zoo.contracts import FeatureSpec
from maskmed_zoo.decoders.unetr_up import UNETRUpConfig, UNETRUpDecoder
from maskmed_zoo.encoders.ux_net import ChannelNorm, UXBlock, UXNetConfig, UXNetEncoder
from maskmed_zoo.errors import JointError
from maskmed_zoo.heads.pointwise import PointwiseHead
from maskmed_zoo.model import count_parameters


def test_the_block_is_the_paper_s_formula():
    torch.manual_seed(0)
    block, x = UXBlock(5).double(), torch.randn(2, 5, 4, 6, 3, dtype=torch.float64)
    assert torch.allclose(block(x), x, atol=1e-4)  # the factor starts at 1e-6
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn_like(parameter))
    p = dict(block.named_parameters())
    y = F.conv3d(x, p["depthwise.weight"], p["depthwise.bias"], padding=3, groups=5)
    y = (y - y.mean(1, keepdim=True)) / (y.var(1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    y = y * p["norm.weight"].view(5, 1, 1, 1) + p["norm.bias"].view(5, 1, 1, 1)
    scaled = []
    for channel in range(5):  # every channel by itself: one to four and back
        up = slice(4 * channel, 4 * channel + 4)
        weight, bias = p["scaling.0.weight"][up].view(1, 4, 1, 1, 1), p["scaling.0.bias"][up].view(1, 4, 1, 1, 1)
        four = F.gelu(y[:, channel : channel + 1] * weight + bias)
        back = (four * p["scaling.2.weight"][channel].view(1, 4, 1, 1, 1)).sum(1, keepdim=True)
        scaled.append(back + p["scaling.2.bias"][channel])
    torch.testing.assert_close(block(x), x + p["factor"] * torch.cat(scaled, 1))


def test_channel_norm_is_a_norm_of_every_voxel():
    x = torch.randn(2, 16, 3, 4, 5) * 3 + 2
    found = ChannelNorm(16)(x)
    torch.testing.assert_close(found.mean(1), torch.zeros(2, 3, 4, 5), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.std(1, unbiased=False), torch.ones(2, 3, 4, 5), rtol=0, atol=1e-4)


def convolutions(inputs: int, outputs: int) -> int:
    """Parameters of MONAI's residual block: two convolutions without bias, and a third where the widths differ."""
    return 27 * outputs * (inputs + outputs) + (inputs * outputs if inputs != outputs else 0)


def test_the_network_has_the_size_of_the_paper():
    """53.0 million parameters (Lee et al. 2023), counted here once more layer by layer."""
    classes, widths = 14, (48, 96, 192, 384)
    with torch.device("meta"):
        encoder = UXNetEncoder(in_channels=1)
        decoder = UNETRUpDecoder(config=UNETRUpConfig(stages=1, refine=True), in_spec=encoder.out_spec)
        head = PointwiseHead(in_spec=decoder.out_spec, num_classes=classes)
    total = sum(count_parameters(part.parameters()) for part in (encoder, decoder, head))
    assert round(total / 1e6, 1) == 53.0
    expected = 343 * 48 + 48 + 2 * 48  # stem and its norm
    for width in widths:
        expected += 2 * (343 * width + width + 2 * width + 8 * width + 5 * width + width)  # blocks
        expected += 2 * width  # norm of the stage's output
        expected += 0 if width == 48 else 2 * (width // 2) + 8 * (width // 2) * width + width  # way down
        expected += convolutions(width, 2 * width)
        expected += 8 * 2 * width * width + convolutions(2 * width, width)  # way up
    expected += convolutions(1, 48) + convolutions(48, 48) + 48 * classes + classes
    assert total == expected


def test_levels():
    encoder = UXNetEncoder(config=UXNetConfig(feature_size=2, depths=(1, 1, 1, 1)), in_channels=1)
    strides = tuple((2**e,) * 3 for e in range(5))
    assert encoder.out_spec == FeatureSpec((2, 4, 8, 16, 32), strides)
    with pytest.raises(JointError, match="encoder 'ux_net' normalizes over voxels and has one left"):
        encoder(torch.zeros(1, 1, 16, 16, 16))
