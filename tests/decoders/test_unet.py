"""The U-Net decoder: nnU-Net's by default and with residual blocks, of any width, grown to a number of parameters."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import ResidualUNet
from pydantic import ValidationError
from torch import nn

import maskmed_zoo as zoo
from maskmed_zoo.contracts import FeatureSpec
from maskmed_zoo.decoders.unet import UNetConfig, UNetDecoder
from maskmed_zoo.errors import JointError
from maskmed_zoo.recipe.loader import dump_recipe

SMALL = FeatureSpec((4, 6, 8), ((1, 1, 1), (1, 2, 2), (2, 4, 2)))
PATCH = (6, 12, 10)  # 3 x 3 x 5 at the lowest level
NNUNET = FeatureSpec(
    (32, 64, 128, 256, 320, 320), ((1, 1, 1), (1, 2, 2), (2, 4, 4), (4, 8, 8), (8, 16, 16), (8, 32, 32))
)
NNUNET_PARAMETERS = 16_751_072
HEAD = 3_851_637  # about those of a decoupled head


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def on_meta(spec: FeatureSpec, **settings) -> UNetDecoder:
    with torch.device("meta"):
        return UNetDecoder(in_spec=spec, config=UNetConfig(**settings))


def levels_of(spec: FeatureSpec, patch: tuple[int, int, int], batch: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = spec.sizes(patch)
    return [torch.randn(batch, c, *s, generator=generator) for c, s in zip(spec.channels, sizes, strict=True)]


# --- the default: weights and outputs as in the first release


@pytest.mark.parametrize(
    ("settings", "keys", "parameters", "numbers"),
    [
        ({}, "555edc177354fd4b", 4570, [0.0370773673, 22.472586, 120.738061, 611.9815, 228.4532]),
        (
            {"blocks": 1, "kernels": ((1, 3, 3), (3, 3, 5))},
            "99539e3da09a9d01",
            3856,
            [0.1310200095, 30.290410, 158.487793, 605.6613, 227.6491],
        ),
    ],
    ids=["default", "one block"],
)
def test_seeded_weights_and_outputs_stay(settings, keys, parameters, numbers):
    """Names, the next random number, and sums of magnitudes of two weights and both outputs."""
    torch.manual_seed(0)
    decoder = UNetDecoder(in_spec=SMALL, config=UNetConfig(**settings))
    draw = torch.rand(1)
    assert hashlib.sha256("\n".join(decoder.state_dict()).encode()).hexdigest()[:16] == keys
    assert count(decoder) == parameters
    weights: tuple[Any, ...] = decoder.upsamplers[0].weight, decoder.stages[1][0].conv.weight
    found = [x.double().abs().sum().item() for x in (draw, *weights, *decoder(levels_of(SMALL, (4, 8, 12))))]
    assert found == pytest.approx(numbers, rel=1e-5)


# --- residual blocks and depth


def test_residual_stages_are_those_of_nnunet():
    torch.manual_seed(0)
    strides: Any = ((1, 1, 1), (1, 2, 2), (2, 2, 1))
    kernels: Any = ((1, 3, 3), (3, 3, 5), (3, 3, 3))
    network = ResidualUNet(
        input_channels=1,
        n_stages=3,
        features_per_stage=list(SMALL.channels),
        conv_op=nn.Conv3d,
        kernel_sizes=kernels,
        strides=strides,
        n_blocks_per_stage=1,
        num_classes=2,
        n_conv_per_stage_decoder=(2, 1),  # from the lowest stage up
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )
    theirs = network.decoder.eval()
    theirs.seg_layers = nn.ModuleList(nn.Identity() for _ in range(2))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    ours = UNetDecoder(in_spec=SMALL, config=UNetConfig(residual=True, blocks=(1, 2), kernels=kernels[:-1]))
    state = {}
    for key, value in theirs.state_dict().items():
        if key.startswith("encoder.") or ".all_modules." in key:
            continue
        kind, stage, rest = key.split(".", 2)
        name = {"transpconvs": "upsamplers"}.get(kind, kind)
        state[f"{name}.{1 - int(stage)}.{rest.removeprefix('blocks.').replace('skip.0.', 'skip.1.')}"] = value
    ours.load_state_dict(state)
    levels = levels_of(SMALL, PATCH, batch=2)
    with torch.no_grad():
        expected, found = theirs(levels), ours(levels)
    assert len(found) == len(expected) == 2
    for actual, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("residual", [False, True])
def test_depth_is_one_number_or_one_each(residual):
    def depths(stages: Any) -> list[int]:
        return [len(stage) for stage in stages]

    per_stage = UNetDecoder(in_spec=SMALL, config=UNetConfig(blocks=(3, 1), residual=residual))
    assert depths(per_stage.stages) == [3, 1]
    same = UNetDecoder(in_spec=SMALL, config=UNetConfig(blocks=3, residual=residual))
    assert depths(same.stages) == [3, 3]
    with pytest.raises(JointError, match="has 3 'blocks' for 2 stages; give one per stage"):
        UNetDecoder(in_spec=SMALL, config=UNetConfig(blocks=(1, 1, 1)))


# --- width


@pytest.mark.parametrize(
    ("width", "channels"), [(1.0, (4, 6)), (2.0, (8, 12)), (1.4, (6, 8)), (0.5, (2, 3)), (0.01, (1, 1))]
)
def test_width_scales_the_stages_and_leaves_the_skips(width, channels):
    torch.manual_seed(0)
    decoder = UNetDecoder(in_spec=SMALL, config=UNetConfig(width=width))
    assert decoder.out_spec == FeatureSpec(channels, SMALL.strides[:-1])
    assert [u.in_channels for u in decoder.upsamplers] == [channels[1], 8]
    assert [stage[0].conv.in_channels for stage in decoder.stages] == [channels[0] + 4, channels[1] + 6]
    outputs = decoder(levels_of(SMALL, PATCH, batch=2))
    sizes = decoder.out_spec.sizes(PATCH)
    assert [x.shape for x in outputs] == [(2, c, *s) for c, s in zip(channels, sizes, strict=True)]


# --- a number of parameters


@pytest.mark.parametrize(
    "settings",
    [{}, {"residual": True, "blocks": (1, 2, 1, 2, 3)}, {"kernels": ((1, 3, 3),) * 5, "blocks": 1}],
    ids=["plain", "residual", "flat"],
)
@pytest.mark.parametrize("target", [1_000_000, HEAD, NNUNET_PARAMETERS + HEAD, 100_000_000])
def test_targets_are_met_within_a_hundredth(target, settings):
    decoder = on_meta(NNUNET, parameters=target, **settings)
    assert count(decoder) == pytest.approx(target, rel=0.01)
    ratios = [c / e for c, e in zip(decoder.out_spec.channels, NNUNET.channels, strict=False)]
    assert max(ratios) - min(ratios) < 1 / 32  # one width for all stages, up to rounding
    default = count(on_meta(NNUNET, **settings))
    assert (ratios[-1] > 1) == (target > default)


def test_the_default_s_own_number_gives_the_default_with_the_same_weights():
    torch.manual_seed(0)
    default = UNetDecoder(in_spec=SMALL)
    torch.manual_seed(0)
    grown = UNetDecoder(in_spec=SMALL, config=UNetConfig(parameters=count(default)))
    assert all(torch.equal(a, b) for a, b in zip(default.parameters(), grown.parameters(), strict=True))
    assert count(on_meta(NNUNET)) == NNUNET_PARAMETERS
    assert on_meta(NNUNET, parameters=NNUNET_PARAMETERS).out_spec == on_meta(NNUNET).out_spec


def test_no_width_comes_nearer():
    """Where channels are few, one more is a large step: against the best of many widths."""
    counts = sorted({count(on_meta(SMALL, width=step / 24)) for step in range(1, 60)})
    assert len(counts) == 24  # one channel each, then up to 10 and 15
    for target in (counts[0], counts[0] + 1, *range(700, counts[-1], 1900)):
        found = count(on_meta(SMALL, parameters=target))
        assert abs(found - target) == min(abs(c - target) for c in counts)


def test_too_few_parameters_are_refused_in_one_line():
    smallest = count(on_meta(SMALL, width=1e-6))
    assert on_meta(SMALL, parameters=smallest).out_spec.channels == (1, 1)
    with pytest.raises(JointError) as caught:
        on_meta(SMALL, parameters=smallest - 1)
    assert f"as few as {smallest - 1} parameters: with one channel per stage it has {smallest}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_that_contradict_each_other():
    with pytest.raises(ValidationError, match="'width' follows from 'parameters'; give only one of them"):
        UNetConfig(width=2, parameters=1000)
    with pytest.raises(ValidationError, match="'kernels' must be odd"):
        UNetConfig(kernels=((3, 3, 3), (2, 3, 3)))
    refused: list[dict[str, Any]] = [{"width": 0}, {"width": float("inf")}, {"parameters": 0}, {"parameters": 10**30}]
    for wrong in refused:
        with pytest.raises(ValidationError):
            UNetConfig(**wrong)


def test_a_recipe_says_the_number_alone(tmp_path):
    recipe = zoo.load_recipe("pointwise_hippocampus_cpu", {"model.decoder.parameters": 300_000})
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(dump_recipe(recipe), encoding="utf-8")
    assert zoo.load_recipe(resolved) == recipe  # every default written out, `width` among them
    with torch.device("meta"):
        model = zoo.create(recipe)
    assert count(model.decoder) == pytest.approx(300_000, rel=0.01)
    size = [2 * s for s in model.encoder.out_spec.total_stride]
    output = model(torch.empty(1, model.in_channels, *size, device="meta"))
    assert output.stages[0].spatial.shape == (1, model.num_classes, *size)
