"""The baseline recipes: networks of the published sizes on the data of the other AMOS recipes, open at every joint."""

from __future__ import annotations

import pytest
import torch

import maskmed_zoo as zoo
from maskmed_zoo import build, registry
from maskmed_zoo.model import SegmentationModel, count_parameters
from maskmed_zoo.recipe import Recipe

MILLIONS = {
    "mednext_amos": 62.9,
    "resenc_amos": 102.3,
    "swin_unetr_amos": 62.2,
    "swin_unetr_v2_amos": 72.8,
    "unetr_amos": 92.9,
    "ux_net_amos": 53.0,
}
UNSUPERVISED_BELOW = {"swin_unetr_amos", "swin_unetr_v2_amos", "unetr_amos", "ux_net_amos"}
SMALL = {
    f"model.{part}.{key}": value
    for part in ("encoder", "decoder")
    for key, value in (("variant", "S"), ("kernel_size", 3))
}
QUERIES = {
    "model.neck": {"kind": "fsad", "query_levels": 2, "width": 24, "attention_heads": 2},
    "model.head": {"kind": "masked_query", "width": 24, "attention_heads": 2, "max_tokens": 64},
    "model.loss": {"kind": "set_criterion"},
}
ALL_STAGES = {"model.decoder.stages": None}


def on_meta(recipe: Recipe) -> SegmentationModel:
    with torch.device("meta"):
        return build.model_of(recipe)


@pytest.mark.parametrize("name", MILLIONS)
def test_a_baseline_has_its_published_size_and_the_data_of_the_others(name):
    recipe = zoo.load_recipe(name)
    model = on_meta(recipe)
    total = count_parameters(model.parameters())
    assert round(total / 1e6, 1) == MILLIONS[name]
    assert count_parameters(model.parameter_groups()["cnn"]) == total
    assert (len(model.decoder.out_spec) == 1) == (name in UNSUPERVISED_BELOW)
    assert recipe.data == zoo.load_recipe("pointwise_amos").data
    assert [getattr(recipe.model, part).kind for part in ("neck", "head", "loss")] == ["skip", "pointwise", "ce_dice"]
    facts = registry.card(name).facts
    assert facts["recipe"] == f"baselines/{name}.yaml"
    assert "not trained here" in facts["results"]


@pytest.mark.parametrize(
    ("name", "overrides"),
    [("swin_unetr_amos", ALL_STAGES), ("unetr_amos", ALL_STAGES), ("ux_net_amos", ALL_STAGES), ("mednext_amos", SMALL)],
)
def test_a_baseline_takes_our_neck_and_head(name, overrides):
    """A neck, a query head and its loss between and behind the parts of another network."""
    recipe = zoo.load_recipe(name, QUERIES | overrides)
    model = on_meta(recipe)
    output = model(torch.empty(1, 1, *recipe.data.patch_size, device="meta"))
    assert len(output.stages) == len(model.encoder.out_spec) - 1
    assert output.log_probabilities().shape == (1, 16, *recipe.data.patch_size)
    assert count_parameters(model.parameter_groups()["transformer"]) > 0


def test_mednext_supervises_all_its_stages():
    weights = build.network_facts(zoo.load_recipe("mednext_amos", SMALL))["stages"]
    assert [stage["weight"] for stage in weights] == pytest.approx([8 / 15, 4 / 15, 2 / 15, 1 / 15])


def test_the_small_mednext():
    model = on_meta(zoo.load_recipe("mednext_amos", SMALL))
    assert round(count_parameters(model.parameters()) / 1e6, 1) == 5.6
