"""The necks whose queries are the lowest levels' voxels, against PyTorch's own layer and against one another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskmed_zoo import registry
from maskmed_zoo.contracts import FeatureSpec, Neck
from maskmed_zoo.errors import JointError
from maskmed_zoo.layers.position import voxel_centers
from maskmed_zoo.necks.transformer import TransformerNeck, TransformerNeckConfig

SPEC = FeatureSpec((4, 6, 8), ((1, 1, 1), (1, 2, 2), (2, 4, 4)))
SIZES = SPEC.sizes((4, 8, 12))
SMALL = {"width": 12, "attention_heads": 2, "ffn_ratio": 2}
TOKEN_NECKS = ("transformer", "deformable", "fsad")


def levels(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, c, *s, generator=generator) for c, s in zip(SPEC.channels, SIZES, strict=True)]


def build(name: str, **settings: object) -> Neck:
    torch.manual_seed(0)
    cls = registry.component(name, "neck")
    neck = cls(in_spec=SPEC, config=cls.Config(**SMALL | settings))  # pyright: ignore
    assert isinstance(neck, Neck)
    return neck


@pytest.mark.parametrize("name", TOKEN_NECKS)
def test_levels_above_the_queries_pass_unchanged(name: str) -> None:
    x = levels()
    for query_levels in (1, 2):
        out = build(name, query_levels=query_levels)(x)
        assert [a is b for a, b in zip(x, out, strict=True)] == [True] * (3 - query_levels) + [False] * query_levels
    with pytest.raises(JointError, match=f"neck '{name}' asks for 4 query levels, the encoder gives 3"):
        build(name, query_levels=4)


@pytest.mark.parametrize("name", TOKEN_NECKS)
def test_what_a_query_depends_on(name: str) -> None:
    """Only FSAD looks at the full resolution; all look at the other query levels, though deformable ones at a few."""
    neck = build(name, query_levels=2)
    fine, coarse = levels(), levels()
    fine[0] = fine[0] + 1
    coarse[2] = coarse[2] + torch.randn(coarse[2].shape)
    before = neck(levels())
    assert torch.equal(before[1], neck(fine)[1]) == (name != "fsad")
    assert not torch.equal(before[1], neck(coarse)[1])


def test_the_transformer_is_pytorchs_encoder_layer() -> None:
    config = TransformerNeckConfig(**SMALL, query_levels=2, layers=2)  # pyright: ignore
    neck = TransformerNeck(in_spec=SPEC, config=config).double()
    tokens = torch.randn(2, 30, 12).double()
    found = neck.enrich(tokens, torch.zeros(30, 12).double(), [], [])
    layers: Any = neck.layers
    for block in layers:
        theirs = nn.TransformerEncoderLayer(12, 2, 24, 0.0, "gelu", batch_first=True).double()
        mine = block.attention
        with torch.no_grad():
            parts = (mine.query, mine.key, mine.value)
            theirs.self_attn.in_proj_weight.copy_(torch.cat([p.weight for p in parts]))
            theirs.self_attn.in_proj_bias.copy_(torch.cat([p.bias for p in parts]))
            for other, own in (
                (theirs.self_attn.out_proj, mine.out),
                (theirs.linear1, block.ffn[0]),
                (theirs.linear2, block.ffn[2]),
                (theirs.norm1, block.norms[0]),
                (theirs.norm2, block.norms[1]),
            ):
                other.load_state_dict(own.state_dict())
        tokens = theirs(tokens)
    torch.testing.assert_close(found, tokens, rtol=1e-6, atol=1e-6)


def test_deformable_is_fsad_where_every_level_is_a_query() -> None:
    fsad, deformable = (build(name, query_levels=3, points=2) for name in ("fsad", "deformable"))
    deformable.load_state_dict(fsad.state_dict())
    for a, b in zip(fsad(levels()), deformable(levels()), strict=True):
        torch.testing.assert_close(a, b)


def test_own_voxel_reads_the_queries_place_of_every_level_and_nothing_else() -> None:
    neck = build("fsad", query_levels=2, own_voxel=True)
    layer = neck.layers[0]
    assert not [name for name, _ in neck.named_parameters() if "offsets" in name]
    centres = torch.cat([voxel_centers(size, torch.device("cpu")).flatten(0, 2) for size in SIZES[1:]])
    locations, weights = layer.sampling(torch.randn(2, len(centres), 12), centres, list(SIZES))
    assert locations.shape == (2, len(centres), 2, 3, 1, 3)
    assert weights.shape == locations.shape[:-1]
    assert torch.equal(locations, centres[None, :, None, None, None].expand_as(locations))
    far, x = levels(), levels()
    far[0][..., -1] += 5  # the last column of full resolution: out of reach of every query but the last ones in x
    before, after = neck(x)[1], neck(far)[1]
    changed = (before != after).any(1).any(0).any(0).any(0)
    assert changed.tolist() == [False] * 5 + [True]
