"""Normalization against nnU-Net's schemes, and written out."""

from __future__ import annotations

import numpy as np
import pytest
from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import (
    channel_name_to_normalization_mapping,
    get_normalization_scheme,
)

from maskmed_zoo.data import resample
from maskmed_zoo.data.fingerprint import IntensityStats
from maskmed_zoo.data.normalize import BY_NAME, Normalized, moments, scaling_of, schemes
from maskmed_zoo.errors import DataError

STATS = IntensityStats(90.0, 40.0, 20.0, 200.0)


def normalized(image: np.ndarray, scheme, stats=STATS, mask=None) -> np.ndarray:
    return scaling_of(image, scheme, stats, mask).of(image, mask)


def test_schemes():
    assert schemes("auto", ("CT", "ct", "PET", "CTA", "T1")) == ("ct", "ct", "zscore", "zscore", "zscore")
    assert schemes("auto", ("noNorm", " zscore ")) == ("none", "zscore")
    assert schemes("ct", ("MR", "x")) == ("ct", "ct")
    assert schemes(("ct", "none"), ("MR", "x")) == ("ct", "none")
    with pytest.raises(DataError, match=r"data.normalization has 1 schemes \(ct\), the data 2 channels \(MR, x\)"):
        schemes(("ct",), ("MR", "x"))


@pytest.mark.parametrize("name", ["noNorm", "NONORM", "rescale_to_0_1", "rgb_to_0_1", "ct", "CT", "zscore", "T1"])
@pytest.mark.parametrize("use_mask", [False, True])
def test_each_channel_is_normalized_as_by_nnunet(name, use_mask, monkeypatch):
    monkeypatch.setattr(resample, "CHUNK", 300)
    rng = np.random.default_rng(5)
    image, mask = rng.uniform(3, 250, (7, 8, 9)).astype(np.float32), rng.random((7, 8, 9)) < 0.7
    image[~mask] = 0
    theirs = get_normalization_scheme(name)(use_mask_for_norm=use_mask, intensityproperties=STATS.to_dict())
    expected = theirs.run(image.copy(), np.where(mask, 0, -1))
    (scheme,) = schemes("auto", [name])
    scaling = scaling_of(image, scheme, STATS, mask if use_mask else None)
    np.testing.assert_allclose(scaling.of(image, mask if use_mask else None), expected, atol=2e-6)
    view = Normalized(image, scaling, mask if use_mask else None)
    assert view.shape == image.shape
    np.testing.assert_allclose(view[2:5], expected[2:5], atol=2e-6)
    if use_mask and scheme == "zscore":
        assert not expected[~mask].any()


def test_names_of_channels_mean_what_they_mean_to_nnunet():
    assert BY_NAME.keys() == channel_name_to_normalization_mapping.keys()
    flat = np.full((3, 3, 3), 7, np.float32)
    assert not normalized(flat, "rescale_to_0_1").any()  # nothing to divide by
    for low, high in ((-1, 5), (0, 256)):
        colors = np.linspace(low, high, 27, dtype=np.float32).reshape(3, 3, 3)
        with pytest.raises(DataError, match=r"image has values .*'rgb_to_0_1' expects 0 … 255"):
            normalized(colors, "rgb_to_0_1")


def test_ct_and_zscore_written_out():
    rng = np.random.default_rng(3)
    ct, mr = rng.normal(0, 500, (4, 5, 6)).astype(np.float32), rng.normal(1e4, 3, (4, 5, 6)).astype(np.float32)
    before = ct.copy()
    out = normalized(ct, "ct", IntensityStats(40.0, 120.0, -900.0, 700.0))
    assert out.dtype == np.float32
    np.testing.assert_array_equal(ct, before)
    clipped = np.minimum(np.maximum(ct.astype(np.float64), -900), 700)
    assert (clipped != ct).any()
    np.testing.assert_allclose(out, (clipped - 40) / 120, atol=1e-5)
    wide = mr.astype(np.float64)
    np.testing.assert_allclose(normalized(mr, "zscore"), (wide - wide.mean()) / wide.std(), atol=1e-3)


def test_moments_are_exact_and_bounded(monkeypatch):
    monkeypatch.setattr(resample, "CHUNK", 1)
    values = np.random.default_rng(0).normal(1e4, 2, (30, 8, 9)).astype(np.float32)
    exact = values.astype(np.float64)
    np.testing.assert_allclose(moments(values), (exact.mean(), exact.std()), rtol=1e-12)
    mask = values > 1e4
    np.testing.assert_allclose(moments(values, mask), (exact[mask].mean(), exact[mask].std()), rtol=1e-10)
    assert moments(values, np.zeros_like(mask)) == (0.0, 0.0)


def test_constant_image_is_finite_and_zero():
    flat = np.full((3, 3, 3), 12.5, np.float32)
    assert not normalized(flat, "zscore").any()
    assert not normalized(flat, "ct", IntensityStats(12.5, 0.0, 12.5, 12.5)).any()


def test_ct_without_statistics():
    with pytest.raises(DataError, match="'ct' normalization needs a fingerprint"):
        scaling_of(np.zeros((2, 2, 2), np.float32), "ct", None)
