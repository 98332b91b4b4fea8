"""A case as the network sees it, and its way back, against nnU-Net's preprocessor and export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from maskmed_zoo.data import resample
from maskmed_zoo.data.case import load_case
from maskmed_zoo.data.crop import uncropped
from maskmed_zoo.data.dataset import open_dataset
from maskmed_zoo.data.fingerprint import IntensityStats, fingerprint_dataset
from maskmed_zoo.data.image import geometry_of
from maskmed_zoo.data.preprocess import Preprocessing, crop_and_normalize
from maskmed_zoo.errors import DataError
from maskmed_zoo.inference.to_image import probabilities_to_labels
from maskmed_zoo.recipe.schema import DataRecipe
from tests.nnunet_oracle import Oracle

STATS = IntensityStats(40.0, 120.0, -150.0, 260.0)
MADE_UP: dict[str, dict[str, Any]] = {
    "isotropic": {"old": (1, 1, 1), "new": (1.4, 0.8, 1.1), "schemes": ("ct",)},
    "thick slices": {"old": (5, 0.8, 0.9), "new": (2.5, 1.1, 1.1), "schemes": ("zscore",)},
    "thick wanted": {"old": (1, 1, 1), "new": (4, 0.9, 1.2), "schemes": ("ct",)},
    "thick along x": {"old": (1, 1, 4), "new": (1.3, 0.8, 2), "schemes": ("none",)},
    "several channels": {
        "old": (2, 1, 1),
        "new": (1.55, 1.45, 0.95),
        "schemes": ("ct", "zscore", "rescale_to_0_1", "none"),
    },
    "skull cut": {"old": (2, 1, 1), "new": (1.55, 1.45, 0.95), "schemes": ("zscore", "zscore"), "mask": True},
    "skull cut, thick": {"old": (6, 1, 1), "new": (3, 1.5, 1.2), "schemes": ("zscore", "ct"), "mask": True},
    "same spacing": {"old": (2, 1, 1), "new": (2, 1, 1), "schemes": ("zscore",)},
    "color": {"old": (1, 1, 1), "new": (0.8, 1.2, 1), "schemes": ("rgb_to_0_1",)},
}


def made_up(schemes: tuple[str, ...], *, is_framed: bool) -> tuple[np.ndarray, np.ndarray]:
    """An image (c z y x) and labels (z y x), perhaps in a frame of zeros with a ragged border."""
    rng = np.random.default_rng(len(schemes))
    shape = (18, 29, 33)
    smooth = ndimage.gaussian_filter(rng.normal(size=(len(schemes), *shape)), (0, 1.5, 2, 2))
    image = (smooth / smooth.std() * 60 + 120).astype(np.float32)
    if "rgb_to_0_1" in schemes:
        image = image.clip(0, 255)
    fields = ndimage.gaussian_filter(rng.normal(size=shape), 2.5)
    labels = np.digitize(fields / fields.std(), [0.3, 0.9, 1.5]).astype(np.int16)
    if is_framed:
        inside = np.asarray(ndimage.gaussian_filter(rng.normal(size=shape), 3) > -0.02)
        inside[:3], inside[:, -6:], inside[..., :4] = False, False, False
        image[:, ~inside] = 0
        labels[~np.asarray(ndimage.binary_erosion(inside), bool)] = 0
    return image, labels


def check(image: np.ndarray, labels: np.ndarray, spacing: Any, how: Preprocessing, names: dict[str, int]) -> None:
    """That image and labels, and labels of probabilities put back, are nnU-Net's."""
    statistics = [stats.to_dict() for stats in how.fingerprint]
    oracle = Oracle(how.spacing, how.schemes, statistics, names, use_mask_for_norm=how.use_mask_for_norm)
    theirs, their_labels, properties = oracle.preprocess(image, labels, spacing)
    geometry = geometry_of(image, spacing=spacing)
    ours = crop_and_normalize(image, labels, geometry, how, values=2)
    found = ours.image()
    assert found.shape == theirs.shape
    for one, other in zip(found, theirs, strict=True):
        assert np.abs(one - other).max() <= 1e-3 * max(other.std(), 1e-6)
    assert (ours.resampled_labels() == their_labels).mean() >= 0.999
    rng = np.random.default_rng(1)
    scores = ndimage.gaussian_filter(rng.normal(size=(len(names), *found.shape[1:])), (0, 1, 1, 1))
    probabilities = torch.from_numpy(10 * scores).softmax(0).float()
    region = crop_and_normalize(image, None, geometry, how, values=2).region
    assert region == ours.region
    seen = probabilities_to_labels(probabilities, region.cropped, region.thick_back)
    back, exported = uncropped(seen, region.box, region.shape), oracle.export(probabilities.numpy(), properties)
    assert back.shape == exported.shape == image.shape[1:]
    assert (back == exported).mean() >= 0.999


