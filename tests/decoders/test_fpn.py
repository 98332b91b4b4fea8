"""The feature pyramid against Hugging Face's MaskFormer, on volumes one voxel thick along each axis in turn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.maskformer.modeling_maskformer import MaskFormerFPNModel

import maskmed_zoo as zoo
from maskmed_zoo.contracts import FeatureSpec
from maskmed_zoo.decoders.fpn import FPNConfig, FPNDecoder
from maskmed_zoo.layers.conv import ConvNormAct

WIDTH = 32  # that of Hugging Face's 32 groups: with one channel each, group norm is instance norm
SPEC = FeatureSpec((4, 6, 8), ((1, 1, 1), (1, 2, 2), (2, 4, 4)))
ODD = [(7, 11, 9), (7, 6, 4), (3, 2, 3)]  # no size is a multiple of the next


def perturbed(module: nn.Module) -> Any:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return module.eval()


def copy(ours: ConvNormAct, conv: nn.Conv2d, norm: nn.GroupNorm, axis: int) -> None:
    """Weights of a flat layer into the central slice of ours: the others meet padding only."""
    with torch.no_grad():
        ours.conv.weight.select(axis + 2, ours.conv.weight.shape[axis + 2] // 2).copy_(conv.weight)
        ours.norm.weight.copy_(norm.weight)
        ours.norm.bias.copy_(norm.bias)


@pytest.mark.parametrize("axis", [0, 1, 2], ids="zyx")
def test_flat_volumes_are_the_images_of_maskformer(axis, monkeypatch):
    torch.manual_seed(0)
    theirs = perturbed(MaskFormerFPNModel(8, [4, 6], feature_size=WIDTH))
    ours = perturbed(FPNDecoder(in_spec=SPEC, config=FPNConfig(channels=WIDTH)))
    copy(ours.lowest, theirs.stem.layers[0], theirs.stem.layers[1], axis)
    for index, layer in enumerate(reversed(theirs.layers)):
        copy(ours.laterals[index], layer.proj[0], layer.proj[1], axis)
        copy(ours.stages[index], layer.block.layers[0], layer.block.layers[1], axis)
    for block in (ours.lowest, *ours.stages):
        block.activation = nn.ReLU()  # the two deviations: activation, and interpolation
    interpolate, modes = F.interpolate, []

    def bilinear(x, size, mode, **options):
        modes.append(mode)
        return interpolate(x, size, mode="bilinear" if mode == "nearest" else mode, **options)

    images = [torch.randn(2, c, *s) for c, s in zip(SPEC.channels, [(13, 10), (7, 5), (3, 3)], strict=True)]
    with torch.no_grad():
        found = ours([x.unsqueeze(axis + 2) for x in images])
        monkeypatch.setattr(F, "interpolate", bilinear)
        expected = [theirs.stem(images[-1]), *theirs(images)][::-1]
    assert modes == ["nearest", "nearest"]
    assert len(found) == len(expected) == 3
    for actual, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(actual.squeeze(axis + 2), reference, rtol=1e-5, atol=1e-5)


def test_any_sizes_and_strides_and_one_level():
    spec = FeatureSpec((4, 6, 8), ((1, 1, 1), (1, 2, 2), (2, 5, 3)))
    decoder = FPNDecoder(in_spec=spec, config=FPNConfig(channels=5))
    assert decoder.out_spec == FeatureSpec((5, 5, 5), spec.strides)
    outputs = decoder([torch.randn(2, c, *s) for c, s in zip(spec.channels, ODD, strict=True)])
    assert [x.shape for x in outputs] == [(2, 5, *s) for s in ODD]
    alone = FPNDecoder(in_spec=FeatureSpec((4,), ((1, 1, 1),)))
    assert [x.shape for x in alone([torch.randn(1, 4, 3, 2, 5)])] == [(1, 64, 3, 2, 5)]


def test_a_stage_sees_its_level_and_those_below():
    torch.manual_seed(0)
    decoder = perturbed(FPNDecoder(in_spec=SPEC, config=FPNConfig(channels=5)))
    for stage in range(3):
        levels = [torch.randn(1, c, *s, requires_grad=True) for c, s in zip(SPEC.channels, ODD, strict=True)]
        decoder(levels)[stage].square().sum().backward()
        assert [x.grad is not None and bool(x.grad.any()) for x in levels] == [level >= stage for level in range(3)]


def test_a_model_has_one_stage_per_level():
    with torch.device("meta"):
        model = zoo.create("pointwise_hippocampus_cpu", model__decoder__kind="fpn", model__decoder__channels=12)
    assert model.decoder.out_spec.strides == model.encoder.out_spec.strides
    size = [2 * s for s in model.encoder.out_spec.total_stride]
    output = model(torch.empty(1, model.in_channels, *size, device="meta"))
    assert [s.spatial.shape[1:] for s in output.stages] == [
        (model.num_classes, *s) for s in model.encoder.out_spec.sizes(size)
    ]
