"""Label maps at thresholds: p of t or more with one label, the largest weighted probability with several, streamed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from maskmed_zoo.data.image import geometry_of
from maskmed_zoo.errors import ArgumentError
from maskmed_zoo.inference import predictor as module
from maskmed_zoo.inference import to_image
from maskmed_zoo.inference.nnunet import NNUNetPredictor, NNUNetWay
from maskmed_zoo.inference.postprocessing import Postprocessing, Step
from maskmed_zoo.inference.predictor import Predictor
from maskmed_zoo.recipe import load_recipe
from tests.inference.test_streaming import SHAPES, dense, framed, made

LEFT, RIGHT = Step(label="left", do="threshold", at=0.3), Step(label="right", do="threshold", at=0.6)


def after(predictor: Predictor, *steps: Step) -> Predictor:
    predictor.postprocessing = Postprocessing(steps, predictor.labels.foreground)
    return predictor


@pytest.mark.parametrize("at", [0.05, 0.3, 0.5, 0.7, 0.99])
def test_with_one_label_it_is_p_of_t_or_more(at: float) -> None:
    random = np.random.default_rng(0)
    p = random.random((9, 8, 7)).astype(np.float32)
    probabilities = torch.from_numpy(np.stack([1 - p, p], 1))  # slices come first
    labels = np.zeros(p.shape, np.uint8)
    weights = Postprocessing((Step(label="liver", do="threshold", at=at),), {"liver": 1}).weights
    to_image.into_labels(labels, 0, weights)(slice(0, 9), probabilities)
    is_clear = np.abs(p - at) > 1e-6
    assert is_clear.sum() > 500
    np.testing.assert_array_equal(labels[is_clear], (p >= at)[is_clear])


@pytest.mark.parametrize("name", ["y", "finer", "thick x"])
@pytest.mark.parametrize("chunk", [15000, 2**24])
def test_slab_by_slab_it_is_the_largest_weighted_probability(
    tiny_recipe: Path, name: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the dense way in 64 bits, an ensemble too; probabilities stay what they were."""
    monkeypatch.setattr(to_image, "CHUNK_ELEMENTS", chunk)
    shape, spacing = SHAPES[name]
    image = framed(shape)
    predictor = after(made(tiny_recipe, 2 if name == "y" else 1), LEFT, RIGHT)
    expected = dense(predictor, image, spacing)
    into, slabs, seen = np.empty(expected.shape, np.float32), np.zeros(expected.shape), np.zeros(shape, bool)
    slabs[0] = 1

    def take(place: Any, probabilities: torch.Tensor) -> None:
        assert not seen[place].any()
        seen[place] = True
        slabs[(slice(None), *place)] = probabilities.numpy()

    found = predictor.segment(image, spacing=spacing, into=into, slabs=take)
    np.testing.assert_allclose(into, expected, atol=1e-5)
    np.testing.assert_array_equal(slabs.astype(np.float32), into)
    weighted = expected * np.array([1, 0.7 / 0.3, 0.4 / 0.6]).reshape(-1, 1, 1, 1)
    best = np.sort(weighted, 0)
    is_clear = best[-1] - best[-2] > 1e-5
    assert is_clear.mean() > 0.99
    np.testing.assert_array_equal(found.labels[is_clear], weighted.argmax(0)[is_clear])
    assert (found.labels != expected.argmax(0)).any()


def test_half_is_the_most_probable_label_and_a_further_step_comes_after(tiny_recipe: Path) -> None:
    image, spacing = framed((20, 30, 25)), (2.0, 1.0, 1.0)
    predictor = made(tiny_recipe)
    plain = predictor.segment(image, spacing=spacing).labels
    half = [step.model_copy(update={"at": 0.5}) for step in (LEFT, RIGHT)]
    np.testing.assert_array_equal(after(predictor, *half).segment(image, spacing=spacing).labels, plain)
    at = after(predictor, LEFT).segment(image, spacing=spacing).labels
    gone = Step(label="left", do="remove_small", below_mm3=1e9)
    both = after(predictor, gone, LEFT).segment(image, spacing=spacing).labels
    how = Postprocessing((gone,), predictor.labels.foreground)
    np.testing.assert_array_equal(both, how.apply(at.copy(), spacing))
    assert len({labels.tobytes() for labels in (plain, at, both)}) == 3


def test_objects_follow_the_final_label_map_once(tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(tiny_recipe, {"data.instances": "components", "data.normalization": "zscore"})
    predictor = Predictor(recipe, made(tiny_recipe).models, device="cpu")
    image, spacing = framed((20, 30, 25)), (2.0, 1.0, 1.0)
    plain = predictor.segment(image, spacing=spacing).labels
    follow, calls = module.follow_labels, list[np.ndarray]()
    monkeypatch.setattr(
        module, "follow_labels", lambda seen, labels, by: calls.append(labels) or follow(seen, labels, by)
    )
    found = after(predictor, LEFT, Step(label="right", do="keep_largest")).segment(image, spacing=spacing)
    assert len(calls) == 1
    assert found.instances
    assert (found.labels != plain).any()
    np.testing.assert_array_equal(np.array([0, *found.instances.labels])[found.instances.ids], found.labels)
    assert found.instances.labels.count(2) == 1


def test_what_is_refused() -> None:
    for wrong in ({"do": "threshold"}, {"do": "fill_holes", "at": 0.3}, {"do": "threshold", "at": 1.0}):
        with pytest.raises(ValidationError):
            Step.model_validate({"label": "left"} | wrong)
    known = Postprocessing((LEFT, Step(label="left", do="fill_holes")), {"left": 1}).settings
    assert known == [
        {"label": "left", "do": "fill_holes", "below_mm3": None},
        {"label": "left", "do": "threshold", "below_mm3": None, "at": 0.3},
    ]


def test_nnunets_way_gives_no_slabs(tiny_recipe: Path) -> None:
    predictor = made(tiny_recipe)
    theirs = NNUNetPredictor(predictor.recipe, predictor.models, way=NNUNetWay(), device="cpu")
    image = framed((9, 20, 20))
    with pytest.raises(ArgumentError, match="slabs: nnU-Net's logits"):
        theirs.segment(image, geometry_of(image, spacing=(2.0, 1.0, 1.0)), slabs=lambda *_: None)
