"""Resampling against independent oracles, normalisation written out, padding undone."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import (
    channel_name_to_normalization_mapping,
    get_normalization_scheme,
)
from torch.nn import functional as F

from maskmed_zoo.data.fingerprint import IntensityStats, fingerprint
from maskmed_zoo.data.normalize import BY_NAME, normalize, schemes
from maskmed_zoo.data.resample import resample_image, resample_labels, target_shape
from maskmed_zoo.errors import DataError

few = settings(max_examples=40, deadline=None)
sizes = st.tuples(*[st.integers(1, 9)] * 3)


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
    np.testing.assert_array_equal(resample_image(image, (1, 1, 1), (1.01, 1, 0.99)), before)
    assert resample_image(image.astype(np.float64), (1, 1, 1), (1, 1, 1)).dtype == np.float32


@pytest.mark.parametrize("new", [(0.5, 0.8, 1.0), (1.6, 1.25, 2.0)])
def test_smooth_function_is_resampled_at_edge_aligned_positions(new):
    def wave(spacing, shape):
        z, y, x = np.meshgrid(*(centres(n, s) for n, s in zip(shape, spacing, strict=True)), indexing="ij")
        return np.sin(z / 6) * np.cos(y / 5 + 1) + x / 20

    shape = (40, 40, 40)
    out = resample_image(wave((1, 1, 1), shape)[None].astype(np.float32), (1, 1, 1), new)
    assert out.shape == (1, *target_shape(shape, (1, 1, 1), new))
    inside = (0, *[slice(n // 5, -(n // 5)) for n in out.shape[1:]])
    np.testing.assert_allclose(out[inside], wave(new, out.shape[1:])[inside[1:]], atol=2e-3)


def test_mean_position_of_a_blob_stays_in_mm():
    z, y, x = np.meshgrid(centres(24, 2), centres(30, 1), centres(30, 1.5), indexing="ij")
    blob = np.exp(-((z - 21) ** 2 + (y - 13) ** 2 + (x - 25) ** 2) / 16).astype(np.float32)
    old, new = (2, 1, 1.5), (1, 1.5, 1)
    out = resample_image(blob[None], old, new)[0]
    for axis, expected in enumerate((21, 13, 25)):
        mass = out.sum(axis=tuple(a for a in range(3) if a != axis))
        assert (mass * centres(len(mass), new[axis])).sum() / mass.sum() == pytest.approx(expected, abs=0.02)


def test_no_overshoot_and_channels_stay_apart():
    image = np.zeros((2, 12, 12, 12), np.float32)
    image[0, 6:] = -1000
    image[1] = 5
    out = resample_image(image, (1, 1, 1), (0.7, 0.7, 0.7))
    assert out[0].min() == -1000
    assert out[0].max() == 0
    np.testing.assert_allclose(out[1], 5, rtol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_thick_axis_repeats_or_drops_whole_slices(axis):
    rng = np.random.default_rng(1)
    image = np.moveaxis(rng.normal(size=(5, 8, 8)).astype(np.float32), 0, axis)[None]
    thick, fine = [1.0] * 3, [1.0] * 3
    thick[axis], fine[axis] = 4.0, 2.0
    doubled = resample_image(image, thick, fine)
    np.testing.assert_array_equal(doubled, np.repeat(image, 2, axis=axis + 1))
    # and the other way about: the wanted spacing is the anisotropic one
    np.testing.assert_array_equal(resample_image(doubled, fine, thick), image)
    # in-plane, a slice of an anisotropic image is resampled by itself
    finer = [0.5] * 3
    finer[axis] = 4.0
    out = np.moveaxis(resample_image(image, thick, finer)[0], axis, 0)
    plane = np.moveaxis(image[0], axis, 0)[2]
    alone = resample_image(plane[None, None], (1, 1, 1), (1, 0.5, 0.5))[0, 0]
    np.testing.assert_allclose(out[2], alone, atol=1e-6)


def test_ratio_of_exactly_three_and_two_thick_axes_are_interpolated():
    ramp = np.arange(12, dtype=np.float32)[:, None, None] * np.ones((12, 4, 4), np.float32)
    for old, new in (((3, 1, 1), (1.5, 1, 1)), ((4, 4, 1), (2, 4, 1))):
        out = resample_image(ramp[None], old, new)[0, :, 0, 0]
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
    assert (out.shape, out.dtype) == (wanted, labels.dtype)
    scores = oracle_scores(labels, wanted)
    assert set(np.unique(out)) <= set(scores)
    best = np.max(list(scores.values()), axis=0)
    chosen = np.select([out == v for v in scores], list(scores.values()))
    np.testing.assert_allclose(chosen, best, atol=1e-4)  # any maximum: ties are tested below


def test_a_tie_goes_to_the_higher_label():
    labels = np.array([0, 3, 3, 2], np.uint8).reshape(4, 1, 1)
    assert resample_labels(labels, (2, 1, 1)).ravel().tolist() == [3, 3]


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
        np.testing.assert_array_less(np.abs(now - was), 0.1 * np.array(real))  # aligned centres would be off by more
        volume_ratio = (out == value).sum() * np.prod(real) / ((labels == value).sum() * np.prod(old))
        assert volume_ratio == pytest.approx(1, abs=0.04)


# --- intensities ------------------------------------------------------------------------------------------------------


def test_fingerprint_pools_all_cases_per_channel():
    rng = np.random.default_rng(2)
    samples = [rng.normal(size=(2, 500)).astype(np.float32) * 100, rng.normal(50, 9, size=(2, 30)), np.zeros((2, 0))]
    pooled = np.concatenate(samples, axis=1)
    stats = fingerprint(samples)
    assert len(stats) == 2
    for channel, values in zip(stats, pooled, strict=True):
        ordered = np.sort(values)
        assert channel.mean == pytest.approx(sum(values) / 530)
        assert channel.std == pytest.approx(np.sqrt(((values - values.mean()) ** 2).mean()))
        for got, share in ((channel.percentile_00_5, 0.005), (channel.percentile_99_5, 0.995)):
            place = share * 529
            low = int(place)
            assert got == pytest.approx(ordered[low] + (place - low) * (ordered[low + 1] - ordered[low]))
    assert tuple(IntensityStats.from_dict(json.loads(json.dumps(s.to_dict()))) for s in stats) == stats


@pytest.mark.parametrize("samples", [[], [np.zeros((1, 0))]])
def test_fingerprint_without_foreground(samples):
    with pytest.raises(DataError, match="no foreground voxel"):
        fingerprint(samples)


@pytest.mark.parametrize("values", [{"mean": 1}, {"mean": "x", "std": 1, "percentile_00_5": 0, "percentile_99_5": 1}])
def test_fingerprint_entries_are_checked(values):
    with pytest.raises(DataError, match="expected finite numbers mean, std, percentile_00_5, percentile_99_5"):
        IntensityStats.from_dict(values)


def test_schemes():
    assert schemes("auto", ("CT", "ct", "PET", "CTA", "T1")) == ("ct", "ct", "zscore", "zscore", "zscore")
    assert schemes("ct", ("MR", "x")) == ("ct", "ct")
    assert schemes("zscore", ("CT",)) == ("zscore",)


@pytest.mark.parametrize(
    "name", ["noNorm", "NONORM", "rescale_to_0_1", "rgb_to_0_1", "ct", "CT", "zscore", "T1", "PET"]
)
def test_each_channel_is_normalised_as_by_nnunet(name):
    rng = np.random.default_rng(5)
    image = rng.uniform(3, 250, (1, 7, 8, 9)).astype(np.float32)
    stats = IntensityStats(90.0, 40.0, 20.0, 200.0)
    theirs = get_normalization_scheme(name)(use_mask_for_norm=False, intensityproperties=stats.to_dict())
    scheme = schemes("auto", [name])
    whole = normalize(image, scheme, (stats,))
    np.testing.assert_allclose(whole[0], theirs.run(image[0].copy()), atol=2e-6)
    moments, extremes = (
        ((image.mean(dtype=np.float64),), (image.std(dtype=np.float64),)),
        ((image.min(),), (image.max(),)),
    )
    part = normalize(image[:, 2:4, :3], scheme, (stats,), moments=moments, extremes=extremes)
    np.testing.assert_allclose(part, whole[:, 2:4, :3], atol=1e-6)


def test_names_of_channels_mean_what_they_mean_to_nnunet():
    assert BY_NAME.keys() == channel_name_to_normalization_mapping.keys()
    flat = np.full((1, 3, 3, 3), 7, np.float32)
    assert not normalize(flat, ("rescale_to_0_1",), None).any()  # nothing to divide by
    for low, high in ((-1, 5), (0, 256)):
        colors = np.linspace(low, high, 27, dtype=np.float32).reshape(1, 3, 3, 3)
        with pytest.raises(DataError, match="'rgb_to_0_1' expects 0 … 255"):
            normalize(colors, ("rgb_to_0_1",), None)


def test_ct_and_zscore_written_out():
    rng = np.random.default_rng(3)
    image = np.stack([rng.normal(0, 500, (4, 5, 6)), rng.normal(1e4, 3, (4, 5, 6))]).astype(np.float32)
    before = image.copy()
    stats = (IntensityStats(40.0, 120.0, -900.0, 700.0), IntensityStats(0, 1, 0, 1))
    out = normalize(image, ("ct", "zscore"), stats)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(image, before)
    clipped = np.minimum(np.maximum(image[0].astype(np.float64), -900), 700)
    assert (clipped != image[0]).any()
    np.testing.assert_allclose(out[0], (clipped - 40) / 120, atol=1e-5)
    wide = image[1].astype(np.float64)
    np.testing.assert_allclose(out[1], (wide - wide.mean()) / wide.std(), atol=1e-3)


def test_a_patch_is_normalised_by_its_whole_case():
    image = np.random.default_rng(4).normal(7, 3, (2, 6, 6, 6)).astype(np.float32)
    moments = image.reshape(2, -1).mean(1, dtype=np.float64), image.reshape(2, -1).std(1, dtype=np.float64)
    whole = normalize(image, ("zscore", "zscore"), None)
    patch = normalize(image[:, 2:4, :3], ("zscore", "zscore"), None, moments=moments)
    np.testing.assert_array_equal(patch, whole[:, 2:4, :3])


def test_constant_image_is_finite_and_zero():
    assert not normalize(np.full((1, 3, 3, 3), 12.5), ("zscore",), None).any()
    stats = (IntensityStats(5.0, 0.0, 5.0, 5.0),)
    assert not normalize(np.full((1, 3, 3, 3), 12.5), ("ct",), stats).any()


def test_normalize_refusals():
    image = np.zeros((1, 2, 2, 2), np.float32)
    with pytest.raises(DataError, match="1 channels, expected 2"):
        normalize(image, ("zscore", "zscore"), None)
    for stats in (None, (IntensityStats(0, 1, 0, 1),) * 2):
        with pytest.raises(DataError, match="needs a fingerprint of 1 channels"):
            normalize(image, ("ct",), stats)


# --- padding ----------------------------------------------------------------------------------------------------------
