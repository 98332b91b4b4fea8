"""The FSAD neck: both orders of sampling and projecting agree, only the lowest levels change."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from maskmed_zoo.contracts import FeatureSpec
from maskmed_zoo.errors import JointError
from maskmed_zoo.layers.deformable import DeformableBlock, initial_offsets
from maskmed_zoo.necks.fsad import FSADConfig, FSADNeck

ISOTROPIC = FeatureSpec((4, 6, 8), ((1, 1, 1), (2, 2, 2), (4, 4, 4)))
ANISOTROPIC = FeatureSpec((4, 6, 8), ((1, 1, 1), (1, 2, 2), (2, 4, 2)))
SPECS = {"isotropic": ISOTROPIC, "anisotropic": ANISOTROPIC}
PATCH = (4, 12, 8)


def neck_of(spec: FeatureSpec, *, dtype: torch.dtype = torch.float32, **settings: Any) -> FSADNeck:
    """A neck whose zero layers are no longer zero."""
    torch.manual_seed(0)
    config = FSADConfig(**{"width": 12, "attention_heads": 3, "points": 2, "query_levels": 2, **settings})
    neck = FSADNeck(in_spec=spec, config=config, spacing=(3.0, 1.0, 1.0)).to(dtype)
    with torch.no_grad():
        for parameter in neck.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return neck


def levels_of(spec: FeatureSpec, dtype: torch.dtype = torch.float32, batch: int = 2) -> list[torch.Tensor]:
    torch.manual_seed(1)
    sizes = spec.sizes(PATCH)
    return [torch.randn(batch, c, *size, dtype=dtype) for c, size in zip(spec.channels, sizes, strict=True)]


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_sampling_and_projecting_commute(spec, dtype, bound, monkeypatch):
    """Every level projected first, every level sampled first, and every second level: one output, one gradient."""
    results = []
    for late in (lambda x: False, lambda x: True, lambda x: x.shape[-1] == spec.channels[0]):
        neck = neck_of(spec, dtype=dtype, layers=2)
        calls = []
        monkeypatch.setattr(
            DeformableBlock, "_late", lambda self, x, q, late=late, calls=calls: calls.append(late(x)) or late(x)
        )
        levels = [x.requires_grad_() for x in levels_of(spec, dtype)]
        outputs = neck(levels)
        loss: Any = sum((x * torch.linspace(-1, 1, x.numel(), dtype=dtype).view_as(x)).sum() for x in outputs)
        gradients = torch.autograd.grad(loss, [*levels, *neck.parameters()])
        results.append([*(x.detach() for x in outputs), *gradients])
        assert len(calls) == 2 * len(spec)
        results[-1].append(torch.tensor(sum(calls)))
    assert [int(result.pop()) for result in results] == [0, 6, 2]
    for result in results[1:]:
        for actual, expected in zip(result, results[0], strict=True):
            torch.testing.assert_close(actual, expected, rtol=bound, atol=bound * float(expected.abs().max() + 1))


def test_the_full_resolution_level_is_sampled_first_where_that_is_cheaper():
    layer: Any = neck_of(ISOTROPIC).layers[0]
    assert layer._late(torch.empty(1, 4096, 4), queries=10)
    assert not layer._late(torch.empty(1, 10, 4), queries=4096)
    assert not layer._late(torch.empty(1, 100, 12), queries=100)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("query_levels", [1, 2, 3])
def test_only_query_levels_change(spec, query_levels):
    levels = levels_of(spec)
    outputs = neck_of(spec, query_levels=query_levels)(levels)
    assert len(outputs) == len(levels)
    for index, (before, after) in enumerate(zip(levels, outputs, strict=True)):
        if index < len(levels) - query_levels:
            assert after is before
        else:
            assert after.shape == before.shape
            assert not torch.allclose(after, before)


def test_every_level_reaches_the_queries_with_full_resolution_among_them():
    levels = [x.requires_grad_() for x in levels_of(ANISOTROPIC)]
    lowest = neck_of(ANISOTROPIC, query_levels=1)(levels)[-1]
    lowest.square().sum().backward()
    assert all(x.grad is not None and x.grad.abs().max() > 0 for x in levels)


def test_samples_of_a_batch_do_not_mix():
    neck, levels = neck_of(ANISOTROPIC), levels_of(ANISOTROPIC, torch.float64)
    neck = neck.double()
    together = neck(levels)
    for sample in range(2):
        alone = neck([x[sample : sample + 1] for x in levels])
        for a, b in zip(alone, together, strict=True):
            torch.testing.assert_close(a, b[sample : sample + 1])


def test_spacing_enters_through_the_position():
    levels = levels_of(ANISOTROPIC)
    neck = neck_of(ANISOTROPIC)
    first = neck(levels)[-1]
    neck.spacing = (1.0, 1.0, 1.0)
    assert not torch.allclose(neck(levels)[-1], first)


def test_initial_offsets_are_directions_times_one_to_k():
    offsets = initial_offsets(8, 4)
    assert offsets.shape == (8, 4, 3)
    assert torch.equal(offsets[:, 0].abs().amax(-1), torch.ones(8))
    assert len({tuple(d.tolist()) for d in offsets[:, 0]}) == 8
    for k in range(4):
        assert torch.equal(offsets[:, k], offsets[:, 0] * (k + 1))
    assert torch.equal(initial_offsets(27, 1)[26], initial_offsets(27, 1)[0])


def test_a_fresh_layer_samples_at_its_initial_offsets_with_equal_weights():
    """One offset unit is one voxel of the sampled level."""
    neck = FSADNeck(in_spec=ANISOTROPIC, config=FSADConfig(width=12, attention_heads=3, points=2, query_levels=1))
    layer: Any = neck.layers[0]
    sizes = ANISOTROPIC.sizes(PATCH)
    centres = torch.rand(5, 3)
    locations, weights = layer.sampling(torch.randn(1, 5, 12), centres, list(sizes))
    extent = torch.tensor(sizes, dtype=torch.float32)[:, None]
    voxels = (locations - centres[None, :, None, None, None]) * extent
    expected = initial_offsets(3, 2)[None, None, :, None].expand_as(voxels)
    torch.testing.assert_close(voxels, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 6))


def test_misfits_are_refused():
    with pytest.raises(JointError, match="asks for 4 query levels, the encoder gives 3; set query_levels to at most 3"):
        FSADNeck(in_spec=ISOTROPIC, config=FSADConfig(query_levels=4))
    with pytest.raises(ValueError, match=r"'attention_heads' \(5\) must divide 'width' \(12\)"):
        FSADConfig(width=12, attention_heads=5)
