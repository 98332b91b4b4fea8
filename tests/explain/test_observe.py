"""What is observed is what the network used: against PyTorch's attention, and every product and sampling done again."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import maskmed_zoo as zoo
from maskmed_zoo.explain.measures import attention_facts, finest_query, sampling_facts
from maskmed_zoo.explain.observe import BlockAttention, Sampling, attention_weights, observe
from maskmed_zoo.layers.deformable import DeformableBlock, initial_offsets
from maskmed_zoo.layers.transformer import MultiHeadAttention
from maskmed_zoo.model import SegmentationModel

HEADS = ("pointwise", "learned_class", "attention_class", "attention_mask_class", "masked_query")
QUERY_HEADS = HEADS[2:]
NECKS = ("skip", "fsad")
PATCH = (8, 16, 16)


def network(recipe: Path, head: str, neck: str = "skip", **settings: Any) -> SegmentationModel:
    """A tiny network whose parameters are all random, those that start at zero too."""
    overrides: dict[str, Any] = {"model__head__kind": head, "model__neck__kind": neck}
    overrides["model__loss__kind"] = "set_criterion" if head == "masked_query" else "ce_dice"
    overrides |= {"model__head__width": 12, "model__head__attention_heads": 2} if head in QUERY_HEADS else {}
    overrides |= {"model__neck__query_levels": 2, "model__neck__width": 12} if neck != "skip" else {}
    overrides |= {"model__neck__attention_heads": 2} if neck != "skip" else {}
    torch.manual_seed(0)
    model = zoo.create(recipe, **(overrides | settings)).eval()
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return model


def image() -> torch.Tensor:
    return torch.randn(1, *PATCH, generator=torch.Generator().manual_seed(1))


def stages_of(model: SegmentationModel) -> list[torch.Tensor]:
    return model.decoder(model.neck(model.encoder(image()[None])))


@pytest.mark.parametrize(("head", "neck"), list(product(HEADS, NECKS)))
def test_every_head_and_neck(tiny_recipe: Path, head: str, neck: str) -> None:
    model = network(tiny_recipe, head, neck)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    seen = observe(model, image())
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    with torch.inference_mode():
        expected, features = model(image()[None]), stages_of(model)
    assert len(seen.output.stages) == len(expected.stages) == len(seen.mask_embeddings) == 2
    for ours, theirs, embedding, x in zip(
        seen.output.stages, expected.stages, seen.mask_embeddings, features, strict=True
    ):
        assert torch.equal(ours.spatial, theirs.spatial), "observing changes nothing"
        masks = ours.masks if ours.masks is not None else ours.logits
        assert masks is not None
        rest = (masks[0] - torch.einsum("nc,cdhw->ndhw", embedding, x[0])).flatten(1)  # a convolution's bias
        torch.testing.assert_close(rest, rest[:, :1].expand_as(rest), atol=1e-5, rtol=0)
    assert len(seen.attention) == (2 if head in QUERY_HEADS else 0)
    assert len(seen.sampling) == (1 if neck == "fsad" else 0)
    for block in seen.attention:
        torch.testing.assert_close(block.weights.flatten(1).sum(1), torch.ones(3))
        assert (block.prior is None) == (head != "masked_query" or block is seen.attention[0])


@pytest.mark.parametrize("mask", ["none", "bool", "float"])
def test_attention_weights_are_those_of_pytorch(mask: str) -> None:
    torch.manual_seed(0)
    ours, theirs = MultiHeadAttention(12, 3), nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        for layer in (ours.query, ours.key, ours.value, ours.out):
            nn.init.normal_(layer.bias)
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
    query, key = torch.randn(2, 4, 12), torch.randn(2, 7, 12)
    allowed = torch.rand(2, 4, 7) > 0.4
    allowed[..., 0] = True
    given = {"none": None, "bool": allowed, "float": torch.randn(2, 4, 7)}[mask]
    blocked = ~given if mask == "bool" and given is not None else given
    blocked = None if blocked is None else blocked.repeat_interleave(3, 0)
    _, expected = theirs(query, key, key, attn_mask=blocked, average_attn_weights=False)
    weights = attention_weights(ours, query, key, given)
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 4))
    value = ours.value(key).unflatten(-1, (3, 4)).transpose(1, 2)
    torch.testing.assert_close(ours.out((weights @ value).transpose(1, 2).flatten(2)), ours(query, key, key, given))


@pytest.mark.parametrize("masked_attention", ["hard", "soft", "off"])
def test_prior_is_the_largest_of_the_previous_mask_in_each_token(tiny_recipe: Path, masked_attention: str) -> None:
    settings = {"model__head__masked_attention": masked_attention, "model__head__max_tokens": 200}
    seen = observe(network(tiny_recipe, "masked_query", **settings), image())
    second = seen.attention[1]
    assert second.stage_size == PATCH
    assert second.weights[0].numel() <= 200
    if masked_attention == "off":
        assert second.prior is None
        return
    previous = seen.output.stages[1].masks
    assert previous is not None
    logits = F.adaptive_max_pool3d(previous, second.weights.shape[1:])[0]
    expected = logits.sigmoid() if masked_attention == "soft" else (logits >= 0).float()
    if masked_attention == "hard":
        expected[~(logits >= 0).flatten(1).any(1)] = 1  # a query that may look nowhere looks everywhere
        assert second.weights[expected == 0].abs().max() == 0
    assert second.prior is not None
    assert 0 < float(second.prior.mean()) < 1
    torch.testing.assert_close(second.prior, expected)


def test_blocks_and_outputs_of_mask2former(tiny_recipe: Path) -> None:
    settings = {"mask_features": "finest", "attend_stages": 2, "layers": 3, "predict_first": True}
    settings = {f"model__head__{key}": value for key, value in settings.items()}
    model = network(tiny_recipe, "masked_query", **settings)
    seen = observe(model, image())
    assert [block.stage_size for block in seen.attention] == [(4, 8, 8), PATCH, (4, 8, 8)]
    assert all(block.prior is not None for block in seen.attention)
    assert len(seen.mask_embeddings) == len(seen.output.stages) == 4
    with torch.inference_mode():
        finest = stages_of(model)[0]
    for stage, embedding in zip(seen.output.stages, seen.mask_embeddings, strict=True):
        torch.testing.assert_close(stage.masks, torch.einsum("nc,bcdhw->bndhw", embedding, finest))


def test_untrained_points_are_the_initial_offsets(tiny_recipe: Path) -> None:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"query_levels": 2, "points": 2, "width": 12, "attention_heads": 3}
    model = zoo.create(tiny_recipe, **{f"model__neck__{key}": value for key, value in settings.items()}).eval()
    (sampling,) = observe(model, image()).sampling
    sizes = model.encoder.out_spec.sizes(PATCH)
    assert sampling.levels == (0, 1, 2)
    assert sampling.query_sizes == sizes[1:]
    offsets = (sampling.locations - sampling.centers[:, None, None, None]) * torch.tensor(sizes)[:, None]
    torch.testing.assert_close(offsets, initial_offsets(3, 2)[:, None].expand_as(offsets))
    torch.testing.assert_close(sampling.weights, torch.full_like(sampling.weights, 1 / 6))
    query = finest_query(sampling, (4, 9, 12), PATCH)
    torch.testing.assert_close(sampling.centers[query] * torch.tensor(sizes[1]), torch.tensor([2.5, 4.5, 6.5]))
    assert query == (2 * 8 + 4) * 8 + 6


@pytest.mark.parametrize("neck", ["fsad", "deformable"])
def test_points_are_those_that_are_read(tiny_recipe: Path, neck: str) -> None:
    """The weighted sum of what lies at the points is what goes into the block's output projection."""
    model = network(tiny_recipe, "pointwise", neck)
    given: list[torch.Tensor] = []
    levels: list[torch.Tensor] = []
    (block,) = (m for m in model.neck.modules() if isinstance(m, DeformableBlock))
    block.out.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    block.register_forward_pre_hook(lambda _, inputs: levels.extend(inputs[3]))
    (sampling,) = observe(model, image()).sampling
    first = {"fsad": 0, "deformable": 1}[neck]
    assert sampling.levels == tuple(range(first, 3))
    sizes = model.encoder.out_spec.sizes(PATCH)[first:]
    total = torch.zeros_like(given[0][0])
    with torch.inference_mode():
        for index, (x, size) in enumerate(zip(levels, sizes, strict=True)):
            volume = block.values[index](x)[0].T.unflatten(1, size).unflatten(0, (block.heads, -1))
            grid = (sampling.locations[:, :, index] * 2 - 1).flip(-1).transpose(0, 1).unsqueeze(3)
            read = F.grid_sample(volume, grid, align_corners=False)[..., 0]  # (h c q p)
            total += torch.einsum("hcqp,qhp->qhc", read, sampling.weights[:, :, index]).flatten(1)
    torch.testing.assert_close(total, given[0][0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(sampling.weights.sum((2, 3)), torch.ones(sampling.weights.shape[:2]))


def test_attention_facts() -> None:
    mask = torch.zeros(4, 4, 4, dtype=torch.bool)
    mask[:2, :2, :3] = True  # covers one of eight tokens wholly, and half of another
    weights = torch.full((2, 2, 2, 2), 1 / 8)
    weights[1] = 0
    weights[1, 0, 0, 1] = 1
    block = BlockAttention((4, 4, 4), weights, torch.tensor([1.0, 0.25])[:, None, None, None].expand(2, 2, 2, 2))
    uniform = {"peak": 1.0, "inside": 1.5 / 8, "inside_if_uniform": 1.5 / 8, "prior": 1.0}
    assert attention_facts(block, 0, mask) == pytest.approx(uniform)
    assert attention_facts(block, 1, mask) == pytest.approx(uniform | {"peak": 8.0, "inside": 0.5, "prior": 0.25})
    assert attention_facts(BlockAttention((4, 4, 4), weights, None), 0, mask)["prior"] is None


def test_sampling_facts() -> None:
    """One query in the middle of 100 x 200 x 400 mm; one head, two levels, two points each."""
    locations = torch.tensor([[[[[0.5, 0.5, 0.5], [0.8, 0.7, 0.5]], [[0.5, 1.5, 0.5], [0.5, 0.5, 0.25]]]]])
    weights = torch.tensor([[[[0.1, 0.3], [0.6, 0.0]]]])
    sampling = Sampling((1, 2), ((1, 1, 1),), torch.full((1, 3), 0.5), locations, weights)
    fine, coarse = sampling_facts(sampling, slice(None), torch.tensor([100.0, 200.0, 400.0]))
    expected = {"level": 1, "distance_mm": 25, "weighted_distance_mm": 37.5, "weight": 0.4, "outside": 0}
    assert fine == pytest.approx(expected)
    expected = {"level": 2, "distance_mm": 150, "weighted_distance_mm": 200, "weight": 0.6, "outside": 1}
    assert coarse == pytest.approx(expected)