@pytest.mark.parametrize("is_framed", [False, True])
@pytest.mark.parametrize("name", MADE_UP)
def test_made_up_cases_are_those_of_nnunet(name, is_framed, monkeypatch):
    case = MADE_UP[name]
    monkeypatch.setattr(resample, "CHUNK", 5000)
    image, labels = made_up(case["schemes"], is_framed=is_framed)
    how = Preprocessing(case["new"], case["schemes"], (STATS,) * len(image), case.get("mask", False))
    check(image, labels, case["old"], how, {"background": 0, "a": 1, "b": 2, "c": 3})


@pytest.mark.parametrize(
    ("dataset", "count", "spacing"),
    [
        ("Dataset004_Hippocampus", 10, (1.0, 1.0, 1.0)),
        ("Dataset004_Hippocampus", 2, (0.7, 1.3, 0.9)),
        ("Dataset101_HeadNeckCT", 5, (5.0, 5.0, 5.0)),
    ],
)
def test_real_cases_are_those_of_nnunet(real_data: Path, dataset: str, count: int, spacing: Any):
    opened = open_dataset(real_data / dataset)
    some = opened.cases[:count]
    stats = fingerprint_dataset(opened, some).intensities
    how = Preprocessing.of(DataRecipe(spacing=spacing, patch_size=(8, 8, 8)), opened.channels, stats)
    for case in some:
        image, labels, geometry = load_case(case, opened)
        assert labels is not None
        check(image, labels, geometry.spacing, how, dict(opened.labels))


def test_without_labels_the_image_is_the_same():
    image, labels = made_up(("zscore",), is_framed=True)
    labels[:] = np.where(image[0] != 0, labels, 0)
    how = Preprocessing((1, 1, 1), ("zscore",), use_mask_for_norm=True)
    geometry = geometry_of(image, spacing=(2, 1, 1))
    with_labels, without = (crop_and_normalize(image, each, geometry, how, values=2) for each in (labels, None))
    np.testing.assert_array_equal(with_labels.image(), without.image())
    assert without.labels is None
    assert with_labels.labels is not None
    assert (with_labels.labels == -1).any()
    with pytest.raises(ValueError, match="no labels"):
        without.resampled_labels()


def test_refusals():
    image, geometry = np.ones((1, 4, 4, 4), np.float32), geometry_of(np.ones((4, 4, 4)), spacing=(1, 1, 1))
    for how, words in (
        (Preprocessing((1, 1, 1), ("zscore", "zscore")), "1 channels, expected 2"),
        (Preprocessing((1, 1, 1), ("ct",)), "needs a fingerprint of 1 channels"),
        (Preprocessing((1, 1, 1), ("ct",), (STATS, STATS)), "needs a fingerprint of 1 channels"),
        (Preprocessing((0.001, 1, 1), ("zscore",)), r"4 x 4 x 4 voxels .* correct the voxel size in the file"),
    ):
        with pytest.raises(DataError, match=words):
            crop_and_normalize(image, None, geometry, how, values=2)
    with pytest.raises(DataError, match="image: channel 0 has values -1"):
        crop_and_normalize(-image, None, geometry, Preprocessing((1, 1, 1), ("rgb_to_0_1",)), values=2)


def test_the_key_counts_statistics_of_ct_channels_alone():
    one, two = (Preprocessing((1, 1, 1), ("zscore",), (IntensityStats(mean, 1, 0, 1),)).key() for mean in (0, 1))
    assert one == two
    one, two = (Preprocessing((1, 1, 1), ("ct",), (IntensityStats(mean, 1, 0, 1),)).key() for mean in (0, 1))
    assert one != two
