"""Separated objects: counted against a flood fill, resampled against the nearest voxel by brute force, and refused."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from maskmed_zoo.data.case import load_case
from maskmed_zoo.data.dataset import RawDataset, open_dataset
from maskmed_zoo.data.instances import components, read_instances, resample_instances
from tests.conftest import refusal, write_nifti


def flooded(labels: np.ndarray, values: tuple[int, ...]) -> set[frozenset[tuple[int, ...]]]:
    """The parts, each as its voxels, found by walking from voxel to voxel."""
    left = {tuple(place) for place in np.argwhere(np.isin(labels, values)).tolist()}
    parts: set[frozenset[tuple[int, ...]]] = set()
    while left:
        part, front = set(), [left.pop()]
        while front:
            place = front.pop()
            part.add(place)
            around = {tuple(np.add(place, step)) for step in itertools.product((-1, 0, 1), repeat=3)}
            near = {other for other in around & left if labels[other] == labels[place]}
            left -= near
            front += near
        parts.add(frozenset(part))
    return parts


def test_components_are_those_of_a_flood_fill() -> None:
    labels = np.random.default_rng(0).choice([0, 1, 2, 4], (6, 7, 8), p=[0.8, 0.1, 0.05, 0.05]).astype(np.int16)
    numbers = components(labels, (1, 2, 3))
    expected = flooded(labels, (1, 2))
    count = int(numbers.max())
    assert {frozenset(map(tuple, np.argwhere(numbers == n).tolist())) for n in range(1, count + 1)} == expected
    assert count == len(expected) > 10
    assert not numbers[labels == 4].any()


def test_corners_touch() -> None:
    labels = np.zeros((4, 4, 4), np.int16)
    labels[0, 0, 0] = labels[1, 1, 1] = labels[3, 3, 3] = 1
    labels[2, 2, 2] = 2
    numbers = components(labels, (1, 2))
    assert numbers[0, 0, 0] == numbers[1, 1, 1] != numbers[3, 3, 3]
    assert len({numbers[1, 1, 1], numbers[3, 3, 3], numbers[2, 2, 2]} - {0}) == 3


def test_resampled_numbers_are_those_of_the_nearest_voxel_of_the_label() -> None:
    rng = np.random.default_rng(1)
    labels = rng.choice([0, 1, 2], (6, 10, 12), p=[0.8, 0.1, 0.1]).astype(np.int16)
    numbers = np.where(labels > 0, np.arange(labels.size).reshape(labels.shape) + 1, 0).astype(np.int16)
    spacing = np.array([5.0, 1.0, 1.5])
    for shape in ((9, 13, 17), (4, 6, 7)):
        resampled = rng.integers(0, 3, shape).astype(np.int16)
        result = resample_instances(numbers, labels, resampled, (1, 2, 3), tuple(spacing))
        assert ((result > 0) == (resampled > 0)).all()
        scale = np.array(labels.shape) / shape
        for value in (1, 2):
            known, wanted = np.argwhere(labels == value), np.argwhere(resampled == value)
            distances = cdist(((wanted + 0.5) * scale - 0.5) * spacing, known * spacing)
            chosen = numbers[tuple(known.T)][None] == result[tuple(wanted.T)][:, None]
            assert np.allclose(np.where(chosen, distances, np.inf).min(1), distances.min(1))
    np.testing.assert_array_equal(resample_instances(numbers, labels, labels, (1, 2), tuple(spacing)), numbers)


@pytest.fixture
def numbered(dataset: Path) -> RawDataset:
    """The boxes with a map of numbers: left 5, right 6."""
    for path in sorted((dataset / "labelsTr").iterdir()):
        stored = nib.load(path)
        numbers = np.array([0, 5, 6], np.int16)[np.asarray(stored.dataobj)]
        write_nifti(dataset / "instancesTr" / path.name, numbers, stored.affine)
    return open_dataset(dataset)


def read(dataset: RawDataset) -> np.ndarray:
    case = dataset.cases[0]
    _, labels, geometry = load_case(case, dataset)
    assert labels is not None
    return read_instances(case, dataset, labels, geometry)


def test_a_map_is_read_onto_its_labels(numbered: RawDataset) -> None:
    _, labels, _ = load_case(numbered.cases[0], numbered)
    np.testing.assert_array_equal(read(numbered), np.array([0, 5, 6])[labels])


def test_maps_that_are_refused(numbered: RawDataset) -> None:
    path = numbered.root / "instancesTr" / "case_00.nii.gz"
    stored = nib.load(path)
    good = np.asarray(stored.dataobj)

    def told(array: np.ndarray, affine: np.ndarray = stored.affine) -> str:
        write_nifti(path, array, affine)
        message = refusal(read, numbered)
        assert message.startswith(f"{path}: ")
        return message

    spot = good.copy()
    spot[0, 0, 0] = 9
    assert "1 voxels have a number and no label or a label and no number, the first at" in told(spot)
    assert "a label and no number" in told(np.where(good == 6, 0, good))
    assert "number 5 is on several labels" in told(np.where(good == 6, 5, good))
    assert "number -3, expected 1, 2, …" in told(np.where(good == 6, -3, good).astype(np.int16))
    assert "not integers" in told(good + 0.5)
    assert "expected (9, 18, 18)" in told(good[:, :-1])
    assert "voxels lie up to" in told(good, stored.affine @ np.diag([1, 1, 1.1, 1]))
    path.unlink()
    assert "no such file" in refusal(read, numbered)
