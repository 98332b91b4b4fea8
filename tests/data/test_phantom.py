"""The phantom is a valid nnU-Net raw data set whose left/right pairs differ by place alone."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import label as components

from maskmed_zoo.data.case import load_case
from maskmed_zoo.data.dataset import open_dataset
from maskmed_zoo.data.formats import read_image, read_labels
from maskmed_zoo.data.image import check_same_geometry
from maskmed_zoo.data.instances import read_instances
from maskmed_zoo.data.phantom import (
    LABELS,
    LESION_LABELS,
    MIN_VOXELS,
    ORIENTATIONS,
    PART_LABELS,
    _case_seed,
    lesion_case,
    make_phantom_dataset,
    phantom_case,
)
from maskmed_zoo.errors import DataError

SMALL = (24, 28, 32)
SEEDS = range(4)


@pytest.fixture(scope="module")
def cases() -> list[tuple]:
    return [phantom_case(seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantom") / "Dataset001_Phantom"
    assert make_phantom_dataset(root, cases=6, seed=3, shape=SMALL, test_cases=2) == root
    return root


def _centre(labels: np.ndarray, name: str) -> np.ndarray:
    return np.argwhere(labels == LABELS[name]).mean(0)


def test_every_case_has_every_organ_at_realistic_density(cases) -> None:
    expected = {"liver": 105, "spleen": 125, "kidney_right": 160, "kidney_left": 160, "aorta": 170}
    for image, labels, spacing in cases:
        assert image.dtype == np.int16
        assert labels.dtype == np.uint8
        assert image.shape == labels.shape == (48, 56, 64)
        counts = np.bincount(labels.ravel(), minlength=len(LABELS))
        assert len(counts) == len(LABELS)
        assert counts.min() >= MIN_VOXELS
        assert counts[1:].sum() < 0.25 * labels.size
        assert 4.9 < spacing[0] < 5.6
        assert 4.0 < spacing[1] == spacing[2] < 4.5
        assert np.median(image[0, 0]) < -950
        for name, hu in expected.items():
            assert abs(np.median(image[labels == LABELS[name]]) - hu) < 25, name
        assert np.median(image[labels == LABELS["lung_left"]]) < -700
        assert np.median(image[labels == LABELS["spine"]]) > 250


def test_organs_lie_where_they_belong(cases) -> None:
    for _, labels, _ in cases:
        at = {name: _centre(labels, name) for name in LABELS}
        spine = at["spine"]
        for right, left in (("kidney_right", "kidney_left"), ("lung_right", "lung_left"), ("liver", "spleen")):
            assert at[right][2] > spine[2] > at[left][2]  # x grows to the right in RAS
        assert at["lung_left"][0] > at["spleen"][0] > at["kidney_left"][0] > at["bladder"][0]
        assert spine[1] < at["aorta"][1] < at["bladder"][1]


def test_left_and_right_do_not_differ_in_density_or_size(cases) -> None:
    for a, b in (("kidney_right", "kidney_left"), ("lung_right", "lung_left")):
        values = [
            [(image[labels == LABELS[n]].mean(), (labels == LABELS[n]).sum()) for n in (a, b)]
            for image, labels, _ in cases
        ]
        difference = np.array([[u[0] - v[0], np.log(u[1] / v[1])] for u, v in values])
        hu, log_size = np.abs(difference.mean(0))
        assert hu < 10
        assert log_size < np.log(1.5)


def test_compact_organs_are_one_piece(cases) -> None:
    for _, labels, _ in cases:
        for name in ("liver", "kidney_right", "bladder"):
            sizes = np.bincount(components(labels == LABELS[name])[0].ravel())[1:]
            assert sizes.max() > 0.9 * sizes.sum()


def test_seed_decides_every_voxel() -> None:
    first, again, other = (phantom_case(seed, SMALL) for seed in (5, 5, 6))
    assert first[2] == again[2]
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[0] != other[0]).any()
    assert (first[1] != other[1]).any()


def test_too_coarse_a_shape_is_refused() -> None:
    with pytest.raises(DataError, match="too coarse"):
        phantom_case(0, (8, 8, 8))


def test_folder_is_an_nnunet_raw_dataset(folder: Path) -> None:
    description = json.loads((folder / "dataset.json").read_text())
    assert description["labels"] == LABELS
    assert description["channel_names"] == {"0": "CT"}
    assert description["numTraining"] == 6
    assert description["file_ending"] == ".nii.gz"
    names = [f"phantom_{index:03d}" for index in range(6)]
    assert sorted(p.name for p in (folder / "imagesTr").iterdir()) == [f"{name}_0000.nii.gz" for name in names]
    assert sorted(p.name for p in (folder / "labelsTr").iterdir()) == [f"{name}.nii.gz" for name in names]
    assert len(list((folder / "imagesTs").iterdir())) == len(list((folder / "labelsTs").iterdir())) == 2
    (fold,) = json.loads((folder / "splits_final.json").read_text())
    assert sorted(fold["train"] + fold["val"]) == names
    assert len(fold["val"]) == 2


def test_files_differ_in_orientation_but_not_in_the_world(folder: Path) -> None:
    seen = set()
    for path in sorted((folder / "imagesTr").iterdir()):
        stored = nib.load(path)
        assert stored.get_data_dtype() == np.int16
        seen.add("".join(nib.aff2axcodes(stored.affine)))
        image = read_image(path)
        labels = read_labels(folder / "labelsTr" / path.name.replace("_0000", ""))
        check_same_geometry(image, labels)
        assert image.array.shape == SMALL
        assert image.spacing[0] > 9.9 > image.spacing[1] > 8
        right, left = (_centre(labels.array, f"kidney_{side}")[2] for side in ("right", "left"))
        assert right > left
        assert image.array[labels.array == LABELS["spine"]].mean() > 200
    assert seen == set(ORIENTATIONS)


def test_stored_voxels_are_the_generated_ones_and_cases_do_not_depend_on_their_number(
    folder: Path, tmp_path: Path
) -> None:
    steps: list[tuple[int, int]] = []
    other = make_phantom_dataset(
        tmp_path / "b", cases=2, seed=3, shape=SMALL, progress=lambda done, total: steps.append((done, total))
    )
    assert steps == [(1, 2), (2, 2)]
    assert not (other / "imagesTs").exists()
    for index in range(2):
        a, b = (read_image(root / "imagesTr" / f"phantom_00{index}_0000.nii.gz") for root in (folder, other))
        np.testing.assert_array_equal(a.array, b.array)
    train = [read_image(p).array for p in (folder / "imagesTr").iterdir()]
    for path in (folder / "imagesTs").iterdir():
        assert not any(np.array_equal(read_image(path).array, image) for image in train)


def test_wrong_requests_are_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DataError, match="at least 2 cases"):
        make_phantom_dataset(tmp_path, cases=1)
    with pytest.raises(DataError, match="not an empty folder"):
        make_phantom_dataset(folder, cases=2, shape=SMALL)


def test_lesions_are_numbered_and_sometimes_touch() -> None:
    counts, touching = set[int](), 0
    for seed in range(24):
        image, labels, numbers, spacing = lesion_case(seed, SMALL)
        assert image.shape == labels.shape == numbers.shape == SMALL
        assert spacing == pytest.approx((160 / 24, 200 / 28, 200 / 32))
        np.testing.assert_array_equal(numbers > 0, labels > 0)
        sizes = np.bincount(numbers.ravel())[1:]
        assert (sizes >= MIN_VOXELS).all()
        for number in range(1, len(sizes) + 1):
            (value,) = np.unique(labels[numbers == number])
            assert abs(np.median(image[numbers == number]) - {1: 180, 2: 10}[value]) < 80  # partial volume
            assert components(numbers == number, np.ones((3, 3, 3)))[1] == 1
        parts = sum(components(labels == value, np.ones((3, 3, 3)))[1] for value in (1, 2))
        touching += parts < len(sizes)
        counts.add(len(sizes))
    assert counts == set(range(7))
    assert 4 <= touching <= 20


def test_lesion_folder_has_maps_of_numbers(tmp_path: Path) -> None:
    root = make_phantom_dataset(tmp_path / "lesions", cases=3, test_cases=2, seed=1, shape=SMALL, content="lesions")
    dataset = open_dataset(root)
    assert dataset.labels == LESION_LABELS
    found = 0
    for case in dataset.cases:
        _, labels, geometry = load_case(case, dataset)
        assert labels is not None
        numbers = read_instances(case, dataset, labels, geometry)
        expected = lesion_case(_case_seed(1, "Tr", int(case.identifier[-3:])), SMALL)[2]
        np.testing.assert_array_equal(numbers, expected)
        found += numbers.max()
    assert found >= 1
    for folder in ("imagesTs", "labelsTs", "instancesTs"):
        assert len(list((root / folder).iterdir())) == 2
    with pytest.raises(DataError, match="too coarse for lesions"):
        lesion_case(0, (6, 6, 6))


def test_parts_are_alike_and_differ_by_place(tmp_path: Path) -> None:
    shape, densities = (40, 48, 56), list[list[float]]()
    for seed in range(8):
        image, labels, _ = phantom_case(seed, shape, "parts")
        counts = np.bincount(labels.ravel())
        assert len(counts) == len(PART_LABELS) == 34
        assert counts.min() >= MIN_VOXELS
        assert max(counts[PART_LABELS[f"adrenal_{side}"]] for side in ("right", "left")) < 40
        at = {name: np.argwhere(labels == number).mean(0) for name, number in PART_LABELS.items()}
        hu = {name: np.median(image[labels == number]) for name, number in PART_LABELS.items()}
        spine = [at[f"vertebra_{number}"] for number in range(1, 8)]
        assert (np.diff([z for z, _, _ in spine]) > 3).all(), "numbered upwards"
        densities.append([hu[f"vertebra_{number}"] for number in range(1, 8)])
        for number in range(1, 5):
            assert at[f"rib_{number}_right"][2] > at["vertebra_4"][2] > at[f"rib_{number}_left"][2]
        for side in ("right", "left"):
            assert (np.diff([at[f"rib_{number}_{side}"][0] for number in range(1, 5)]) > 1).all()
            assert at[f"lung_upper_{side}"][0] > at[f"lung_lower_{side}"][0]
        assert at["vena_cava"][2] > at["aorta"][2], "on the right of it"
        assert abs(hu["kidney_right"] - hu["kidney_left"]) < 25
    assert np.ptp(np.mean(densities, 0)) < 60, "of one tissue, whose texture has a standard deviation of 90 HU"
    root = make_phantom_dataset(tmp_path / "parts", cases=2, shape=shape, content="parts")
    assert open_dataset(root).labels == PART_LABELS
