"""The encoder cut out of MONAI's networks: its levels are theirs, and nothing idle is left in it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.networks import nets
from pydantic import ValidationError

from maskmed_zoo.encoders.monai import NETWORKS, MONAIConfig, MONAIEncoder
from maskmed_zoo.errors import JointError

# Arguments, and channels and strides along x of the levels.
CASES: dict[str, tuple[dict[str, Any], tuple[int, ...], tuple[int, ...]]] = {
    "AttentionUnet": ({"channels": [4, 8, 16], "strides": [2, 2]}, (4, 8, 16), (1, 2, 4)),
    "BasicUNet": ({"features": [4, 4, 8, 16, 24, 4]}, (4, 4, 8, 16, 24), (1, 2, 4, 8, 16)),
    "DynUNet": (
        {"kernel_size": [3] * 3, "strides": [1, 2, [1, 2, 2]], "upsample_kernel_size": [2, [1, 2, 2]],
         "filters": [4, 8, 16]},
        (4, 8, 16), (1, 2, 4),
    ),
    "FlexibleUNet": ({"backbone": "resnet10"}, (16, 64, 64, 128, 256, 512), (1, 2, 4, 8, 16, 32)),
    "MedNeXt": ({"init_filters": 4}, (4, 8, 16, 32, 64), (1, 2, 4, 8, 16)),
    "SegResNet": ({"init_filters": 8}, (8, 16, 32, 64), (1, 2, 4, 8)),
    "SegResNetDS": ({"init_filters": 8}, (8, 16, 32, 64), (1, 2, 4, 8)),
    "SwinUNETR": (
        {"feature_size": 12, "depths": [1, 1, 1, 1], "window_size": 3}, (12, 12, 24, 48, 96, 192), (1, 2, 4, 8, 16, 32),
    ),
    "UNet": ({"channels": [4, 8, 16], "strides": [2, 2]}, (16, 4, 24), (1, 2, 4)),
    "VNet": ({}, (16, 32, 64, 128, 256), (1, 2, 4, 8, 16)),
}  # fmt: skip


def test_every_network_has_a_case():
    assert set(CASES) == set(NETWORKS)
    assert len(CASES) >= 6


@pytest.mark.parametrize("network", CASES)
def test_levels(network):
    arguments, channels, strides = CASES[network]
    torch.manual_seed(0)
    encoder = MONAIEncoder(in_channels=2, config=MONAIConfig(network=network, arguments=arguments))
    assert encoder.out_spec.channels == channels
    assert tuple(stride[2] for stride in encoder.out_spec.strides) == strides
    levels = encoder(torch.randn(1, 2, 32, 32, 64))
    for x, c, size in zip(levels, channels, encoder.out_spec.sizes((32, 32, 64)), strict=True):
        assert x.shape == (1, c, *size)
    sum(x.square().mean() for x in levels).backward()
    assert not [name for name, p in encoder.named_parameters() if p.grad is None]


def test_nothing_of_the_decoder_is_left():
    encoder = MONAIEncoder(in_channels=1, config=MONAIConfig(network="SegResNet"))
    assert not [name for name in encoder.state_dict() if "up_" in name or "final" in name]


def test_levels_of_seg_res_net_are_those_of_its_own_encode():
    torch.manual_seed(0)
    encoder = MONAIEncoder(in_channels=1, config=MONAIConfig(network="SegResNet")).eval()
    whole = nets.SegResNet(in_channels=1).eval()
    state = {k.removeprefix("network."): v for k, v in encoder.state_dict().items() if k.startswith("network.")}
    assert not whole.load_state_dict(state, strict=False).unexpected_keys
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        _, expected = whole.encode(image)
        for level, own in zip(encoder(image), expected, strict=True):
            torch.testing.assert_close(level, own, rtol=0, atol=0)


def test_named_levels():
    config = MONAIConfig(network="SegResNet", levels=("down_layers.2", "convInit"))
    encoder = MONAIEncoder(in_channels=1, config=config)
    assert encoder.out_spec.strides == ((1, 1, 1), (4, 4, 4))
    assert not [name for name in encoder.state_dict() if "down_layers.3" in name]


def test_what_does_not_fit_is_told_in_one_line():
    with pytest.raises(ValidationError, match="did you mean 'SegResNet'"):
        MONAIConfig(network="SegResnet")
    for settings, told in [
        ({"arguments": {"init_filter": 4}}, "did you mean 'init_filters'"),
        ({"arguments": {"out_channels": 4}}, "takes no such argument here"),
        (
            {"network": "FlexibleUNet", "arguments": {"backbone": "efficientnet-b0", "pretrained": True}},
            "arguments.pretrained: FlexibleUNet takes no such argument here",
        ),
        ({"network": "UNet", "arguments": {}}, "UNet with arguments {} cannot be built"),
        ({"levels": ["down_layer.2"]}, "did you mean 'down_layers.2'"),
        ({"probe_patch": 20}, "does not take an image (1, 1, 20, 20, 20)"),
    ]:
        with pytest.raises(JointError) as caught:
            MONAIEncoder(in_channels=1, config=MONAIConfig(**settings))
        assert told in str(caught.value)
        assert "\n" not in str(caught.value)
