"""The runner's steps beside those of the package, which it does not import: each on its own, on made-up arrays."""

from __future__ import annotations

import ast
import json
import sys
import tracemalloc
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from maskmed_zoo.data.crop import nonzero_box
from maskmed_zoo.data.fingerprint import IntensityStats
from maskmed_zoo.data.image import geometry_of
from maskmed_zoo.data.preprocess import Preprocessing, crop_and_normalize
from maskmed_zoo.export import predict_onnx as runner
from maskmed_zoo.export.pipeline import Normalization, Windows, normalization
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
def test_labels_as_the_package(thick):
    logits = torch.randn(4, 7, 6, 11, generator=torch.Generator().manual_seed(3))
    probabilities = logits.mul(4).softmax(0)
    slices = np.moveaxis(probabilities.numpy(), 1, 0)
    for shape in [(13, 17, 9), (7, 6, 11), (3, 17, 11), (1, 1, 1)]:
        expected = probabilities_to_labels(probabilities, shape, thick)
        found = np.stack([one.argmax(0) for one in runner.to_image(slices, (7, 6, 11), shape, thick)])
        assert found.shape == expected.shape
        assert (found != expected).mean() < 1e-3  # ties


class MadeUp:
    """In the place of a network: 3 probabilities that depend on the voxel and on where in the window it lies."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def run(self, _: object, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        (windows,) = feed.values()
        place = np.indices(windows.shape[2:]).sum(0)
        made = np.stack([np.sin((k + 2) * windows[:, 0] + k * place) for k in range(3)], 1)
        return [log_softmax(made, 1).astype(np.float32)]


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """A runner of windows of 6 x 8 x 4 voxels."""
    windows = Windows(patch_size=(6, 8, 4), overlap=0.5, batch_size=2).model_dump(mode="json")
    steps = {"format": 2, "channels": ["CT"], "labels": {"background": 0, "a": 1, "b": 2}, "windows": windows}
    steps |= {"network": {"file": "network.onnx", "input": "image"}}
    (tmp_path / "pipeline.json").write_text(json.dumps(steps), encoding="utf-8")
    monkeypatch.setattr(runner.onnxruntime, "InferenceSession", MadeUp)
    return runner.Runner(tmp_path)


@pytest.mark.parametrize("size", [(17, 11, 9), (4, 20, 3), (6, 8, 4), (31, 5, 4)])
def test_slices_are_those_of_all_sums_at_once(size, made_up):
    image = np.random.default_rng(0).normal(size=(1, *size)).astype(np.float32)
    missing = [max(0, w - n) for w, n in zip((6, 8, 4), size, strict=True)]
    padded = np.pad(image, [(0, 0), *((m // 2, m - m // 2) for m in missing)])
    starts = [sliding_window.window_starts(n, w, 0.5) for n, w in zip(padded.shape[1:], (6, 8, 4), strict=True)]
    total, weights = np.zeros((3, *padded.shape[1:]), np.float32), runner.importance((6, 8, 4), 1 / 8, 1e-3)
    for z, y, x in product(*starts):
        place = (slice(None), slice(z, z + 6), slice(y, y + 8), slice(x, x + 4))
        total[place] += np.exp(MadeUp().run(None, {"image": padded[place][None]})[0][0]) * weights
    expected = (total / total.sum(0))[:, *(slice(m // 2, m // 2 + n) for m, n in zip(missing, size, strict=True))]
    np.testing.assert_array_equal(np.stack(list(made_up.slices(image)), 1), expected)


def test_sums_do_not_grow_with_the_length(made_up):
    peaks: list[int] = []
    for length in (20, 200):
        image = np.zeros((1, length, 40, 40), np.float32)
        tracemalloc.start()
        try:
            assert sum(1 for _ in made_up.slices(image)) == length
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]
    assert peaks[0] > 3 * 6 * 40 * 40 * 4


def test_labels_at_thresholds_as_the_package():
    steps = (Step(label="a", do="threshold", at=0.3), Step(label="c", do="threshold", at=0.6))
    values = {"background": 0, "a": 1, "b": 2, "c": 3}
    made = runner.Runner.__new__(runner.Runner)
    made.steps = {"labels": values, "postprocessing": [step.model_dump() for step in steps]}
    given = torch.randn(4, 7, 6, 11, generator=torch.Generator().manual_seed(3)).softmax(0)
    expected, shape = np.zeros((13, 17, 9), np.uint8), (13, 17, 9)
    give = into_labels(expected, 0, Postprocessing(steps, values).weights)
    ToImage(given.shape[1:], shape, None, 0, give).take(given)
    slices = list(runner.to_image(given.numpy().swapaxes(0, 1), given.shape[1:], shape, None))
    found = np.stack([(one * made.thresholds()).argmax(0) for one in slices])
    assert (found != expected).mean() < 1e-3  # ties
    assert (found != np.stack([one.argmax(0) for one in slices])).mean() > 0.1
    made = runner.Runner.__new__(runner.Runner)
    made.steps = {"labels": values, "postprocessing": [Step(label="a", do="fill_holes").model_dump()]}
    assert (made.thresholds() == 1).all()


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
