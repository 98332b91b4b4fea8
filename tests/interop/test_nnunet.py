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
from maskmed_zoo.interop.nnunet import import_state_dict
from maskmed_zoo.model import SegmentationModel
from maskmed_zoo.necks.skip import SkipNeck

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
    model.load_state_dict(import_state_dict(network.state_dict(), model))
    image = torch.randn(2, IN_CHANNELS, 8, 16, 8)
    with torch.no_grad():
        expected, output = network(image), model(image)
    assert len(expected) == len(output.stages) == len(model.encoder.out_spec) - 1
    for reference, stage in zip(expected, output.stages, strict=True):
        torch.testing.assert_close(stage.logits, reference, rtol=1e-5, atol=1e-5)


def test_every_weight_matters(pair):
    """The comparison above could not hide a weight that was imported to the wrong place or not at all."""
    network, model = pair
    imported = import_state_dict(network.state_dict(), model)
    assert imported.keys() == model.state_dict().keys()
    assert len({tensor.data_ptr() for tensor in imported.values()}) == len(imported)
    assert len(imported) == len(list(network.parameters()))


def refusal(state: dict[str, torch.Tensor], model: SegmentationModel) -> str:
    with pytest.raises(CheckpointError) as caught:
        import_state_dict(state, model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_checkpoint_of_another_network_is_refused_by_its_first_key():
    state = theirs("plain_conv", ISOTROPIC).state_dict()
    message = refusal(state, ours("plain_conv", ISOTROPIC, num_classes=NUM_CLASSES + 1))
    assert "'decoder.seg_layers.0.weight'" in message
    assert "(3, 6, 1, 1, 1)" in message
    assert "'head.projections.1.weight'" in message
    assert "(4, 6, 1, 1, 1)" in message
    assert "'encoder.stages.0.0.convs.1.conv.weight'" in refusal(state, ours("plain_conv", ISOTROPIC | {"blocks": 1}))
    assert "'encoder.stages.0.0.convs.0.conv.weight' has no counterpart" in refusal(state, ours("residual", ISOTROPIC))
    assert "'encoder.stages.2.0.convs.0.conv.weight' has no" in refusal(
        state,
        ours("plain_conv", ISOTROPIC | {"channels": (4, 6), "strides": (1, 2), "kernels": (3, 3), "blocks": (2, 1)}),
    )


def test_missing_and_surplus_keys_are_named():
    model = ours("plain_conv", ISOTROPIC)
    state = theirs("plain_conv", ISOTROPIC).state_dict()
    surplus = {"encoder.stages.0.0.squeeze.weight": torch.zeros(1)} | state
    assert "'encoder.stages.0.0.squeeze.weight'" in refusal(surplus, model)
    partial = {k: v for k, v in state.items() if not k.startswith("decoder.transpconvs.1.")}
    assert "'decoder.upsamplers.0.weight' is not in" in refusal(partial, model)


def test_more_decoder_stages_than_the_model_has():
    small = ISOTROPIC | {"channels": (4, 6), "strides": (1, 2), "kernels": (3, 3), "blocks": (2, 1)}
    state = {
        k: v for k, v in theirs("plain_conv", ISOTROPIC).state_dict().items() if k.startswith("decoder.transpconvs.1")
    }
    assert "'decoder.transpconvs.1.weight' has no counterpart" in refusal(state, ours("plain_conv", small))
