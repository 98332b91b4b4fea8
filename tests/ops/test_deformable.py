"""The deformable-attention op: own voxels, a float64 loop, Hugging Face's 2-D form, gradients, borders, precision.

Every test runs with the fastest backend there is and with plain PyTorch.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from math import floor, inf, nan, prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.mask2former.modeling_mask2former import multi_scale_deformable_attention

from maskmed_zoo.contracts import FeatureSpec
from maskmed_zoo.layers.position import voxel_centers
from maskmed_zoo.necks.fsad import FSADConfig, FSADNeck
from maskmed_zoo.ops import deformable
from maskmed_zoo.ops.deformable import FLOP_FORMULAS, deformable_attention

SHAPES = [(4, 6, 8), (2, 3, 4)]  # z, y, x: no two axes alike, the second level at half the resolution


@pytest.fixture(autouse=True, params=["auto", "torch"])
def backend(request, monkeypatch):
    chosen = partial(deformable.deformable_attention, backend=request.param)
    monkeypatch.setitem(globals(), "deformable_attention", chosen)
    return request.param


def inputs(shapes, *, batch=2, queries=5, heads=2, width=3, points=2, dtype=torch.float64, seed=0, spread=1.4):
    """Random values, locations (some outside) and softmax weights."""
    generator = torch.Generator().manual_seed(seed)
    sample = (batch, queries, heads, len(shapes), points)
    values = torch.randn(batch, sum(prod(s) for s in shapes), heads, width, generator=generator, dtype=dtype)
    locations = (torch.rand(*sample, 3, generator=generator, dtype=dtype) - 0.5) * spread + 0.5
    weights = torch.randn(*sample, generator=generator, dtype=dtype).flatten(3).softmax(-1).view(sample)
    return values, shapes, locations, weights


def naive(values: Tensor, shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """The definition, one voxel at a time in float64."""
    values, locations, weights = values.double(), locations.double(), weights.double()
    batch, queries, heads, levels, points, _ = locations.shape
    starts = [sum(prod(s) for s in shapes[:level]) for level in range(levels)]
    result = torch.zeros(batch, queries, heads, values.shape[-1], dtype=torch.float64)
    for b, q, h, level, p in product(*map(range, (batch, queries, heads, levels, points))):
        depth, height, width = shapes[level]
        position = [float(u) * n - 0.5 for u, n in zip(locations[b, q, h, level, p], shapes[level], strict=True)]
        for corner in product((0, 1), repeat=3):
            z, y, x = (floor(c) + step for c, step in zip(position, corner, strict=True))
            if 0 <= z < depth and 0 <= y < height and 0 <= x < width:
                share = prod(1 - abs(c - v) for c, v in zip(position, (z, y, x), strict=True))
                voxel = values[b, starts[level] + (z * height + y) * width + x, h]
                result[b, q, h] += weights[b, q, h, level, p] * share * voxel
    return result


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm())


def read(values: Tensor, shape, locations: Tensor) -> Tensor:
    """(q c): one head, one point, weight one, from one level of (s c)."""
    at = locations.view(1, -1, 1, 1, 1, 3)
    return deformable_attention(values[None, :, None], [shape], at, torch.ones(at.shape[:-1]))[0, :, 0]


# --- every query reads its own voxel (the first test: transposed axes or mixed conventions fail it)


@pytest.mark.parametrize("shape", [*SHAPES, (1, 5, 2), (3, 1, 7)])
def test_a_voxels_own_centre_reads_that_voxel(shape):
    values = torch.arange(prod(shape), dtype=torch.float32)[:, None]
    torch.testing.assert_close(read(values, shape, voxel_centers(shape, values.device)), values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("coarse", [(2, 3, 4), (4, 3, 8), (4, 2, 2), (1, 1, 1)])
def test_a_coarse_voxel_reads_its_own_place_in_a_finer_level(coarse):
    fine = (4, 6, 8)
    coordinates = voxel_centers(fine, torch.device("cpu")).flatten(0, 2)
    centres = voxel_centers(coarse, torch.device("cpu")).flatten(0, 2)
    torch.testing.assert_close(read(coordinates, fine, centres), centres)


def test_a_fine_voxel_reads_its_own_place_in_a_coarser_level():
    fine, coarse = (8, 12, 16), (4, 6, 8)
    coordinates = voxel_centers(coarse, torch.device("cpu")).flatten(0, 2)
    inside = voxel_centers(fine, torch.device("cpu"))[1:-1, 1:-1, 1:-1].reshape(-1, 3)  # the rim blends with zeros
    torch.testing.assert_close(read(coordinates, coarse, inside), inside)


@pytest.mark.parametrize("sampled", range(3))
def test_fsad_with_zero_offsets_reads_its_own_voxel_of_every_level(sampled, monkeypatch):
    width = 6
    spec = FeatureSpec((width,) * 3, ((1, 1, 1), (1, 2, 2), (2, 4, 4)))
    sizes = spec.sizes((4, 12, 16))
    neck = FSADNeck(in_spec=spec, config=FSADConfig(width=width, points=1, attention_heads=1, query_levels=2))
    layer: Any = neck.layers[0]
    with torch.no_grad():
        for linear in [*neck.inputs, *layer.values]:
            linear.weight.copy_(torch.eye(width))
            if linear.bias is not None:
                linear.bias.zero_()
        layer.offsets[-1].bias.zero_()
        layer.weights[-1].bias.copy_(torch.tensor([100.0 if level == sampled else 0.0 for level in range(3)]))
    attended = []
    original = layer._attend
    monkeypatch.setattr(layer, "_attend", lambda *a: attended.append(original(*a)) or attended[-1])
    # Three channels hold a voxel's own coordinates, the other three a constant.
    levels = []
    for size in sizes:
        centres = voxel_centers(size, torch.device("cpu")).permute(3, 0, 1, 2)[None]
        levels.append(torch.cat([centres, torch.ones_like(centres)], 1))
    neck(levels)
    assert len(attended) == 1
    start = 0
    for level, size in enumerate(sizes[1:], 1):
        centres = levels[level][0, :3].flatten(1).T
        found = attended[0][0, start : start + len(centres), 0]
        start += len(centres)
        inside = torch.ones(size, dtype=torch.bool)
        if sampled > level:  # towards a coarser level the rim blends with the zeros outside
            inside = torch.zeros(size, dtype=torch.bool)
            inside[1:-1, 1:-1, 1:-1] = True
        assert inside.sum() >= 8
        torch.testing.assert_close(found[inside.flatten(), :3], centres[inside.flatten()])
        torch.testing.assert_close(found[inside.flatten(), 3:], torch.ones(int(inside.sum()), 3))
    assert start == attended[0].shape[1]


# --- against other implementations


@settings(max_examples=25, deadline=None)
@given(
    shapes=st.lists(st.tuples(*[st.integers(1, 5)] * 3), min_size=1, max_size=3),
    sizes=st.fixed_dictionaries(
        {
            "batch": st.integers(1, 2),
            "queries": st.integers(1, 3),
            "heads": st.integers(1, 2),
            "width": st.integers(1, 4),
            "points": st.integers(1, 2),
            "seed": st.integers(0, 1000),
        }
    ),
)
def test_equals_the_loop(shapes, sizes):
    arguments = inputs(shapes, **sizes)
    expected = naive(*arguments)
    assert (deformable_attention(*arguments) - expected).norm() <= 1e-12 * max(float(expected.norm()), 1e-3)


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 5e-6), (torch.bfloat16, 5e-3), (torch.float16, 1e-3)]
)
@pytest.mark.parametrize("width", [3, 16, 24, 40])
def test_precision_by_type_of_the_values(dtype, bound, width):
    values, shapes, locations, weights = inputs(SHAPES, queries=20, width=width)
    precise = torch.promote_types(dtype, torch.float32)
    values, locations, weights = values.to(dtype), locations.to(precise), weights.to(precise)
    output = deformable_attention(values, shapes, locations, weights)
    assert output.dtype == dtype
    assert relative(output, naive(values, shapes, locations, weights)) <= bound


def test_at_depth_one_it_is_the_2d_operation_of_hugging_face():
    values, shapes, locations, weights = inputs([(1, 6, 5), (1, 3, 4)], queries=7, points=3)
    locations[..., 0] = 0.5
    expected = multi_scale_deformable_attention(values, [s[1:] for s in shapes], locations[..., 1:].flip(-1), weights)
    torch.testing.assert_close(deformable_attention(values, shapes, locations, weights).flatten(2), expected)


# --- gradients


def test_gradients_by_finite_differences_in_and_across_the_border():
    torch.manual_seed(0)
    values, shapes, locations, weights = inputs(SHAPES, queries=4, heads=1, width=2)
    size = torch.tensor(shapes, dtype=torch.float64)[:, None]
    # From two voxels outside to two voxels beyond the far side, kept away from the kinks at voxel centres.
    voxel = (torch.rand(locations.shape, dtype=torch.float64) * (size + 3) - 2).floor()
    locations = (voxel + torch.rand(locations.shape, dtype=torch.float64) * 0.6 + 0.2 + 0.5) / size
    position = locations * size - 0.5
    outside = ((position < -1) | (position > size)).any(-1)
    border = ((position < 0) | (position > size - 1)).any(-1) & ~outside
    assert min(outside.sum(), border.sum(), (~outside & ~border).sum()) >= 2
    assert torch.autograd.gradcheck(
        lambda v, x, w: deformable_attention(v, shapes, x, w),
        [t.clone().requires_grad_() for t in (values, locations, weights)],
    )


# --- borders, emptiness, non-finite locations


def test_outside_is_zero_voxel_by_voxel():
    values = torch.ones(2 * 3 * 4, 1)
    outside = torch.tensor([[-0.5, 0.5, 0.5], [0.5, 1.5, 0.5], [0.5, 0.5, 2.0]])
    assert (read(values, (2, 3, 4), outside) == 0).all()
    faces = torch.tensor([[0.0, 0.5, 0.5], [0.5, 1.0, 0.5], [0.5, 0.0, 0.0]])
    torch.testing.assert_close(read(values, (2, 3, 4), faces)[:, 0], torch.tensor([0.5, 0.5, 0.25]))


@pytest.mark.parametrize("bad", [nan, inf, -inf, 1e30, -1e30, 3e38, 1e9])
@pytest.mark.parametrize("axis", range(3))
def test_a_location_that_is_not_finite_or_far_away_adds_exactly_nothing(bad, axis):
    values, shapes, locations, weights = inputs(SHAPES, dtype=torch.float32)
    locations[0, 1, 1, 0, 1] = 0.4  # inside, so that it would count
    without = weights.clone()
    without[0, 1, 1, 0, 1] = 0
    broken = locations.clone()
    broken[0, 1, 1, 0, 1, axis] = bad
    leaves = [t.clone().requires_grad_() for t in (values, broken, weights)]
    output = deformable_attention(leaves[0], shapes, *leaves[1:])
    assert torch.equal(output, deformable_attention(leaves[0], shapes, locations, without))
    assert not torch.equal(output, deformable_attention(leaves[0], shapes, locations, weights))
    with torch.no_grad():
        found = deformable_attention(values, shapes, broken, weights)
        assert torch.equal(found, deformable_attention(values, shapes, locations, without))
    output.sum().backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)
    assert (leaves[1].grad[0, 1, 1, 0, 1] == 0).all()


def test_everything_not_finite_gives_zero():
    values, shapes, locations, weights = inputs(SHAPES)
    assert (deformable_attention(values, shapes, torch.full_like(locations, nan), weights) == 0).all()


@pytest.mark.parametrize("empty", [(0, 3, 4), (2, 0, 4), (0, 0, 0)])
def test_an_empty_level_adds_nothing(empty):
    values, shapes, locations, weights = inputs([(2, 3, 4), empty])
    output = deformable_attention(values, shapes, locations, weights)
    assert torch.equal(output, deformable_attention(values, shapes[:1], locations[:, :, :, :1], weights[:, :, :, :1]))
    assert (output != 0).any()


def test_no_queries_and_no_values():
    values, shapes, locations, weights = inputs(SHAPES)
    output = deformable_attention(values, shapes, locations[:, :0], weights[:, :0])
    assert output.shape == (2, 0, 2, 3)
    output = deformable_attention(values[:, :0], [(0, 1, 1), (0, 1, 1)], locations, weights)
    assert output.shape == (2, 5, 2, 3)
    assert (output == 0).all()


# --- precision under autocast


def test_autocast_does_not_lower_the_precision_of_locations():
    values, shapes, locations, weights = inputs(SHAPES, dtype=torch.float32, queries=20)
    plain = deformable_attention(values, shapes, locations, weights)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(deformable_attention(values, shapes, locations, weights), plain)
    # What it guards against: coordinates rounded to bfloat16.
    assert relative(deformable_attention(values, shapes, locations.bfloat16().float(), weights), plain.double()) > 5e-3


def test_the_necks_own_locations_stay_float32_under_autocast():
    spec = FeatureSpec((4, 4), ((1, 1, 1), (2, 2, 2)))
    neck = FSADNeck(in_spec=spec, config=FSADConfig(width=12, attention_heads=2, query_levels=1))
    layer: Any = neck.layers[0]
    with torch.no_grad():
        layer.offsets[-1].weight.normal_()
        layer.weights[-1].weight.normal_()
    sizes = spec.sizes((4, 4, 4))
    queries, centres = torch.randn(1, 8, 12), voxel_centers(sizes[1], torch.device("cpu")).flatten(0, 2)
    plain = layer.sampling(queries, centres, sizes)
    with torch.autocast("cpu", torch.bfloat16):
        cast = layer.sampling(queries, centres, sizes)
    assert all(a.dtype == torch.float32 and torch.equal(a, b) for a, b in zip(cast, plain, strict=True))


# --- misuse and counting


@pytest.mark.parametrize("name", ["values", "level", "weights", "heads", "rank", "negative"])
def test_tensors_that_do_not_belong_together_are_refused(name):
    values, shapes, locations, weights = inputs(SHAPES)
    if name == "values":
        values = values[:, 1:]
    elif name == "level":
        shapes = shapes[:1]
        values = values[:, : prod(shapes[0])]
    elif name == "weights":
        weights = weights[:, 1:]
    elif name == "negative":  # the sum fits, and the second level would begin before the first value
        values, shapes = values[:, :1], [(-1, 1, 1), (2, 1, 1)]
    elif name == "rank":
        values = values.flatten(2)
    else:
        locations, weights = locations[:, :, :1], weights[:, :, :1]
    with pytest.raises(ValueError, match="do not belong together"):
        deformable_attention(values, shapes, locations, weights)


def test_batches_that_differ_are_refused():
    values, shapes, locations, weights = inputs(SHAPES)
    with pytest.raises(ValueError, match="do not belong together"):
        deformable_attention(values[:1], shapes, locations, weights)


@pytest.mark.parametrize("name", ["integers", "complex", "locations", "weights"])
def test_types_and_devices_that_no_backend_takes_are_refused(name):
    values, shapes, locations, weights = inputs(SHAPES)
    if name == "locations":
        locations = locations.to("meta")
    elif name == "weights":
        weights = weights.to("meta")
    else:
        values = values.to(torch.int64 if name == "integers" else torch.complex64)
    with pytest.raises(ValueError, match="all belong on one device, values in float32"):
        deformable_attention(values, shapes, locations, weights)


def test_a_default_device_changes_nothing():
    values, shapes, locations, weights = inputs(SHAPES)
    expected = deformable_attention(values, shapes, locations, weights)
    with torch.device("meta"), torch.no_grad():
        assert torch.equal(deformable_attention(values, shapes, locations, weights), expected)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("differentiable", [False, True])
def test_samples_are_counted(device, differentiable):
    values, shapes, locations, weights = inputs(SHAPES, batch=1, queries=5, heads=2, width=3, points=2)
    values, locations, weights = (x.to(device).requires_grad_(differentiable) for x in (values, locations, weights))
    with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as counter:
        output = deformable_attention(values, shapes, locations, weights)
    assert output.shape == (1, 5, 2, 3)
    assert counter.get_total_flops() == 2 * 8 * len(shapes) * (2 * 3) * (5 * 2)


def test_infinite_values_where_nothing_is_sampled_add_nothing():
    values, shapes, locations, weights = inputs(SHAPES, spread=0.1)
    for corner in (0, -1):
        values[:, corner] = inf
    locations[0, 0, 0, 0, 0] = -3.0  # outside: whatever row stands in for it is not added
    assert deformable_attention(values, shapes, locations, weights).isfinite().all()
