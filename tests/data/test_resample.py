"""Resampling against independent oracles: nnU-Net's own, torch, smooth functions, and what stays in mm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape, resample_data_or_seg_to_shape
from scipy import ndimage
from torch.nn import functional as F

from maskmed_zoo.data import resample as module
from maskmed_zoo.data.resample import resample_image, resample_labels, target_shape, thick_axis

few = settings(max_examples=40, deadline=None)
sizes = st.tuples(*[st.integers(1, 9)] * 3)


def image_at(image: np.ndarray, old: Sequence[float], new: Sequence[float]) -> np.ndarray:
    """An image (c z y x) at another spacing."""
    shape = target_shape(image.shape[1:], old, new)
    result = np.empty((len(image), *shape), np.float32)
    for channel, out in zip(image, result, strict=True):
        resample_image(channel, out, shape, thick_axis(old, new))
    return result


def centres(count: int, spacing: float) -> np.ndarray:
    """Voxel centres in mm from the edge of the field of view."""
    return (np.arange(count) + 0.5) * spacing


@pytest.mark.parametrize(
    ("shape", "old", "new", "expected"),
    [
        ((10, 20, 30), (3, 1, 1), (1, 1, 1), (30, 20, 30)),
        ((5, 7, 9), (1, 1, 1), (2, 2, 2), (2, 4, 4)),  # 2.5, 3.5 and 4.5 go to the even neighbour, as in nnU-Net
        ((3, 4, 5), (1, 1, 1), (100, 1, 1), (1, 4, 5)),
    ],
)
def test_target_shape(shape, old, new, expected):
    assert target_shape(shape, old, new) == expected


# --- images -----------------------------------------------------------------------------------------------------------


def test_same_shape_leaves_values_alone():
    image = np.random.default_rng(0).normal(size=(2, 4, 5, 6)).astype(np.float32)
    before = image.copy()
    np.testing.assert_array_equal(image_at(image, (1, 1, 1), (1.01, 1, 0.99)), before)


@pytest.mark.parametrize("new", [(0.5, 0.8, 1.0), (1.6, 1.25, 2.0)])
def test_smooth_function_is_resampled_at_edge_aligned_positions(new):
    def wave(spacing, shape):
        z, y, x = np.meshgrid(*(centres(n, s) for n, s in zip(shape, spacing, strict=True)), indexing="ij")
        return np.sin(z / 6) * np.cos(y / 5 + 1) + x / 20

    shape = (40, 40, 40)
    out = image_at(wave((1, 1, 1), shape)[None].astype(np.float32), (1, 1, 1), new)
    assert out.shape == (1, *target_shape(shape, (1, 1, 1), new))
    inside = (0, *[slice(n // 5, -(n // 5)) for n in out.shape[1:]])
    np.testing.assert_allclose(out[inside], wave(new, out.shape[1:])[inside[1:]], atol=2e-3)


def test_mean_position_of_a_blob_stays_in_mm():
    z, y, x = np.meshgrid(centres(24, 2), centres(30, 1), centres(30, 1.5), indexing="ij")
    blob = np.exp(-((z - 21) ** 2 + (y - 13) ** 2 + (x - 25) ** 2) / 16).astype(np.float32)
    old, new = (2, 1, 1.5), (1, 1.5, 1)
    out = image_at(blob[None], old, new)[0]
    for axis, expected in enumerate((21, 13, 25)):
        mass = out.sum(axis=tuple(a for a in range(3) if a != axis))
        assert (mass * centres(len(mass), new[axis])).sum() / mass.sum() == pytest.approx(expected, abs=0.02)


def test_no_overshoot_and_channels_stay_apart():
    image = np.zeros((2, 12, 12, 12), np.float32)
    image[0, 6:] = -1000
    image[1] = 5
    out = image_at(image, (1, 1, 1), (0.7, 0.7, 0.7))
    assert out[0].min() == -1000
    assert out[0].max() == 0
    np.testing.assert_allclose(out[1], 5, rtol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_thick_axis_repeats_or_drops_whole_slices(axis):
    rng = np.random.default_rng(1)
    image = np.moveaxis(rng.normal(size=(5, 8, 8)).astype(np.float32), 0, axis)[None]
    thick, fine = [1.0] * 3, [1.0] * 3
    thick[axis], fine[axis] = 4.0, 2.0
    doubled = image_at(image, thick, fine)
    np.testing.assert_array_equal(doubled, np.repeat(image, 2, axis=axis + 1))
    # and the other way about: the wanted spacing is the anisotropic one
    np.testing.assert_array_equal(image_at(doubled, fine, thick), image)
    # in-plane, a slice of an anisotropic image is resampled by itself
    finer = [0.5] * 3
    finer[axis] = 4.0
    out = np.moveaxis(image_at(image, thick, finer)[0], axis, 0)
    plane = np.moveaxis(image[0], axis, 0)[2]
    alone = image_at(plane[None, None], (1, 1, 1), (1, 0.5, 0.5))[0, 0]
    np.testing.assert_allclose(out[2], alone, atol=1e-6)


def test_ratio_of_exactly_three_and_two_thick_axes_are_interpolated():
    ramp = np.arange(12, dtype=np.float32)[:, None, None] * np.ones((12, 4, 4), np.float32)
    for old, new in (((3, 1, 1), (1.5, 1, 1)), ((4, 4, 1), (2, 4, 1))):
        out = image_at(ramp[None], old, new)[0, :, 0, 0]
        np.testing.assert_allclose(out[8:16], (np.arange(24) / 2 - 0.25)[8:16], atol=1e-3)


# --- labels -----------------------------------------------------------------------------------------------------------


def oracle_scores(labels: np.ndarray, shape: tuple[int, ...]) -> dict[int, np.ndarray]:
    """Linear interpolation of each mask by torch, in float64."""
    return {
        int(v): F.interpolate(
            torch.from_numpy((labels == v).astype(np.float64))[None, None], size=shape, mode="trilinear"
        )[0, 0].numpy()
        for v in np.unique(labels)
    }


@few
@given(shape=sizes, wanted=sizes, seed=st.integers(0, 10**6))
def test_labels_follow_the_largest_interpolated_score(shape, wanted, seed):
    labels = np.random.default_rng(seed).choice([0, 1, 2, 7, 300], size=shape).astype(np.int16)
    before = labels.copy()
    out = resample_labels(labels, wanted)
    np.testing.assert_array_equal(labels, before)
    assert (out.shape, out.dtype) == (wanted, np.int16)
    scores = oracle_scores(labels, wanted)
    assert set(np.unique(out)) <= set(scores)
    best = np.max(list(scores.values()), axis=0)
    chosen = np.select([out == v for v in scores], list(scores.values()))
    np.testing.assert_allclose(chosen, best, atol=1e-4)  # any maximum: ties are tested below


def test_a_tie_goes_to_the_nearest_voxel_the_later_of_two():
    for values, expected in (([0, 3, 3, 2], [3, 2]), ([3, 0, 2, 3], [0, 3])):
        labels = np.array(values, np.int16).reshape(4, 1, 1)
        assert resample_labels(labels, (2, 1, 1)).ravel().tolist() == expected


def test_same_shape_leaves_labels_alone():
    labels = np.random.default_rng(0).integers(0, 5, (4, 5, 6)).astype(np.uint8)
    np.testing.assert_array_equal(resample_labels(labels, (4, 5, 6)), labels)


@pytest.mark.parametrize("new", [(1.0, 1.0, 1.0), (2.0, 0.7, 1.3), (3.5, 2.0, 2.0)])
def test_label_centroids_stay_in_mm(new):
    old, shape = (2.5, 0.9, 0.9), (30, 60, 60)
    z, y, x = np.meshgrid(*(centres(n, s) for n, s in zip(shape, old, strict=True)), indexing="ij")
    labels = np.zeros(shape, np.int16)
    middles = {1: (30, 20, 20), 2: (50, 36, 30)}
    for value, (a, b, c) in middles.items():
        labels[(z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2 < 12**2] = value
    wanted = target_shape(shape, old, new)
    out = resample_labels(labels, wanted)
    real = [n * s / m for n, s, m in zip(shape, old, wanted, strict=True)]
    for value in middles:
        was = (np.argwhere(labels == value) + 0.5).mean(axis=0) * old
        now = (np.argwhere(out == value) + 0.5).mean(axis=0) * real
        np.testing.assert_array_less(np.abs(now - was), 0.15 * np.array(real))  # aligned centres would be off by more
        volume_ratio = (out == value).sum() * np.prod(real) / ((labels == value).sum() * np.prod(old))
        assert volume_ratio == pytest.approx(1, abs=0.05)


# --- nnU-Net's --------------------------------------------------------------------------------------------------------

GRIDS = [
    ((1, 1, 1), (1.5, 0.7, 1.1), (20, 31, 17)),
    ((5, 1, 1), (2, 1.5, 0.8), (9, 31, 27)),  # thick before, along z, x and y
    ((1, 1, 5), (1, 1.5, 0.8), (19, 31, 7)),
    ((1, 5, 1), (1, 1.5, 0.8), (19, 8, 27)),
    ((1, 1, 1), (5, 1, 2), (29, 31, 27)),  # thick after
    ((3, 1, 1), (1, 1, 1), (7, 9, 5)),  # three times is not thick
    ((1, 4, 4), (2, 2, 2), (20, 6, 7)),  # two thick axes are none
    ((0.5, 0.5, 0.5), (2, 2, 2), (40, 52, 64)),
    ((2, 2, 2), (0.5, 0.5, 0.5), (10, 13, 16)),
    ((1, 1, 1), (1, 2, 1), (16, 16, 16)),  # ties
    ((5, 1, 1), (5, 0.7, 0.7), (9, 20, 20)),  # slices stay
    ((1, 1, 1), (3.3, 1, 1), (3, 20, 1)),
]


@pytest.mark.parametrize(("old", "new", "shape"), GRIDS)
@pytest.mark.parametrize("chunk", [1, module.CHUNK])
def test_images_and_labels_are_resampled_as_by_nnunet(old, new, shape, chunk, monkeypatch):
    """Whatever fits into memory at a time."""
    monkeypatch.setattr(module, "CHUNK", chunk)
    rng = np.random.default_rng(0)
    image = rng.normal(size=(1, *shape)).astype(np.float32)
    smooth = ndimage.gaussian_filter(rng.normal(size=shape), 2)
    labels = np.round(smooth * 14).clip(-1, 5).astype(np.int16)
    wanted = target_shape(shape, old, new)
    assert wanted == tuple(compute_new_shape(shape, old, new))
    theirs = resample_data_or_seg_to_shape(image, wanted, old, new, False, 3, 0, None)
    np.testing.assert_allclose(image_at(image, old, new), theirs, atol=1e-5)
    theirs = resample_data_or_seg_to_shape(labels[None], wanted, old, new, True, 1, 0, None)[0]
    assert (resample_labels(labels, wanted, thick_axis(old, new)) == theirs).mean() > 0.999


def test_only_the_slices_that_are_needed_are_read(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 1)

    class Watched:
        shape = (200, 6, 5)
        values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        most = 0

        def __getitem__(self, index: slice) -> np.ndarray:
            self.most = max(self.most, index.stop - index.start)
            return self.values[index]

    source, out = Watched(), np.empty((300, 6, 5), np.float32)
    resample_image(source, out, out.shape, None)
    assert 20 < source.most < 40
    np.testing.assert_allclose(out, image_at(source.values[None], (3, 1, 1), (2, 1, 1))[0], atol=1e-6)
    labels = Watched()
    labels.values = (labels.values > 0).astype(np.int16)
    resample_labels(labels, (300, 6, 5))
    assert labels.most <= 2


@few
@given(size=st.integers(1, 60), wanted=st.integers(1, 60), seed=st.integers(0, 10**6))
def test_a_spline_is_scipys(size, wanted, seed):
    """Within the range of the values, which SciPy does not keep."""
    image = np.random.default_rng(seed).normal(size=(size, 2, 1)).astype(np.float32)
    out = np.empty((wanted, 2, 1), np.float32)
    resample_image(image, out, out.shape, None)
    if size != wanted:
        theirs = ndimage.zoom(image, (wanted / size, 1, 1), order=3, mode="nearest", grid_mode=True)
        np.testing.assert_allclose(out, np.clip(np.asarray(theirs), image.min(), image.max()), atol=1e-5)
