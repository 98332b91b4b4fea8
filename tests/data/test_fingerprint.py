"""Crop and fingerprint against nnU-Net's, and what is kept of a case between two readings."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero

from maskmed_zoo.data import fingerprint as module
from maskmed_zoo.data.case import load_case
from maskmed_zoo.data.case_facts import LIMIT, facts_of
from maskmed_zoo.data.crop import mark_outside, nonzero_box, nonzero_mask, uncropped
from maskmed_zoo.data.dataset import RawDataset, open_dataset
from maskmed_zoo.data.fingerprint import DatasetFingerprint, fingerprint_dataset
from maskmed_zoo.errors import DataError

SIZES = {"a": 10, "b": 24, "c": 12}
OFFSETS = {"a": 0, "b": 300, "c": -50}


@pytest.fixture
def dataset(tmp_path: Path) -> RawDataset:
    """Three cases of very different size and intensity, in a frame of zeros, with voxels to be ignored."""
    root = tmp_path / "Dataset900_Toy"
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    affine = np.diag([0.8, 0.8, 2.5, 1.0])
    for seed, (name, size) in enumerate(SIZES.items()):
        rng, shape = np.random.default_rng(seed), (size + 7, size + 5, size)
        labels = np.zeros(shape, np.uint8)
        labels[4:-5, 3:-4, 1:-1] = rng.integers(0, 4, (size - 2, size - 2, size - 2))
        for channel in range(2):
            values = np.zeros(shape, np.float32)
            values[4:-3, 3:-2] = rng.normal(OFFSETS[name], 40, (size, size, size)) + 20 * labels[4:-3, 3:-2]
            values[5, 6, 7] = 0  # a hole
            nib.save(nib.Nifti1Image(values, affine), root / "imagesTr" / f"{name}_{channel:04d}.nii.gz")
        nib.save(nib.Nifti1Image(labels, affine), root / "labelsTr" / f"{name}.nii.gz")
    content = {"channel_names": {"0": "CT", "1": "MR"}, "labels": {"background": 0, "x": 1, "y": 2, "ignore": 3}}
    (root / "dataset.json").write_text(json.dumps(content | {"file_ending": ".nii.gz", "numTraining": 3}))
    return open_dataset(root)


def nnunets(dataset: RawDataset, count: int = 50_000) -> tuple[list[dict[str, float]], list[tuple[int, ...]], float]:
    """What nnU-Net's extractor makes of a data set: statistics per channel, shapes after crop, median relative size."""
    results = [
        DatasetFingerprintExtractor.analyze_case(
            [str(path) for path in case.images], str(case.label), NibabelIOWithReorient, count
        )
        for case in dataset.cases
    ]
    drawn = [np.concatenate([r[2][channel] for r in results]) for channel in range(len(dataset.channels))]
    names = ("percentile_00_5", "median", "percentile_99_5")
    stats = [
        dict(zip(names, np.percentile(v, (0.5, 50, 99.5)), strict=True))
        | {"mean": v.mean(dtype=float), "std": v.std(dtype=float), "min": v.min(), "max": v.max()}
        for v in drawn
    ]
    return stats, [r[0] for r in results], float(np.median([r[4] for r in results]))


def check_against_nnunet(dataset: RawDataset, tolerance: float) -> None:
    found = fingerprint_dataset(dataset)
    stats, shapes, relative = nnunets(dataset)
    assert list(found.shapes_after_crop) == shapes
    assert found.median_relative_size == pytest.approx(relative)
    for ours, theirs in zip(found.intensities, stats, strict=True):
        numbers = ours.to_dict()
        assert numbers.keys() == theirs.keys()
        for name, value in theirs.items():
            allowed = theirs["std"] * (0.3 if name in ("min", "max") else tolerance)  # of the draws, not of all voxels
            assert numbers[name] == pytest.approx(value, abs=allowed), name


def test_made_up_cases_as_in_nnunet(dataset):
    check_against_nnunet(dataset, 0.02)


@pytest.mark.parametrize(("name", "count"), [("Dataset004_Hippocampus", 10), ("Dataset101_HeadNeckCT", 2)])
def test_real_cases_as_in_nnunet(real_data: Path, name: str, count: int):
    whole = open_dataset(real_data / name)
    few = RawDataset(whole.root, whole.name, whole.channels, whole.labels, whole.cases[:count])
    check_against_nnunet(few, 0.02)


def test_moments_are_exact_and_every_case_counts_the_same(dataset):
    found = fingerprint_dataset(dataset)
    means, variances = [], []
    for case in dataset.cases:
        image, labels, _ = load_case(case, dataset)
        assert labels is not None
        values = image[0][labels > 0].astype(np.float64)
        means.append(values.mean())
        variances.append(values.var())
    assert found.intensities[0].mean == pytest.approx(np.mean(means), rel=1e-9)
    assert found.intensities[0].std == pytest.approx(np.sqrt(np.mean(variances) + np.var(means)), rel=1e-9)
    halves = [fingerprint_dataset(dataset, cases) for cases in (dataset.cases[:1], dataset.cases[1:])]
    assert DatasetFingerprint.merged(halves).intensities == found.intensities


