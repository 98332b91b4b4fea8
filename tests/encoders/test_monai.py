"""The baselines taken apart at the joint are MONAI's networks: with its weights, our composition gives its output."""

from __future__ import annotations

import re

import pytest
import torch
from monai.networks.nets.mednext import MedNeXt, create_mednext
from monai.networks.nets.swin_unetr import SwinUNETR
from monai.networks.nets.unetr import UNETR
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from maskmed_zoo.contracts import Component, FeatureSpec
from maskmed_zoo.decoders.mednext_up import MedNeXtUpConfig, MedNeXtUpDecoder
from maskmed_zoo.decoders.unetr_up import UNETRUpConfig, UNETRUpDecoder
from maskmed_zoo.encoders.mednext import MedNeXtConfig, MedNeXtEncoder
from maskmed_zoo.encoders.swin_unetr import SwinUNETRConfig, SwinUNETREncoder
from maskmed_zoo.encoders.unetr import UNETRConfig, UNETREncoder
from maskmed_zoo.errors import JointError
from maskmed_zoo.heads.pointwise import PointwiseHead
from maskmed_zoo.layers.mednext import VARIANTS
from maskmed_zoo.model import count_parameters

CHANNELS, CLASSES = 2, 3
UNUSED = re.compile(r"cross_attn")  # built and never used by MONAI
FINEST = UNETRUpConfig(stages=1)

Keys = dict[str, str]
"""From the beginning of a parameter's name in MONAI's network to that in ours."""
SWIN_KEYS = {
    "swinViT.": "encoder.swin.",
    **{f"encoder{n}.": f"encoder.blocks.{i}." for n, i in ((1, 0), (2, 1), (3, 2), (4, 3), (10, 5))},
    **{f"decoder{n}.": f"decoder.stages.{n - 1}." for n in range(1, 6)},
    "out.conv.conv.": "head.projections.0.",
}
UNETR_KEYS = {
    "vit.": "encoder.vit.",
    **{f"encoder{n}.": f"encoder.blocks.{n - 1}." for n in range(1, 5)},
    **{f"decoder{n}.": f"decoder.stages.{n - 2}." for n in range(2, 6)},
    "out.conv.conv.": "head.projections.0.",
}
MEDNEXT_KEYS = {
    "stem.": "encoder.stem.",
    **{f"enc_stages.{n}.": f"encoder.levels.{n}." for n in range(4)},
    **{f"down_blocks.{n}.": f"encoder.downs.{n}." for n in range(4)},
    "bottleneck.": "encoder.levels.4.",
    **{f"up_blocks.{n}.": f"decoder.upsamplers.{3 - n}.block." for n in range(4)},
    **{f"dec_stages.{n}.": f"decoder.stages.{3 - n}." for n in range(4)},
    "out_0.conv_out.": "head.projections.0.",
}


def compose(encoder: Component, decoder: Component, channels: int) -> nn.ModuleDict:
    """Encoder, decoder and one projection of the finest stage, which has so many channels."""
    spec = FeatureSpec((channels,), ((1, 1, 1),))
    head = PointwiseHead(in_spec=spec, num_classes=CLASSES)
    return nn.ModuleDict({"encoder": encoder, "decoder": decoder, "head": head})


def renamed(state: dict[str, Tensor], keys: Keys) -> dict[str, Tensor]:
    found = {}
    for name, value in state.items():
        if UNUSED.search(name):
            continue
        (start,) = [key for key in keys if name.startswith(key)]
        transposed = name == "out_0.conv_out.weight"  # MedNeXt projects by a transposed convolution
        found[keys[start] + name.removeprefix(start)] = value.transpose(0, 1) if transposed else value
    return found


def check_same(ours: nn.ModuleDict, theirs: nn.Module, keys: Keys, image: Tensor) -> None:
    """Every parameter of one network is a parameter of the other, and the outputs agree."""
    ours.load_state_dict(renamed(theirs.state_dict(), keys))
    used = [p for name, p in theirs.named_parameters() if not UNUSED.search(name)]
    assert count_parameters(ours.parameters()) == count_parameters(used)
    with torch.no_grad():
        stages = ours["decoder"](ours["encoder"](image))
        found = ours["head"](stages[:1]).stages[0].logits
        expected = theirs(image)
    assert expected.std() > 1e-2
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_swin_unetr(version):
    torch.manual_seed(0)
    settings = {"feature_size": 12, "depths": (2, 1, 2, 1), "window_size": (2, 3, 4)}
    theirs = SwinUNETR(CHANNELS, CLASSES, use_v2=version == "v2", **settings)
    config = SwinUNETRConfig(version=version, **settings)
    encoder = SwinUNETREncoder(config=config, in_channels=CHANNELS)
    ours = compose(encoder, UNETRUpDecoder(config=FINEST, in_spec=encoder.out_spec), 12)
    check_same(ours, theirs, SWIN_KEYS, torch.randn(1, CHANNELS, 64, 32, 32))
    assert encoder.out_spec.channels == (12, 12, 24, 48, 96, 192)
    assert encoder.out_spec.total_stride == (32, 32, 32)


