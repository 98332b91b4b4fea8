"""Several networks predict together: probabilities as averaged by hand, in the memory of one."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from maskmed_zoo.build import model_of
from maskmed_zoo.contracts import HeadOutput
from maskmed_zoo.errors import ArgumentError
from maskmed_zoo.inference import predictor as module
from maskmed_zoo.inference.predictor import Predictor
from maskmed_zoo.inference.stitcher import follow_labels
from maskmed_zoo.model import SegmentationModel
from maskmed_zoo.recipe import Recipe, load_recipe

QUERIES = {"data.normalization": "zscore"}
LOGITS = {"model.head.kind": "pointwise", "model.loss.kind": "ce_dice", "model.neck.kind": "skip", **QUERIES}
SPACING = (2.0, 1.0, 1.0)


def made(recipe: Recipe, count: int = 3) -> list[SegmentationModel]:
    torch.manual_seed(0)
    models = [model_of(recipe) for _ in range(count)]
    for parameter in (p for model in models for p in model.parameters()):
        parameter.data += 0.2 * torch.randn_like(parameter)  # else all say nearly the same
    return models


def image() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(1, 12, 24, 20)).astype(np.float32)


@pytest.mark.parametrize("overrides", [LOGITS, QUERIES], ids=["logits", "queries"])
@pytest.mark.parametrize("spacing", [SPACING, (3.0, 1.5, 1.0)])
def test_probabilities_are_the_mean(tiny_recipe: Path, overrides: dict[str, str], spacing: Any) -> None:
    recipe = load_recipe(tiny_recipe, overrides)
    models = made(recipe)
    each = [Predictor(recipe, model, device="cpu").probabilities(image(), spacing=spacing) for model in models]
    assert np.abs(each[0] - each[1]).mean() > 0.01
    together = Predictor(recipe, models, device="cpu")
    expected = np.mean(each, 0, dtype=np.float64)
    np.testing.assert_allclose(together.probabilities(image(), spacing=spacing), expected, atol=1e-6)
    prediction = together.segment(image(), spacing=spacing, probabilities=True)
    is_clear = np.diff(np.sort(expected, 0), axis=0)[-1] > 1e-5
    assert is_clear.mean() > 0.99
    np.testing.assert_array_equal(prediction.labels[is_clear], expected.argmax(0)[is_clear])
    np.testing.assert_allclose(np.stack([p for _, p in prediction.probabilities or ()]), expected, atol=1e-6)


def test_one_output_and_one_map_are_held(tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(tiny_recipe, LOGITS)
    models = made(recipe)
    alive: list[int] = []
    outputs: list[weakref.ref[HeadOutput]] = []
    maps: list[object] = []

    def says(_module: nn.Module, _inputs: object, output: HeadOutput) -> None:
        outputs.append(weakref.ref(output))

    for model in models:
        model.register_forward_pre_hook(lambda *_: alive.append(sum(ref() is not None for ref in outputs)))
        model.register_forward_hook(says)
    build = module.Segmented
    monkeypatch.setattr(module, "Segmented", lambda *a, **k: maps.append(build(*a, **k)) or maps[-1])
    Predictor(recipe, models, device="cpu").segment(image(), spacing=SPACING)
    assert alive == [0] * 3 * 8
    assert len(maps) == 1


def test_known_by_all_their_weights(tiny_recipe: Path) -> None:
    recipe = load_recipe(tiny_recipe, LOGITS)
    first, second, third = made(recipe)

    def known(*models: SegmentationModel) -> str:
        return Predictor(recipe, models, device="cpu").weights_sha256

    assert known(first, second) == known(second, first)
    assert known(first) == Predictor(recipe, first, device="cpu").weights_sha256
    assert (
        len({known(first), known(second), known(first, second), known(first, third), known(first, second, third)}) == 5
    )


def test_objects_of_queries_are_not_averaged_and_connected_parts_are_of_the_mean(tiny_recipe: Path) -> None:
    recipe = load_recipe(tiny_recipe, {"data.instances": "components", "model.head.num_queries": 6})
    with pytest.raises(ArgumentError, match=r"data\.instances: the objects of 3 networks cannot be averaged") as caught:
        Predictor(recipe, made(recipe), device="cpu")
    assert "\n" not in str(caught.value)
    logits = load_recipe(tiny_recipe, {**LOGITS, "data.instances": "components"})
    found = Predictor(logits, made(logits), device="cpu").segment(image(), spacing=SPACING)
    none = module.Instances(np.zeros(found.labels.shape, np.int32), (), ())
    expected = follow_labels(none, found.labels, SPACING)
    assert found.instances is not None
    assert len(expected.labels) > 1
    np.testing.assert_array_equal(found.instances.ids, expected.ids)


def test_mistakes_are_one_line(tiny_recipe: Path) -> None:
    recipe = load_recipe(tiny_recipe, LOGITS)
    two = made(recipe, 2)
    together = Predictor(recipe, two, device="cpu")
    for call, words in (
        (lambda: together.model, "2 networks together have no one output"),
        (lambda: together.run(torch.zeros(1, 1, 8, 16, 16)), "2 networks together have no one output"),
        (lambda: Predictor(recipe, [], device="cpu"), "model: expected a network, or several, got none"),
        (lambda: Predictor(recipe, cast(Any, [two[0], "runs/mine"]), device="cpu"), "model: expected a network"),
        (lambda: Predictor(recipe, cast(Any, "runs/mine"), device="cpu"), "model: expected a network"),
    ):
        with pytest.raises(ArgumentError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
