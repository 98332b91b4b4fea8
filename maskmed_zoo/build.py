"""From a recipe to a network, and the table that says what it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from maskmed_zoo.contracts import FeatureSpec
from maskmed_zoo.errors import JointError, RecipeError
from maskmed_zoo.model import SegmentationModel, build_loss, build_model, count_parameters
from maskmed_zoo.network_size import counting, made
from maskmed_zoo.ops.deformable import FLOP_FORMULAS
from maskmed_zoo.recipe import Recipe, by_keyword, load_recipe
from maskmed_zoo.recipe.schema import UnreadConfig
from maskmed_zoo.settings import WIDEST


def create(
    source: str | Path | Recipe, in_channels: int | None, num_classes: int | None, overrides: Mapping[str, Any]
) -> SegmentationModel:
    """See `maskmed_zoo.create`."""
    arguments = ("in_channels", "num_classes", "pretrained", "strict")
    recipe = load_recipe(source, by_keyword("create", overrides, arguments))
    return model_of(recipe, in_channels=in_channels, num_classes=num_classes)


def model_of(recipe: Recipe, *, in_channels: int | None = None, num_classes: int | None = None) -> SegmentationModel:
    """The network of a recipe; numbers given here stand above the recipe's.

    Raises `RecipeError` if neither states the channels or the labels, or if there are too few, and `JointError` where
    parts do not fit, or cannot tell instances apart where `data.instances` asks for it; `MemoryShortageError`
    where there is no memory for it.
    """
    data = recipe.data
    channels = in_channels if in_channels is not None else (len(data.channels) if data.channels else None)
    classes = num_classes if num_classes is not None else data.num_classes
    if channels is None or classes is None:
        missing = "data.channels" if channels is None else "data.labels"
        raise RecipeError(f"recipe '{recipe.name}' leaves {missing} to the data set; state it, or pass the number")
    if not (1 <= channels <= WIDEST and 2 <= classes <= WIDEST):
        raise RecipeError(
            f"expected 1 … {WIDEST} channels and 2 … {WIDEST} classes, background counted, got {channels} and {classes}"
        )
    make = partial(
        build_model,
        recipe.model,
        in_channels=channels,
        num_classes=classes,
        spacing=data.spacing,
        class_names=data.labels.names if data.labels and classes == data.num_classes else None,
        channel_names=data.channels if data.channels and channels == len(data.channels) else None,
    )
    model = made(make)
    if data.instances is not None:
        _check_instances(recipe, model)
    return model


def _check_instances(recipe: Recipe, model: SegmentationModel) -> None:
    if isinstance(recipe.model.loss, UnreadConfig):
        return
    build_loss(recipe.model, num_classes=model.num_classes, ignore_label=None).check_instances()
    queries = model.head.num_queries
    if model.head.gives == "queries" and queries is not None and queries <= model.num_classes:
        raise JointError(
            f"head has {queries} queries for {model.num_classes} labels, but data.instances tells several objects of a "
            f"label apart, and each needs a query; set model.head.num_queries to the most objects in a patch, and more"
        )


def network_facts(recipe: Recipe) -> dict[str, Any]:
    """Levels, stages, parameters and MACs of a recipe's network, counted without data on the meta device.

    Raises `JointError` where components or the patch do not fit.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton, which `create` has no use for

    with torch.device("meta"):
        model = model_of(recipe)
    model.encoder.out_spec.check_patch(recipe.data.patch_size)
    counter = FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS)
    groups = model.parameter_groups()
    with counting():
        image = torch.empty(1, model.in_channels, *recipe.data.patch_size)
        with counter:
            output = model.eval().requires_grad_(False)(image)
    loss = build_loss(recipe.model, num_classes=model.num_classes, ignore_label=None)
    stages = [
        {"shape": [*stage.spatial.shape[1:]], "weight": weight}
        for stage, weight in zip(output.stages, loss.stage_weights(len(output.stages)), strict=True)
    ]
    return {
        "name": recipe.name,
        "components": {k: str(v["kind"]) for k, v in recipe.model.model_dump().items()},
        "num_classes": model.num_classes,
        "class_names": list(model.class_names) if model.class_names else None,
        "in_channels": model.in_channels,
        "num_queries": model.head.num_queries,
        "patch_size": list(recipe.data.patch_size),
        "levels": _rows(model.encoder.out_spec, recipe),
        "stages": stages,
        "parameters": {k: count_parameters(p.parameters()) for k, p in model.parts().items()},
        "total_parameters": count_parameters(model.parameters()),
        "parameter_groups": {k: count_parameters(v) for k, v in groups.items()},
        "macs": counter.get_total_flops() // 2,
    }


def _rows(spec: FeatureSpec, recipe: Recipe) -> list[dict[str, Any]]:
    return [
        {"channels": c, "stride": list(s), "size": list(size)}
        for c, s, size in zip(spec.channels, spec.strides, spec.sizes(recipe.data.patch_size), strict=True)
    ]