def tiny_unetr(**settings) -> UNETREncoder:
    config = UNETRConfig(**{"img_size": (32, 16, 48), "feature_size": 4, "width": 24, "attention_heads": 2} | settings)
    return UNETREncoder(config=config, in_channels=CHANNELS)


def test_unetr():
    torch.manual_seed(0)
    theirs = UNETR(CHANNELS, CLASSES, (32, 16, 48), feature_size=4, hidden_size=24, mlp_dim=96, num_heads=2)
    encoder = tiny_unetr()
    ours = compose(encoder, UNETRUpDecoder(config=FINEST, in_spec=encoder.out_spec), 4)
    check_same(ours, theirs, UNETR_KEYS, torch.randn(2, CHANNELS, 32, 16, 48))
    assert encoder.out_spec.channels == (4, 8, 16, 32, 24)


def test_unetr_resizes_its_position_table():
    """An encoder made for the other size, with the table resized by hand, says the same."""
    torch.manual_seed(0)
    name = "vit.patch_embedding.position_embeddings"
    encoder, other = tiny_unetr().double(), tiny_unetr(img_size=(16, 64, 32)).double()
    state = encoder.state_dict()
    state[name].normal_()
    grid = state[name].reshape(2, 1, 3, 24).permute(3, 0, 1, 2)[None]
    resized = F.interpolate(grid, (1, 4, 2), mode="trilinear", align_corners=False)[0].flatten(1).T[None]
    other.load_state_dict(state | {name: resized})
    image = torch.randn(1, CHANNELS, 16, 64, 32, dtype=torch.float64)
    torch.testing.assert_close(encoder(image), other(image))
    other.load_state_dict(state | {name: resized.flip(1)})
    assert not torch.allclose(encoder(image)[-1], other(image)[-1], atol=1e-2)


def test_unetr_wants_whole_patches():
    with pytest.raises(ValidationError, match="multiples of 16"):
        UNETRConfig(img_size=(40, 32, 32))
    with pytest.raises(ValidationError, match="must divide 'width'"):
        UNETRConfig(width=20, attention_heads=3)


def test_swin_unetr_wants_heads_that_divide_its_channels():
    with pytest.raises(ValidationError, match="must divide 'feature_size'"):
        SwinUNETRConfig(feature_size=10)


@pytest.mark.parametrize(("variant", "kernel"), [("S", 3), ("B", 5), ("L", 3)])
def test_mednext(variant, kernel):
    torch.manual_seed(0)
    blocks, ratios = VARIANTS[variant]
    theirs = MedNeXt(
        in_channels=CHANNELS,
        out_channels=CLASSES,
        init_filters=4,
        encoder_expansion_ratio=ratios,
        decoder_expansion_ratio=ratios[::-1],
        bottleneck_expansion_ratio=ratios[-1],
        kernel_size=kernel,
        use_residual_connection=True,
        blocks_down=blocks,
        blocks_bottleneck=blocks[-1],
        blocks_up=blocks[::-1],
    )
    encoder = MedNeXtEncoder(
        config=MedNeXtConfig(variant=variant, kernel_size=kernel, feature_size=4), in_channels=CHANNELS
    )
    decoder = MedNeXtUpDecoder(config=MedNeXtUpConfig(variant=variant, kernel_size=kernel), in_spec=encoder.out_spec)
    check_same(compose(encoder, decoder, 4), theirs, MEDNEXT_KEYS, torch.randn(1, CHANNELS, 32, 16, 48))


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("variant", ["S", "B", "M", "L"])
def test_sizes_of_mednext(variant, kernel):
    """MONAI's own table of variants, parameter by parameter, without data."""
    with torch.device("meta"):
        theirs = create_mednext(variant, in_channels=CHANNELS, out_channels=CLASSES, kernel_size=kernel)
        encoder = MedNeXtEncoder(config=MedNeXtConfig(variant=variant, kernel_size=kernel), in_channels=CHANNELS)
        decoder = MedNeXtUpDecoder(
            config=MedNeXtUpConfig(variant=variant, kernel_size=kernel), in_spec=encoder.out_spec
        )
        ours = compose(encoder, decoder, 32)
    expected = {name: value.shape for name, value in renamed(theirs.state_dict(), MEDNEXT_KEYS).items()}
    assert {name: value.shape for name, value in ours.state_dict().items()} == expected


@pytest.mark.parametrize(
    ("encoder", "patch"),
    [
        (SwinUNETREncoder(config=SwinUNETRConfig(feature_size=3, attention_heads=1), in_channels=1), 32),
        (MedNeXtEncoder(config=MedNeXtConfig(feature_size=2), in_channels=1), 16),
    ],
    ids=["swin_unetr", "mednext"],
)
def test_a_single_voxel_left_is_refused_in_words(encoder, patch):
    with pytest.raises(JointError, match=r"encoder '\w+' normalizes over voxels and has one left") as caught:
        encoder(torch.zeros(1, 1, patch, patch, patch))
    assert "\n" not in str(caught.value)
    assert len(encoder(torch.zeros(1, 1, patch, patch, 2 * patch))) == len(encoder.out_spec)