@pytest.mark.parametrize("channels", [(1, 2), (2, 1)])
def test_cases_of_other_channels_have_no_statistics_together(channels):
    labels = np.ones((4, 4, 4), np.int16)
    cases = tuple(facts_of(np.ones((n, 4, 4, 4), np.float32), labels, (1, 1, 1)) for n in channels)
    with pytest.raises(DataError, match="1 and 2 channels"):
        _ = DatasetFingerprint(cases).intensities


def test_percentiles_of_many_voxels_are_those_of_all():
    rng = np.random.default_rng(0)
    image = rng.gamma(2, 100, (1, 50, 50, 50)).astype(np.float32)
    labels = (rng.random((50, 50, 50)) < 0.6).astype(np.int16)
    facts = facts_of(image, labels, (1, 1, 1))
    values = image[0][labels > 0]
    assert facts.values.shape == (1, LIMIT)
    stats = DatasetFingerprint((facts,)).intensities[0]
    expected = np.percentile(values, (0.5, 50, 99.5))
    np.testing.assert_allclose(
        [stats.percentile_00_5, stats.median or 0, stats.percentile_99_5], expected, atol=2e-3 * values.std()
    )
    assert (stats.min, stats.max) == (values.min(), values.max())


def test_facts_are_kept_as_long_as_the_files_are_the_same(dataset, tmp_path, monkeypatch):
    read: list[str] = []
    monkeypatch.setattr(module, "load_case", lambda case, of: read.append(case.identifier) or load_case(case, of))
    folder = tmp_path / "cache"
    first = fingerprint_dataset(dataset, folder=folder, workers=2)
    again = fingerprint_dataset(dataset, folder=folder)
    assert sorted(read) == list(SIZES)
    assert again.intensities == first.intensities
    assert (again.spacings, again.shapes_after_crop) == (first.spacings, first.shapes_after_crop)
    label = nib.load(dataset.cases[1].label)
    nib.save(nib.Nifti1Image(np.minimum(np.asarray(label.dataobj), 1), label.affine), dataset.cases[1].label)
    assert fingerprint_dataset(dataset, folder=folder).intensities == first.intensities  # the same voxels are labelled
    kept = next(folder.glob("*/c.npz"))
    kept.write_bytes(kept.read_bytes()[:-40])
    assert fingerprint_dataset(dataset, folder=folder).intensities == first.intensities
    assert sorted(read) == ["a", "b", "b", "c", "c"]


def test_all_cases_that_cannot_be_read_are_told(dataset):
    for case in dataset.cases[:2]:
        case.images[0].write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a_0000.*b_0000.*2 of 3 cases"):
        fingerprint_dataset(dataset)


def test_without_foreground(dataset):
    empty = facts_of(np.ones((2, 3, 3, 3), np.float32), np.zeros((3, 3, 3), np.int16), (1, 1, 1))
    with pytest.raises(DataError, match="no foreground voxel in any labelled case"):
        _ = DatasetFingerprint((empty,)).intensities
    whole = fingerprint_dataset(dataset)
    assert DatasetFingerprint((*whole.cases, empty)).intensities == whole.intensities
    with pytest.raises(DataError, match="no labelled case"):
        _ = DatasetFingerprint(()).median_relative_size


@settings(max_examples=60, deadline=None)
@given(shape=st.tuples(*[st.integers(1, 9)] * 3), share=st.floats(0.01, 0.9), seed=st.integers(0, 10**6))
def test_the_crop_is_nnunets(shape, share, seed):
    rng = np.random.default_rng(seed)
    image = np.where(rng.random((2, *shape)) < share, rng.normal(size=(2, *shape)), 0).astype(np.float32)
    image[0, *(n // 2 for n in shape)] = 1
    labels = rng.integers(0, 3, shape).astype(np.int16)
    box = nonzero_box(image)
    ours = mark_outside(labels[box], nonzero_mask(image[(slice(None), *box)]))
    data, seg, bbox = crop_to_nonzero(image.copy(), labels[None].copy())
    assert [[s.start, s.stop] for s in box] == [list(b) for b in bbox]
    np.testing.assert_array_equal(image[(slice(None), *box)], data)
    np.testing.assert_array_equal(ours, seg[0])
    back = uncropped(labels[box], box, shape, 9)
    np.testing.assert_array_equal(back[box], labels[box])
    assert (back == 9).sum() >= np.prod(shape) - labels[box].size


def test_an_image_of_zeros_keeps_all_of_its_voxels():
    assert nonzero_box(np.zeros((1, 3, 4, 5), np.float32)) == (slice(0, 3), slice(0, 4), slice(0, 5))
