"""nnU-Net's own networks, built with random weights, against ours with the same weights under our keys."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from maskmed_zoo.decoders.unet import UNetConfig, UNetDecoder
from maskmed_zoo.encoders.plain_conv import PlainConvConfig, PlainConvEncoder
from maskmed_zoo.encoders.residual import ResidualConfig, ResidualEncoder
from maskmed_zoo.errors import CheckpointError
from maskmed_zoo.heads.pointwise import PointwiseHead
from maskmed_zoo.model import SegmentationModel
from maskmed_zoo.necks.skip import SkipNeck
from maskmed_zoo.weights.load import load_weights

IN_CHANNELS, NUM_CLASSES = 2, 3
ISOTROPIC = {"channels": (4, 6, 8), "strides": (1, 2, 2), "kernels": (3, 3, 3), "blocks": (2, 1, 2), "convs": 2}
ANISOTROPIC = {
    "channels": (4, 6, 8, 8),
    "strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2), (1, 2, 1)),
    "kernels": ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 5, 3)),
    "blocks": (1, 2, 2, 1),
    "convs": 1,
}
# A level that widens without a stride: nnU-Net's skip then has a projection and no pooling.
WIDENING = {"channels": (4, 6, 8), "strides": (1, 1, 2), "kernels": (3, 3, 3), "blocks": (1, 1, 1), "convs": 2}
PLANS = {"isotropic": ISOTROPIC, "anisotropic": ANISOTROPIC, "widening": WIDENING}


def theirs(kind: str, plan: dict) -> nn.Module:
    levels = len(plan["channels"])
    cls: Any
    cls, blocks = (
        (PlainConvUNet, "n_conv_per_stage") if kind == "plain_conv" else (ResidualEncoderUNet, "n_blocks_per_stage")
    )
    network = cls(
        input_channels=IN_CHANNELS,
        n_stages=levels,
        features_per_stage=list(plan["channels"]),
        conv_op=nn.Conv3d,
        kernel_sizes=plan["kernels"],
        strides=plan["strides"],
        num_classes=NUM_CLASSES,
        conv_bias=True,
        n_conv_per_stage_decoder=plan["convs"],
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
        **{blocks: list(plan["blocks"])},
    )
    with torch.no_grad():
        for parameter in network.parameters():  # norm scales and biases too, which start at 1 and 0
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network.eval()


def ours(kind: str, plan: dict, num_classes: int = NUM_CLASSES) -> SegmentationModel:
    cls: Any
    cls, config = (PlainConvEncoder, PlainConvConfig) if kind == "plain_conv" else (ResidualEncoder, ResidualConfig)
    encoder = cls(
        in_channels=IN_CHANNELS,
        config=config(
            channels=plan["channels"], strides=plan["strides"], kernels=plan["kernels"], blocks=plan["blocks"]
        ),
    )
    decoder = UNetDecoder(
        in_spec=encoder.out_spec, config=UNetConfig(blocks=plan["convs"], kernels=plan["kernels"][:-1])
    )
    return SegmentationModel(
        encoder=encoder,
        neck=SkipNeck(in_spec=encoder.out_spec),
        decoder=decoder,
        head=PointwiseHead(in_spec=decoder.out_spec, num_classes=num_classes),
        in_channels=IN_CHANNELS,
        num_classes=num_classes,
    ).eval()


@pytest.fixture(params=[(kind, name) for kind in ("plain_conv", "residual") for name in PLANS], ids="-".join)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, SegmentationModel]:
    torch.manual_seed(0)
    kind, name = request.param
    return theirs(kind, PLANS[name]), ours(kind, PLANS[name])


def test_all_stages_and_parameter_counts_are_equal(pair):
    network, model = pair
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in network.parameters())
    load_weights(model, network.state_dict())
    image = torch.randn(2, IN_CHANNELS, 8, 16, 8)
    with torch.no_grad():
        expected, output = network(image), model(image)
    assert len(expected) == len(output.stages) == len(model.encoder.out_spec) - 1
    for reference, stage in zip(expected, output.stages, strict=True):
        torch.testing.assert_close(stage.logits, reference, rtol=1e-5, atol=1e-5)


def test_every_weight_matters(pair):
    """The comparison above could not hide a weight that was loaded to the wrong place or not at all."""
    network, model = pair
    report = load_weights(model, network.state_dict())
    assert set(report.loaded) == model.state_dict().keys()
    assert not {**report.adapted, **report.missing}
    assert not report.unexpected
    assert len(report.loaded) == len(list(network.parameters()))
    ours, theirs = ([float(p.detach().double().sum()) for p in each.parameters()] for each in (model, network))
    assert sorted(ours) == sorted(theirs)
    assert len(set(ours)) == len(ours)


def refusal(state: dict[str, torch.Tensor], model: SegmentationModel) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, state)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_checkpoint_of_another_network_is_refused_by_its_first_key():
    state = theirs("plain_conv", ISOTROPIC).state_dict()
    message = refusal(state, ours("plain_conv", ISOTROPIC, num_classes=NUM_CLASSES + 1))
    assert "'head.projections.0.weight' is missing: (3, 4, 1, 1, 1) in the file, (4, 4, 1, 1, 1) in the" in message
    assert "'encoder.levels.0.1.conv.weight' has no place" in refusal(
        state, ours("plain_conv", ISOTROPIC | {"blocks": 1})
    )
    assert "'encoder.stem.0.conv.weight' is missing" in refusal(state, ours("residual", ISOTROPIC))
    fewer = ISOTROPIC | {"channels": (4, 6), "strides": (1, 2), "kernels": (3, 3), "blocks": (2, 1)}
    assert "'decoder.upsamplers.0.weight' is missing: (8, 6, 2, 2, 2) in the" in refusal(
        state, ours("plain_conv", fewer)
    )


def test_missing_and_surplus_keys_are_named():
    model = ours("plain_conv", ISOTROPIC)
    state = theirs("plain_conv", ISOTROPIC).state_dict()
    surplus = {"encoder.stages.0.0.squeeze.weight": torch.zeros(1)} | state
    assert "squeeze.weight' has no place" in refusal(surplus, model)
    partial = {k: v for k, v in state.items() if not k.startswith("decoder.transpconvs.1.")}
    assert "'decoder.upsamplers.0.weight' is missing: not in the file" in refusal(partial, model)


def test_more_decoder_stages_than_the_model_has():
    small = ISOTROPIC | {"channels": (4, 6), "strides": (1, 2), "kernels": (3, 3), "blocks": (2, 1)}
    state = {
        k: v for k, v in theirs("plain_conv", ISOTROPIC).state_dict().items() if k.startswith("decoder.transpconvs.1")
    }
    assert "missing, 2 unexpected" in refusal(state, ours("plain_conv", small))
