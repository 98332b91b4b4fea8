"""Mirroring at test time: against nnU-Net's own, symmetric where the image is, one batch and one output at a time."""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor, nn

from maskmed_zoo.build import model_of
from maskmed_zoo.contracts import HeadOutput
from maskmed_zoo.inference.mirroring import mirrored
from maskmed_zoo.inference.predictor import Predictor
from maskmed_zoo.recipe import load_recipe

LOGITS = {"model.head.kind": "pointwise", "model.loss.kind": "ce_dice", "data.normalization": "zscore"}
SPACING = (2.0, 1.0, 1.0)


def made(recipe_file: Path, **overrides: object) -> Predictor:
    """A network that says something else of a mirrored image."""
    torch.manual_seed(0)
    recipe = load_recipe(recipe_file, {**LOGITS, **overrides})
    model = model_of(recipe)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return Predictor(recipe, model, device="cpu")


def image(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("axes", [("z",), ("y", "x"), ("z", "y", "x")])
def test_windows_are_averaged_as_by_nnunet(tiny_recipe: Path, axes: tuple[str, ...]) -> None:
    """Whose network gives probabilities here, of which it takes the mean."""
    predictor = made(tiny_recipe)
    theirs = nnUNetPredictor(use_mirroring=True, device=torch.device("cpu"))
    theirs.allowed_mirroring_axes = tuple("zyx".index(axis) for axis in axes)  # type: ignore[assignment]
    theirs.network = lambda windows: predictor.run(windows).log_probabilities().exp()  # type: ignore[assignment]
    windows = torch.from_numpy(image(2, 1, 8, 16, 16))
    with torch.inference_mode():
        expected = theirs._internal_maybe_mirror_and_predict(windows)
        found = mirrored(predictor.run, axes)(windows).log_probabilities().exp()  # type: ignore[arg-type]
        plain = predictor.run(windows).log_probabilities().exp()
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert (plain - expected).abs().max() > 0.01
    assert mirrored(predictor.run, ()) == predictor.run


@pytest.mark.parametrize("axis", [1, 2])
def test_a_symmetric_image_has_symmetric_labels(tiny_recipe: Path, axis: int) -> None:
    """In several windows; without mirroring it has not, and along an axis that is not mirrored neither."""
    half = image(1, 12, 24, 20)
    symmetric = half + np.flip(half, axis)
    on = {"inference.mirror": True, "data.mirror_axes": ["z", "y"]}
    found = {}
    for name, overrides in (("on", on), ("off", {}), ("other", on | {"data.mirror_axes": ["zy"[2 - axis]]})):
        found[name] = made(tiny_recipe, **overrides).probabilities(symmetric, spacing=SPACING)
    np.testing.assert_allclose(found["on"], np.flip(found["on"], axis), atol=2e-6)
    for name in ("off", "other"):
        assert np.abs(found[name] - np.flip(found[name], axis)).max() > 0.01
    labels = made(tiny_recipe, **on).segment(symmetric, spacing=SPACING).labels
    is_clear = np.diff(np.sort(found["on"], 0), axis=0)[-1] > 1e-5
    np.testing.assert_array_equal(labels[is_clear], np.flip(labels, axis - 1)[is_clear])
    assert is_clear.mean() > 0.99


def test_batches_stay_as_large_and_one_output_is_held(tiny_recipe: Path) -> None:
    predictor = made(tiny_recipe, **{"inference.mirror": True, "inference.batch_size": 3})
    assert predictor.mirror_axes == ("z", "y")
    sizes: list[int] = []
    alive: list[int] = []
    outputs: list[weakref.ref[HeadOutput]] = []

    def asked(_module: nn.Module, inputs: tuple[Tensor]) -> None:
        sizes.append(len(inputs[0]))
        alive.append(sum(ref() is not None for ref in outputs))

    def says(_module: nn.Module, _inputs: object, output: HeadOutput) -> None:
        outputs.append(weakref.ref(output))

    predictor.model.register_forward_pre_hook(asked)
    predictor.model.register_forward_hook(says)
    predictor.segment(image(1, 12, 24, 20), spacing=SPACING)
    assert sizes == [3] * 4 + [3] * 4 + [2] * 4  # 8 windows, 4 copies of each
    assert max(alive) == 0


def test_objects_are_those_of_the_windows_as_they_are(tiny_recipe: Path) -> None:
    """They follow the labels, which are those of all copies."""
    queries = {"model.head.kind": "masked_query", "model.loss.kind": "set_criterion", "model.head.num_queries": 6}
    overrides = {**queries, "data.instances": "components", "inference.instance_threshold": 0.2}
    found = made(tiny_recipe, **overrides, **{"inference.mirror": True}).segment(image(1, 12, 24, 20), spacing=SPACING)
    assert found.instances is not None
    np.testing.assert_array_equal(found.instances.ids > 0, found.labels > 0)
