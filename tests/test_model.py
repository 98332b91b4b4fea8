"""The composed network: what does not fit fails in words, groups partition, recipes build, probabilities are right."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import maskmed_zoo as zoo
from maskmed_zoo import build, registry
from maskmed_zoo.contracts import FLOOR, FeatureSpec, HeadOutput, StageOutput, full_precision, resize
from maskmed_zoo.decoders.unet import UNetConfig, UNetDecoder
from maskmed_zoo.encoders.plain_conv import PlainConvConfig, PlainConvEncoder
from maskmed_zoo.errors import JointError, RecipeError
from maskmed_zoo.heads.pointwise import PointwiseHead
from maskmed_zoo.layers.query_decoder import token_grid
from maskmed_zoo.model import SegmentationModel, build_loss, check_loss
from maskmed_zoo.necks.skip import SkipNeck

MODELS = [card.name for card in registry.find(kind="model")]
TWINS = [name for name in MODELS if name.startswith("pointwise_")]
TINY = {
    "model__encoder__channels": [4, 6, 8],
    "model__neck__width": 12,
    "model__neck__attention_heads": 2,
    "model__head__width": 12,
    "model__head__attention_heads": 2,
}
ORGANS = 6
"""Labels where a recipe leaves them to the data set."""


def tiny(**settings: Any) -> SegmentationModel:
    torch.manual_seed(0)
    return zoo.create("maskmed_hippocampus_cpu", **TINY | settings)


def on_meta(name: str) -> SegmentationModel:
    labels = zoo.load_recipe(name).data.labels
    with torch.device("meta"):
        return zoo.create(name, num_classes=None if labels else ORGANS)


def parts(channels: tuple[int, ...] = (4, 6, 8)) -> dict[str, Any]:
    encoder = PlainConvEncoder(in_channels=1, config=PlainConvConfig(channels=channels, blocks=1))
    decoder = UNetDecoder(in_spec=encoder.out_spec)
    return {
        "encoder": encoder,
        "neck": SkipNeck(in_spec=encoder.out_spec),
        "decoder": decoder,
        "head": PointwiseHead(in_spec=decoder.out_spec, num_classes=3),
        "in_channels": 1,
        "num_classes": 3,
    }


# --- joints


@pytest.mark.parametrize(
    ("head", "loss", "right", "gives", "takes"),
    [
        ("masked_query", "ce_dice", "set_criterion", "queries", "logits"),
        ("pointwise", "set_criterion", "ce_dice", "logits", "queries"),
    ],
)
def test_a_loss_that_cannot_take_what_the_head_gives(head, loss, right, gives, takes):
    message = f"loss '{loss}' takes {takes}, head '{head}' gives {gives}; write 'kind: {right}' under model.loss"
    recipe = zoo.load_recipe("maskmed_hippocampus_cpu", {"model.head.kind": head, "model.loss.kind": loss})
    with pytest.raises(JointError, match=f"^{re.escape(message)}$"):
        build.model_of(recipe)
    with pytest.raises(JointError):
        check_loss(recipe.model)
    fixed = zoo.load_recipe(recipe, {"model.loss.kind": right})
    assert isinstance(build.model_of(fixed), SegmentationModel)


@pytest.mark.parametrize(
    ("size", "near"),
    [
        ((8, 10, 8), r"\(8, 8, 8\) and \(8, 12, 8\)"),
        ((7, 8, 8), r"\(4, 8, 8\) and \(8, 8, 8\)"),
        ((8, 8, 3), r"\(8, 8, 4\)$"),
    ],
)
def test_a_patch_that_does_not_fit_names_the_nearest_sizes(size, near):
    with pytest.raises(JointError, match=rf"patch size \({size[0]}, .*not divisible.*stride \(4, 4, 4\).*{near}"):
        tiny()(torch.zeros(1, 1, *size))


def test_a_recipe_whose_patch_does_not_fit():
    recipe = zoo.load_recipe(
        "maskmed_hippocampus_cpu", {"model.encoder.channels": [4, 6, 8, 8], "data.patch_size": [40, 56, 41]}
    )
    with pytest.raises(JointError, match=r"\(40, 56, 41\).*nearest valid sizes: \(40, 56, 40\) and \(40, 56, 48\)"):
        build.network_facts(recipe)


@pytest.mark.parametrize("patch", [(8, 8), (8, 8, 8, 8), ()])
def test_a_patch_of_another_number_of_axes(patch):
    with pytest.raises(JointError, match=f"has {len(patch)} axes, expected 3"):
        FeatureSpec((4,), ((2, 2, 2),)).check_patch(patch)


@pytest.mark.parametrize("shape", [(1, 2, 8, 8, 8), (1, 8, 8, 8), (8, 8, 8), (1, 1, 1, 8, 8, 8)])
def test_an_image_of_the_wrong_shape(shape):
    expected = re.escape(f"expected an image (batch, 1, depth, height, width), got {shape}")
    with pytest.raises(JointError, match=expected):
        tiny()(torch.zeros(shape))


def test_too_many_query_levels():
    with pytest.raises(
        JointError, match="neck 'fsad' asks for 4 query levels, the encoder gives 3; set query_levels to at most 3"
    ):
        tiny(model__neck__query_levels=4)


def test_fewer_queries_than_labels():
    with pytest.raises(JointError, match="has 2 queries for 3 labels; set num_queries to at least 3 or to null"):
        tiny(model__head__num_queries=2)


def test_more_queries_than_labels_are_fine():
    model = tiny(model__head__num_queries=7)
    assert model.head.num_queries == 7
    assert model(torch.zeros(1, 1, 8, 8, 8)).stages[0].masks.shape[1] == 7


def test_a_neck_that_changes_the_levels():
    given = parts()
    given["neck"].out_spec = FeatureSpec((4, 6, 9), given["encoder"].out_spec.strides)
    with pytest.raises(
        JointError, match=r"a neck must keep the encoder's levels: it got .*\(4, 6, 8\).* gives .*\(4, 6, 9\)"
    ):
        SegmentationModel(**given)


def test_class_names_of_another_number():
    with pytest.raises(JointError, match="2 class names for 3 classes"):
        SegmentationModel(**parts(), class_names=["background", "liver"])
    assert SegmentationModel(**parts(), class_names="abc").class_names == ("a", "b", "c")


def test_decoders_that_do_not_fit():
    with pytest.raises(JointError, match="needs at least 2 levels, the encoder gives 1"):
        UNetDecoder(in_spec=FeatureSpec((4,), ((1, 1, 1),)))
    config = UNetConfig(kernels=(3, 3, 3))  # pyright: ignore[reportArgumentType]
    with pytest.raises(JointError, match="has 3 'kernels' for 1 stages; give one per stage"):
        UNetDecoder(in_spec=FeatureSpec((4, 6), ((1, 1, 1), (2, 2, 2))), config=config)
    with pytest.raises(JointError, match=r"got \(3, 2, 2\) below \(2, 1, 1\) at level 1"):
        UNetDecoder(in_spec=FeatureSpec((4, 6), ((2, 1, 1), (3, 2, 2))))


def test_a_recipe_that_leaves_the_labels_to_the_data_set():
    open_recipe = zoo.load_recipe("maskmed_hippocampus_cpu", {"data.labels": None})
    with pytest.raises(RecipeError, match=r"leaves data\.labels to the data set; state it, or pass the number"):
        build.model_of(open_recipe)
    with pytest.raises(RecipeError, match=r"leaves data\.channels"):
        build.model_of(zoo.load_recipe(open_recipe, {"data.channels": None}), num_classes=3)
    model = build.model_of(open_recipe, num_classes=4, in_channels=2)
    assert (model.num_classes, model.in_channels, model.class_names) == (4, 2, None)


def test_a_feature_spec_needs_a_stride_per_channel_count():
    with pytest.raises(JointError, match="got 2 channel counts and 1 strides"):
        FeatureSpec((4, 6), ((1, 1, 1),))
    with pytest.raises(JointError, match="got 0 channel counts"):
        FeatureSpec((), ())


# --- parameter groups


def check_groups(model: SegmentationModel) -> None:
    groups: Any = model.parameter_groups()
    assert list(groups) == ["cnn", "transformer"]
    ids = [id(p) for group in groups.values() for p in group]
    assert len(set(ids)) == len(ids)
    assert set(ids) == {id(p) for p in model.parameters() if p.requires_grad}
    for part, names in {"encoder": "cnn", "decoder": "cnn", "neck": "transformer"}.items():
        held = {id(p) for p in groups[names]}
        assert {id(p) for p in getattr(model, part).parameters()} <= held


def test_groups_partition_the_parameters_by_component():
    model = tiny()
    check_groups(model)
    assert {id(p) for p in model.head.parameters()} <= {id(p) for p in model.parameter_groups()["transformer"]}
    pointwise = SegmentationModel(**parts())
    check_groups(pointwise)
    assert pointwise.parameter_groups()["transformer"] == []


def test_frozen_parameters_belong_to_no_group():
    model = tiny()
    model.encoder.requires_grad_(False)
    check_frozen = model.parameter_groups()
    assert {id(p) for p in check_frozen["cnn"]} == {id(p) for p in model.decoder.parameters()}


def test_a_parameter_outside_the_parts_or_in_two_of_them_is_refused():
    model = tiny()
    model.extra = nn.Parameter(torch.zeros(1))
    with pytest.raises(JointError, match="exactly once"):
        model.parameter_groups()
    model = tiny()
    model.head.shared = next(model.encoder.parameters())
    with pytest.raises(JointError, match="exactly once"):
        model.parameter_groups()


# --- recipes


def test_there_are_recipes():
    assert len(MODELS) >= 12
    assert len(TWINS) >= 5


@pytest.mark.parametrize("name", MODELS)
def test_every_recipe_builds_and_takes_its_own_patch(name):
    recipe = zoo.load_recipe(name)
    assert recipe.name == name
    model = on_meta(name)
    check_groups(model)
    patch = recipe.data.patch_size
    output = model(torch.empty(1, model.in_channels, *patch, device="meta"))
    assert output.log_probabilities().shape == (1, model.num_classes, *patch)
    for stage, stride in zip(output.stages, model.head.out_strides, strict=True):
        assert stage.spatial.shape[2:] == tuple(p // s for p, s in zip(patch, stride, strict=True))
    loss = build_loss(recipe.model, num_classes=model.num_classes, ignore_label=None)
    assert loss.accepts == model.head.gives
    assert sum(loss.stage_weights(len(output.stages))) == pytest.approx(1)


@pytest.mark.parametrize("name", TWINS)
def test_twins_differ_in_neck_head_and_loss_only(name):
    twin, recipe = (zoo.load_recipe(n).model_dump() for n in (name, name.replace("pointwise_", "maskmed_")))
    assert [twin["model"].pop(p)["kind"] for p in ("neck", "head", "loss")] == ["skip", "pointwise", "ce_dice"]
    assert [recipe["model"].pop(p)["kind"] for p in ("neck", "head", "loss")] == [
        "fsad",
        "masked_query",
        "set_criterion",
    ]
    assert twin.pop("name") != recipe.pop("name")
    assert twin == recipe


def test_maskmed_amos_is_the_network_of_the_paper():
    report = build.network_facts(zoo.load_recipe("maskmed_amos"))
    assert report["num_classes"] == report["num_queries"] == len(report["class_names"]) == 16
    assert report["class_names"][:2] == ["background", "spleen"]
    assert [level["channels"] for level in report["levels"]] == [32, 64, 128, 256, 320, 320]
    assert [stage["weight"] for stage in report["stages"]] == pytest.approx([n / 31 for n in (16, 8, 4, 2, 1)])
    assert [stage["shape"] for stage in report["stages"]] == [[16, *level["size"]] for level in report["levels"][:-1]]
    assert report["stages"][0]["shape"] == [16, *report["patch_size"]]
    assert report["components"] == {
        "encoder": "plain_conv",
        "neck": "fsad",
        "decoder": "unet",
        "head": "masked_query",
        "loss": "set_criterion",
    }
    groups, counted = report["parameter_groups"], report["parameters"]
    assert sum(groups.values()) == sum(counted.values()) == report["total_parameters"]
    assert groups["cnn"] == counted["encoder"] + counted["decoder"]
    assert groups["transformer"] == counted["neck"] + counted["head"]
    assert report["macs"] > 1e11
    check_groups(on_meta("maskmed_amos"))


def test_what_a_report_counts():
    changes = {"model.encoder.channels": [4, 6], "model.encoder.blocks": 1, "data.patch_size": [8, 12, 16]}
    recipe = zoo.load_recipe("pointwise_hippocampus_cpu", changes)
    report = build.network_facts(recipe)
    voxels = 8 * 12 * 16
    encoder = voxels * 27 * 4 + voxels // 8 * 27 * 4 * 6
    decoder = voxels // 8 * 8 * 6 * 4 + voxels * 27 * (8 * 4 + 4 * 4)
    assert report["macs"] == encoder + decoder + voxels * 4 * 3
    model = build.model_of(recipe)
    assert report["total_parameters"] == sum(p.numel() for p in model.parameters())
    assert report["num_queries"] is None


# --- probabilities


def stage_of_queries(queries: int = 5, labels: int = 4, scale: float = 3.0) -> StageOutput:
    torch.manual_seed(0)
    return StageOutput(
        masks=torch.randn(2, queries, 3, 4, 5) * scale, class_logits=torch.randn(2, queries, labels + 1) * scale
    )


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_probabilities_of_queries_equal_the_sum_written_out(scale):
    stage = stage_of_queries(scale=scale)
    masks, classes = stage.masks.double().sigmoid(), stage.class_logits.double().softmax(-1)
    expected = torch.zeros(2, 4, 3, 4, 5, dtype=torch.float64)
    for label in range(4):  # the last class, "no object", is dropped
        for query in range(5):
            expected[:, label] += classes[:, query, label, None, None, None] * masks[:, query]
    expected = expected.clamp_min(FLOOR)
    expected = (expected / expected.sum(1, keepdim=True)).log()
    found = HeadOutput([stage, StageOutput()]).log_probabilities()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["queries", "logits"])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_log_probabilities_are_normalised_floored_and_finite(kind, scale):
    stage = stage_of_queries(scale=scale)
    if kind == "logits":
        stage = StageOutput(logits=torch.randn(2, 4, 3, 4, 5) * scale)
    found = stage.log_probabilities()
    torch.testing.assert_close(found.exp().sum(1), torch.ones(2, 3, 4, 5))
    assert found.isfinite().all()
    assert found.exp().min() >= FLOOR / (4 + 4 * FLOOR) * 0.99
    assert torch.equal(found.argmax(1), found.softmax(1).argmax(1))  # a consumer that applies softmax is right too
    torch.testing.assert_close(found.softmax(1), found.exp(), rtol=1e-4, atol=1e-6)


def test_no_query_answering_anywhere_gives_equal_probabilities():
    stage = stage_of_queries()
    stage.masks.fill_(-1000)
    torch.testing.assert_close(stage.log_probabilities().exp(), torch.full((2, 4, 3, 4, 5), 0.25))


def test_probabilities_of_logits_are_their_softmax():
    logits = torch.randn(2, 4, 3, 4, 5)
    torch.testing.assert_close(StageOutput(logits=logits).log_probabilities(), logits.log_softmax(1))
    assert torch.equal(StageOutput(logits=logits).log_probabilities().argmax(1), logits.argmax(1))


def test_autocast_does_not_touch_the_probabilities():
    stage = stage_of_queries()
    expected = stage.log_probabilities()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(stage.log_probabilities(), expected)


def test_predict_is_the_full_resolution_stage():
    model, image = tiny().eval(), torch.randn(2, 1, 8, 12, 8)
    with torch.no_grad():
        assert torch.equal(model.predict(image), model(image).stages[0].log_probabilities())
        assert model.predict(image).shape == (2, 3, 8, 12, 8)
        assert torch.equal(model.train()(image).stages[0].masks, model.eval()(image).stages[0].masks)


@pytest.mark.parametrize("call", [StageOutput.log_probabilities, lambda stage: stage.spatial])
def test_a_stage_that_holds_nothing(call):
    with pytest.raises(JointError, match="neither logits nor masks"):
        call(StageOutput())


def test_masks_without_classes():
    with pytest.raises(JointError, match="either logits, or masks with class logits"):
        StageOutput(masks=torch.zeros(1, 2, 2, 2, 2)).log_probabilities()


def test_resize_is_by_voxel_centres_and_the_identity_where_the_size_is_right():
    x = torch.arange(4.0).view(1, 1, 1, 1, 4)
    assert resize(x, (1, 1, 4)) is x
    assert resize(x, (1, 1, 2)).flatten().tolist() == [0.5, 2.5]


def test_full_precision_where_there_is_no_autocast():
    with full_precision(torch.empty(1, device="meta")):
        pass
    with torch.autocast("cpu", torch.bfloat16):
        a: Tensor = torch.randn(2, 2)
        assert (a @ a).dtype == torch.bfloat16
        with full_precision(a):
            assert (a @ a).dtype == torch.float32


# --- what a query head looks at


def test_token_grids_halve_the_finest_axis_in_mm():
    assert token_grid((8, 16, 16), (8.0, 16.0, 16.0), 10_000) == (8, 16, 16)
    assert token_grid((8, 16, 16), (24.0, 16.0, 16.0), 512) == (8, 8, 8)
    assert token_grid((5, 7, 9), (5.0, 7.0, 9.0), 1) == (1, 1, 1)
    for size in [(64, 160, 160), (1, 512, 300), (33, 1, 7)]:
        grid = token_grid(size, (float(size[0] * 3), float(size[1]), float(size[2])), 4096)
        assert grid[0] * grid[1] * grid[2] <= 4096
        assert all(1 <= g <= n for g, n in zip(grid, size, strict=True))


@pytest.mark.parametrize("mode", ["off", "hard", "soft"])
def test_the_mask_prior_says_where_queries_look(mode):
    head: Any = tiny(model__head__masked_attention=mode).head
    masks = torch.full((1, 3, 2, 2, 2), -5.0)
    masks[0, 0, 0] = 5  # the upper half; queries 1 and 2 see nothing
    masks[0, 2] = torch.tensor([-5.0, 1e-3])
    prior = head._prior([StageOutput(masks=masks.requires_grad_())], (2, 2, 2))
    if mode == "off":
        assert prior is None
        return
    assert prior.shape == (1, 3, 8)
    assert not prior.requires_grad
    if mode == "hard":
        assert prior[0].tolist() == [[True] * 4 + [False] * 4, [True] * 8, [False, True] * 4]
    else:
        torch.testing.assert_close(prior[0].exp(), masks[0].detach().flatten(1).sigmoid())
    assert head._prior([], (2, 2, 2)) is None


def test_shared_queries_pass_from_stage_to_stage_and_own_ones_do_not():
    image = torch.randn(1, 1, 8, 12, 8)
    for kind, count in (("shared", 1), ("per_stage", 2)):
        model: Any = tiny(model__head__queries=kind, model__head__masked_attention="off")
        assert len(model.head.decoder.queries) == count
        before = model(image).stages
        with torch.no_grad():
            model.head.decoder.blocks[0].ffn[0].weight.add_(1)  # the lowest stage's block
        after = model(image).stages
        assert not torch.equal(before[1].queries, after[1].queries)
        assert torch.equal(before[0].queries, after[0].queries) == (kind == "per_stage")


def test_instances_need_spare_queries_and_matching():
    changes: dict[str, Any] = {"data.instances": "components"}
    with pytest.raises(JointError, match=r"3 queries for 3 labels, but data\.instances tells several objects"):
        build.model_of(zoo.load_recipe("maskmed_hippocampus_cpu", changes))
    changes["model.head.num_queries"] = 8
    assert build.model_of(zoo.load_recipe("maskmed_hippocampus_cpu", changes)).head.num_queries == 8
    with pytest.raises(JointError, match="'assigner: fixed' takes no instances; write 'hungarian'"):
        build.model_of(zoo.load_recipe("maskmed_hippocampus_cpu", changes | {"model.loss.assigner": "fixed"}))
    dense = zoo.load_recipe("pointwise_hippocampus_cpu", {"data.instances": "components"})
    assert build.model_of(dense).head.num_queries is None
