"""The head family: dense heads against their equations written out, the masked-query head's schedules and switches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerMaskedAttentionDecoderLayer

from maskmed_zoo import registry
from maskmed_zoo.contracts import FeatureSpec, Head, StageOutput
from maskmed_zoo.errors import JointError
from maskmed_zoo.heads.masked_query import MaskedQueryConfig, MaskedQueryHead
from maskmed_zoo.layers.transformer import QueryBlock

SPEC = FeatureSpec((4, 6, 8), ((1, 1, 1), (1, 2, 2), (2, 4, 4)))
SIZES = SPEC.sizes((4, 8, 12))
SMALL = {"width": 12, "attention_heads": 2, "ffn_ratio": 2}


def stages(batch: int = 2, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, c, *s, generator=generator) for c, s in zip(SPEC.channels, SIZES, strict=True)]


def build(name: str, labels: int = 3, **settings: object) -> Head:
    torch.manual_seed(0)
    cls = registry.component(name, "head")
    known = {k: v for k, v in SMALL.items() if k in cls.Config.model_fields}
    head = cls(in_spec=SPEC, num_classes=labels, config=cls.Config(**known | settings))  # pyright: ignore
    assert isinstance(head, Head)
    return head


@pytest.mark.parametrize("name", ["learned_class", "attention_class", "attention_mask_class"])
@pytest.mark.parametrize("queries", [None, 2, 5])
def test_logits_are_masks_times_class_embeddings_at_every_voxel(name: str, queries: int | None) -> None:
    head = build(name, num_queries=queries)
    output = head(stages())
    assert len(output.stages) == 3
    for stage in output.stages:
        assert stage.masks.shape[1] == head.num_queries == (queries or 3)
        expected = torch.zeros_like(stage.logits, dtype=torch.float64)
        for label in range(3):
            for query in range(stage.masks.shape[1]):
                weight = stage.class_logits[:, query, label, None, None, None].double()
                expected[:, label] += weight * stage.masks[:, query].double()
        torch.testing.assert_close(stage.logits.double(), expected, rtol=1e-4, atol=1e-5)


def test_the_heads_differ_in_what_decides_on_masks_and_classes() -> None:
    """Masks of the convolution heads follow from a voxel alone; class embeddings are fixed, or depend on the image."""
    one, other = stages(seed=0), stages(seed=1)
    for stage, changed in zip(one, other, strict=True):
        changed[:, :, 0, 0, 0] = stage[:, :, 0, 0, 0]
    same_mask, same_classes = {}, {}
    for name in ("learned_class", "attention_class", "attention_mask_class"):
        a, b = (build(name)(x).stages[0] for x in (one, other))
        same_mask[name] = torch.allclose(a.masks[..., 0, 0, 0], b.masks[..., 0, 0, 0], atol=1e-6)
        same_classes[name] = torch.allclose(a.class_logits, b.class_logits, atol=1e-6)
    assert same_mask == {"learned_class": True, "attention_class": True, "attention_mask_class": False}
    assert same_classes == {"learned_class": True, "attention_class": False, "attention_mask_class": False}


@pytest.mark.parametrize("name", ["attention_class", "attention_mask_class", "masked_query"])
def test_queries_per_class_multiply_the_labels(name: str) -> None:
    for factor in (1, 2, 3, 4):
        assert build(name, queries_per_class=factor).num_queries == 3 * factor
    assert build(name, num_queries=7, queries_per_class=4).num_queries == 7


@pytest.mark.parametrize(
    ("name", "classes"), [("attention_class", 6**-0.5), ("attention_mask_class", 6**-0.5), ("masked_query", 1.0)]
)
def test_masks_and_classes_of_queries_start_as_large_as_a_convolution(name: str, classes: float) -> None:
    """From masks and classes near 0 the networks of the CPU recipes lose the first hundreds of steps."""
    spec = FeatureSpec((12, 24, 48), SPEC.strides)
    cls = registry.component(name, "head")
    torch.manual_seed(0)
    head = cls(in_spec=spec, num_classes=6, config=cls.Config(width=48))  # pyright: ignore
    features = [nn.functional.leaky_relu(torch.randn(2, c, 8, 8, 8), 0.01) for c in spec.channels]
    for stage in head(features).stages:
        assert 0.5 < stage.masks.std().item() < 2
        assert 0.5 * classes < stage.class_logits.std().item() < 2 * classes


@pytest.mark.parametrize("has_positions", [False, True])
def test_one_block_is_hugging_faces_masked_attention_layer(has_positions: bool) -> None:
    torch.manual_seed(0)
    config = Mask2FormerConfig(hidden_dim=12, num_attention_heads=2, dim_feedforward=24, dropout=0.0)
    config.activation_function = "gelu"
    theirs = Mask2FormerMaskedAttentionDecoderLayer(config).eval().double()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    ours = QueryBlock(12, 2, 2).eval().double()
    pack = theirs.cross_attn
    with torch.no_grad():
        for index, layer in enumerate((ours.cross.query, ours.cross.key, ours.cross.value)):
            layer.weight.copy_(pack.in_proj_weight[12 * index : 12 * index + 12])
            layer.bias.copy_(pack.in_proj_bias[12 * index : 12 * index + 12])
        pairs = [
            (ours.cross.out, pack.out_proj),
            (ours.self_attention.query, theirs.self_attn.q_proj),
            (ours.self_attention.key, theirs.self_attn.k_proj),
            (ours.self_attention.value, theirs.self_attn.v_proj),
            (ours.self_attention.out, theirs.self_attn.out_proj),
            (ours.ffn[0], theirs.fc1),
            (ours.ffn[2], theirs.fc2),
            (ours.norms[0], theirs.cross_attn_layer_norm),
            (ours.norms[1], theirs.self_attn_layer_norm),
            (ours.norms[2], theirs.final_layer_norm),
        ]
        for mine, other in pairs:
            mine.load_state_dict(other.state_dict())
    queries, values = torch.randn(1, 5, 12).double(), torch.randn(1, 9, 12).double()
    position, allowed = torch.randn(1, 9, 12).double(), torch.rand(1, 5, 9) > 0.4
    allowed[..., 0] = True
    placed = torch.randn(5, 12).double() * has_positions
    expected = theirs(
        queries.transpose(0, 1),
        level_index=0,
        position_embeddings=[position.transpose(0, 1)],
        query_position_embeddings=placed.unsqueeze(1),
        encoder_hidden_states=[values.transpose(0, 1)],
        encoder_attention_mask=~allowed.expand(2, -1, -1),
    )[0].transpose(0, 1)
    found = ours(queries, values + position, values, allowed, placed if has_positions else None)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def schedule(**settings: object) -> tuple[int, ...]:
    return MaskedQueryConfig(**settings).schedule(5)  # pyright: ignore


def test_schedules_of_maskmed_maskformer_and_mask2former() -> None:
    assert schedule() == (4, 3, 2, 1, 0)
    assert schedule(mask_features="finest", attend_stages=1, layers=4) == (4, 4, 4, 4)
    assert schedule(mask_features="finest", attend_stages=3, layers=7) == (4, 3, 2, 4, 3, 2, 4)
    for name in ("attend_stages", "layers"):
        with pytest.raises(ValueError, match=f"'{name}' needs 'mask_features: finest'"):
            MaskedQueryConfig(**{name: 2})  # pyright: ignore
    with pytest.raises(JointError, match="reads 4 stages, the decoder gives 3; set attend_stages to at most 3"):
        build("masked_query", mask_features="finest", attend_stages=4)


def test_masks_on_the_finest_map_for_every_block() -> None:
    head = build("masked_query", mask_features="finest", attend_stages=2, layers=5, predict_first=True)
    assert isinstance(head, MaskedQueryHead)
    assert len(head.mask_embeddings) == len(head.classifiers) == 1
    assert len(head.decoder.inputs) == 2
    x = stages()
    output = head(x)
    assert [s.masks.shape[2:] for s in output.stages] == [SIZES[0]] * 6
    for stage in output.stages:  # the last output is that of the queries before any block
        expected = torch.einsum("bnc,bcdhw->bndhw", head.mask_embeddings[0](stage.queries), x[0])
        torch.testing.assert_close(stage.masks, expected)
    assert torch.equal(output.stages[-1].queries[0], head.decoder.queries[0])


def test_queries_read_the_lowest_stages_alone() -> None:
    head = build("masked_query", mask_features="finest", attend_stages=1, layers=2, masked_attention="off")
    one, other = stages(), stages()
    other[0] = other[0] * 2
    other[1] = other[1] + 1
    assert torch.equal(head(one).stages[0].queries, head(other).stages[0].queries)
    other[2] = other[2] + 1
    assert not torch.equal(head(one).stages[0].queries, head(other).stages[0].queries)


def test_the_first_prediction_restricts_the_first_block() -> None:
    plain, first = (build("masked_query", predict_first=value) for value in (False, True))
    first.load_state_dict(plain.state_dict())
    a, b = plain(stages()), first(stages())
    assert len(b.stages) == len(a.stages) + 1
    assert b.stages[-1].masks.shape == b.stages[-2].masks.shape
    assert not torch.equal(a.stages[-1].queries, b.stages[-2].queries)


def test_a_mask_smaller_than_a_token_leaves_its_token_open() -> None:
    """Stage 0 is read on a grid of 2 x 4 x 6 tokens; the mask before it has one voxel inside, off their centres."""
    head = build("masked_query", max_tokens=48)
    assert isinstance(head, MaskedQueryHead)
    masks = torch.full((1, 1, 4, 8, 12), -9.0)
    masks[0, 0, 3, 7, 11] = 0.1
    prior = head._prior([StageOutput(masks=masks)], (2, 4, 6))
    assert prior is not None
    expected = torch.zeros(1, 1, 2, 4, 6, dtype=torch.bool)
    expected[0, 0, 1, 3, 5] = True
    assert torch.equal(prior, expected.flatten(2))


def test_positions_of_queries_are_read_in_every_block() -> None:
    plain, placed = (  # no block hears of another
        build("masked_query", queries="per_stage", masked_attention="off", query_positions=value)
        for value in (False, True)
    )
    assert isinstance(placed, MaskedQueryHead)
    assert placed.decoder.positions is not None
    assert set(dict(placed.named_parameters())) - set(dict(plain.named_parameters())) == {"decoder.positions"}
    assert placed.decoder.positions.shape == (3, 12)
    plain.load_state_dict(placed.state_dict(), strict=False)
    for a, b in zip(plain(stages()).stages, placed(stages()).stages, strict=True):
        assert not torch.allclose(a.queries, b.queries, atol=1e-3)
    torch.nn.init.zeros_(placed.decoder.positions)
    for a, b in zip(plain(stages()).stages, placed(stages()).stages, strict=True):
        assert torch.equal(a.queries, b.queries)


def test_limited_positions_change_what_queries_read() -> None:
    plain, limited = (build("masked_query", masked_attention="off", position_limit=value) for value in (False, True))
    limited.load_state_dict(plain.state_dict())
    for a, b in zip(plain(stages()).stages, limited(stages()).stages, strict=True):
        assert not torch.equal(a.queries, b.queries)
