"""The runner's steps beside those of the package, which it does not import: each on its own, on made-up arrays."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from maskmed_zoo.data.crop import nonzero_box
from maskmed_zoo.data.fingerprint import IntensityStats
from maskmed_zoo.data.image import geometry_of
from maskmed_zoo.data.preprocess import Preprocessing, crop_and_normalize
from maskmed_zoo.export import predict_onnx as runner
from maskmed_zoo.export.pipeline import Normalization, normalization
from maskmed_zoo.inference import sliding_window
from maskmed_zoo.inference.postprocessing import Postprocessing, Step
from maskmed_zoo.inference.to_image import ToImage, into_labels, probabilities_to_labels

STATS = IntensityStats(40.0, 120.0, -150.0, 260.0)
SPACINGS = [
    ((2.0, 1.0, 1.0), (1.5, 1.3, 0.8)),
    ((5.0, 1.0, 1.0), (1.0, 1.0, 1.0)),  # thick along z
    ((1.0, 1.0, 1.0), (1.0, 4.0, 1.0)),  # along y
    ((1.0, 1.0, 1.0), (4.0, 4.0, 1.0)),  # two coarsest axes, none is thick
    ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
]


def image() -> np.ndarray:
    """(2 z y x) with a frame of zeros, a hole, and color values."""
    rng = np.random.default_rng(0)
    made = rng.uniform(1, 255, (2, 9, 20, 17)).astype(np.float32)
    made[:, :2] = made[:, :, :, 15:] = 0
    made[:, 4:6, 8:11, 6:9] = 0
    return made


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scheme", ["ct", "zscore", "none", "rescale_to_0_1", "rgb_to_0_1"])
def test_normalizes_and_resamples_as_the_package(scheme, masked):
    given, count = image(), 0
    for spacing, wanted in SPACINGS:
        how = Preprocessing(wanted, (scheme, "zscore"), (STATS, STATS), masked)
        expected = crop_and_normalize(given, None, geometry_of(given, spacing=spacing), how, values=9).image()
        box, mask = runner.nonzero(given)
        assert box == nonzero_box(given)
        inside = np.asarray(runner.ndimage.binary_fill_holes(mask))
        steps = [normalization(s, STATS, in_mask=masked).model_dump() for s in how.schemes]
        thick = runner.thick_axis(spacing, wanted, 3.0)
        for channel, step, result in zip(given, steps, expected, strict=True):
            found = runner.normalized(channel[box], step, inside)
            found = runner.resample_image(found, result.shape, thick)
            np.testing.assert_allclose(found, result, rtol=1e-4, atol=1e-4)
            count += 1
    assert count == 2 * len(SPACINGS)


@pytest.mark.parametrize("thick", [None, 0, 1, 2])
def test_labels_as_the_package(thick, monkeypatch):
    monkeypatch.setattr(runner, "CHUNK", 3 * 17 * 9 * 4)  # several slabs
    logits = torch.randn(4, 7, 6, 11, generator=torch.Generator().manual_seed(3))
    probabilities = logits.mul(4).softmax(0)
    for shape in [(13, 17, 9), (7, 6, 11), (3, 17, 11)]:
        expected = probabilities_to_labels(probabilities, shape, thick)
        found = runner.labels_of(probabilities.numpy(), shape, thick)
        assert found.shape == expected.shape
        assert (found != expected).mean() < 1e-3  # ties


def test_labels_at_thresholds_as_the_package():
    steps = (Step(label="a", do="threshold", at=0.3), Step(label="c", do="threshold", at=0.6))
    values = {"background": 0, "a": 1, "b": 2, "c": 3}
    made = runner.Runner.__new__(runner.Runner)
    made.steps = {"labels": values, "postprocessing": [step.model_dump() for step in steps]}
    given = torch.randn(4, 7, 6, 11, generator=torch.Generator().manual_seed(3)).softmax(0)
    expected, shape = np.zeros((13, 17, 9), np.uint8), (13, 17, 9)
    give = into_labels(expected, 0, Postprocessing(steps, values).weights)
    ToImage(given.shape[1:], shape, None, 0, give).take(given)
    found = runner.labels_of(given.numpy(), shape, None, made.weights())
    assert (found != expected).mean() < 1e-3  # ties
    assert (found != runner.labels_of(given.numpy(), shape, None)).mean() > 0.1
    made.steps["postprocessing"] = [Step(label="a", do="fill_holes").model_dump()]
    assert made.weights() is None


def test_windows_as_the_package():
    for size, window, overlap in [(40, 16, 0.5), (16, 16, 0.5), (9, 16, 0.5), (97, 32, 0.3), (41, 10, 0.95)]:
        assert runner.starts_along(size, window, overlap) == sliding_window.window_starts(size, window, overlap)
    expected = sliding_window.importance((8, 15, 4)).numpy()
    np.testing.assert_allclose(runner.importance((8, 15, 4), 1 / 8, 1e-3), expected, rtol=1e-5)


def test_color_of_another_range_is_refused():
    how = normalization("rgb_to_0_1", None, in_mask=False)
    assert how == Normalization(scheme="rgb_to_0_1", low=None, high=None, shift=0, divisor=255, in_mask=False)
    with pytest.raises(runner.MistakeError, match=r"expected 0 … 255"):
        runner.normalized(np.full((2, 2, 2), 300.0), how.model_dump(), np.ones((2, 2, 2), bool))


def test_it_imports_four_packages_and_the_standard_library():
    tree = ast.parse(Path(runner.__file__).read_text(encoding="utf-8"))
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    tops = {str(name).partition(".")[0] for name in names}
    assert tops - set(sys.stdlib_module_names) == {"numpy", "scipy", "nibabel", "onnxruntime"}


def test_post_processes_as_the_package():
    """Blobs of three labels with holes and specks, some on the border."""
    rng, values = np.random.default_rng(0), {"background": 0, "a": 1, "b": 2, "c": 3}
    steps = (
        Step(label="b", do="remove_small", below_mm3=7.5),
        Step(label="a", do="keep_largest"),
        Step(label="a", do="fill_holes"),
        Step(label="c", do="fill_holes"),
    )
    changed = 0
    for _ in range(20):
        made = runner.ndimage.gaussian_filter(rng.normal(size=(4, 14, 15, 16)), (0, 1, 1, 1)).argmax(0).astype(np.uint8)
        expected = Postprocessing(steps, values).apply(made.copy(), (1.5, 1.0, 1.0))
        changed += int((expected != made).sum())
        for step in sorted(steps, key=lambda step: step.do != "fill_holes"):
            runner.postprocess(made, values[step.label], step.model_dump(), 1.5)
        np.testing.assert_array_equal(made, expected)
    assert changed > 100
    empty = np.zeros((3, 3, 3), np.uint8)
    runner.postprocess(empty, 1, steps[1].model_dump(), 1.5)
    assert not empty.any()
