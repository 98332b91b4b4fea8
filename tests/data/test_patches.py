"""Patches: a function of seed and index, the share of foreground, padding, and augmentation that keeps its promises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import pytest
import torch

from maskmed_zoo.data.augmentation import policy_of
from maskmed_zoo.data.augmentation.nnunet import NNUNet
from maskmed_zoo.data.augmentation.source import empty_outside
from maskmed_zoo.data.cache import CaseCache, Parts
from maskmed_zoo.data.crop import OUTSIDE
from maskmed_zoo.data.dataset import RawDataset, open_dataset
from maskmed_zoo.data.fingerprint import fingerprint_dataset
from maskmed_zoo.data.patches import PatchDataset
from maskmed_zoo.data.preprocess import Preprocessing
from maskmed_zoo.errors import DataError
from maskmed_zoo.labels import Labels
from maskmed_zoo.recipe.schema import DataRecipe

Stream = Literal["train", "validation"]
PLAIN = {"kind": "light", "spatial_probability": 0, "intensity_probability": 0}


def how(dataset: RawDataset, **settings: Any) -> Preprocessing:
    content: dict[str, Any] = {"patch_size": (8, 8, 8)} | settings
    data = DataRecipe(**content)
    return Preprocessing.of(data, dataset.channels, fingerprint_dataset(dataset).intensities)


def patches(dataset: Path, folder: Path, stream: Stream = "train", seed: int = 0, **changes: Any) -> PatchDataset:
    opened = open_dataset(dataset)
    settings: dict[str, Any] = {"spacing": (2, 1, 1), "patch_size": (8, 8, 8), "augmentation": PLAIN} | changes
    cache = CaseCache(folder, opened, how(opened, **settings), settings.get("instances"))
    cache.prepare(opened.cases)
    return joined([(cache, opened.cases)], opened.labels, seed=seed, stream=stream, **settings)


def joined(parts: Parts, labels: Labels, stream: Stream = "train", seed: int = 0, **settings: Any) -> PatchDataset:
    return PatchDataset(
        parts,
        DataRecipe(**settings),
        labels=labels,
        batch_size=2,
        seed=seed,
        stream=stream,
    )


def test_a_patch_depends_on_seed_and_index_alone(dataset: Path, tmp_path: Path) -> None:
    full = {"kind": "light", "spatial_probability": 1, "intensity_probability": 1}
    one = patches(dataset, tmp_path / "c", augmentation=full, mirror_axes=("z",))
    two = patches(dataset, tmp_path / "c", augmentation=full, mirror_axes=("z",))
    for index in (5, 0, 17):
        assert all(torch.equal(one[index][key], two[index][key]) for key in ("image", "labels"))
    assert not torch.equal(one[0]["image"], one[1]["image"])
    other = patches(dataset, tmp_path / "c", seed=1, augmentation=full)
    assert not torch.equal(one[0]["image"], other[0]["image"])


def test_shapes_types_and_normalisation(dataset: Path, tmp_path: Path) -> None:
    image, labels, annotated = patches(dataset, tmp_path / "c")[0].values()
    assert annotated.tolist() == [True, True, True]
    assert image.shape == (1, 8, 8, 8)
    assert labels.shape == (8, 8, 8)
    assert (image.dtype, labels.dtype) == (torch.float32, torch.int64)
    whole = patches(dataset, tmp_path / "c", patch_size=(9, 18, 20), foreground_oversampling=0)[1]["image"]
    opened = open_dataset(dataset)
    cache = CaseCache(tmp_path / "c", opened, how(opened, spacing=(2, 1, 1)))
    expected = [cache.load(case).image[:] for case in opened.cases]
    wide = [array for array in expected if array.shape[1:] == (9, 18, 20)]
    narrow = [np.pad(a, [(0, 0), (0, 0), (0, 0), (1, 1)]) for a in expected if a.shape[1:] == (9, 18, 18)]
    assert len(wide) == len(narrow) == 2
    assert any(np.allclose(whole.numpy(), array, atol=1e-5) for array in wide + narrow)


def test_colors_that_are_none_are_refused_before_training(dataset: Path, tmp_path: Path) -> None:
    description = json.loads((dataset / "dataset.json").read_text())
    (dataset / "dataset.json").write_text(json.dumps(description | {"channel_names": {"0": "rgb_to_0_1"}}))
    with pytest.raises(
        DataError, match=r"case_00_0000\.nii\.gz: channel 0 has values -.* 'rgb_to_0_1' expects 0 … 255"
    ):
        patches(dataset, tmp_path / "c")


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_foreground_share(share: float, dataset: Path, tmp_path: Path) -> None:
    drawn = patches(dataset, tmp_path / "c", patch_size=(2, 2, 2), foreground_oversampling=share)
    hits = np.mean([bool((drawn[index]["labels"] > 0).any()) for index in range(200)])
    if share:
        assert hits == 1.0
        labels = {int(value) for index in range(40) for value in drawn[index]["labels"].unique()}
        assert labels == {0, 1, 2}
    else:
        assert 0.02 < hits < 0.5


def test_places_of_a_batch_are_kept_for_foreground(dataset: Path, tmp_path: Path) -> None:
    """Half of a batch of two: the second patch always shows foreground, the first one where it happens to lie there."""
    for stream in ("train", "validation"):
        drawn = patches(dataset, tmp_path / "c", stream, patch_size=(2, 2, 2), foreground_oversampling=0.33)
        hits = [bool((drawn[index]["labels"] > 0).any()) for index in range(120)]
        assert all(hits[1::2])
        assert 0 < sum(hits[::2]) < 40


def test_patches_that_need_no_foreground_are_about_annotated_voxels(dataset: Path, tmp_path: Path) -> None:
    description = json.loads((dataset / "dataset.json").read_text())
    description["labels"]["ignore"] = 3
    (dataset / "dataset.json").write_text(json.dumps(description))
    for path in (dataset / "labelsTr").iterdir():
        stored = nib.load(path)
        labels = np.asarray(stored.dataobj).copy()
        labels[labels == 0] = 3
        nib.save(nib.Nifti1Image(labels, stored.affine), path)
    drawn = patches(dataset, tmp_path / "c", patch_size=(1, 1, 1), foreground_oversampling=0)
    assert {int(drawn[index]["labels"]) for index in range(60)} == {1, 2}


def test_nnunets_policy_is_the_default(dataset: Path, tmp_path: Path) -> None:
    drawn = patches(dataset, tmp_path / "c", patch_size=(8, 16, 16), augmentation={"kind": "nnunet"})
    assert isinstance(drawn.policy, NNUNet)
    assert isinstance(policy_of(DataRecipe(spacing=(2, 1, 1), patch_size=(8, 16, 16))), NNUNet)
    for index in range(40):
        image, labels, _ = drawn[index].values()
        assert image.shape == (1, *labels.shape) == (1, 8, 16, 16)
        assert image.isfinite().all()
        assert {int(v) for v in labels.unique()} <= {0, 1, 2}


def test_a_patch_does_not_depend_on_the_number_of_threads(dataset: Path, tmp_path: Path) -> None:
    drawn = patches(dataset, tmp_path / "c", patch_size=(8, 16, 16), augmentation={"kind": "nnunet"})
    threads = torch.get_num_threads()
    found = list[list[torch.Tensor]]()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append([drawn[index]["image"] for index in range(20)])
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_channels_normalized_within_a_region_are_emptied_outside() -> None:
    image = torch.ones(2, 2, 3, 4)
    labels = np.zeros((2, 3, 4), np.int16)
    labels[0, 1:] = OUTSIDE
    empty_outside(image, labels, [1])
    assert image[0].min() == 1
    assert torch.equal(image[1] == 0, torch.from_numpy(labels) == OUTSIDE)
    empty_outside(image, labels, [])
    assert image[0].min() == 1


def test_small_volumes_are_padded_with_zero_all_round(dataset: Path, tmp_path: Path) -> None:
    drawn = patches(dataset, tmp_path / "c", patch_size=(16, 32, 32), foreground_oversampling=0)
    image, labels, _ = drawn[0].values()
    inside = image[0] != 0
    z = torch.nonzero(inside.any(2).any(1)).flatten()
    y = torch.nonzero(inside.any(2).any(0)).flatten()
    x = torch.nonzero(inside.any(1).any(0)).flatten()
    for places, size in ((z, 16), (y, 32), (x, 32)):
        before, after = int(places[0]), size - 1 - int(places[-1])
        assert abs(before - after) <= 1
        assert before > 0
    assert {int(v) for v in labels.unique()} == {0, 1, 2}


def test_validation_patches_are_not_changed(dataset: Path, tmp_path: Path) -> None:
    wild = {"kind": "light", "spatial_probability": 1, "intensity_probability": 1}
    plain = patches(dataset, tmp_path / "c", stream="validation")
    same = patches(dataset, tmp_path / "c", stream="validation", augmentation=wild, mirror_axes=("z", "y", "x"))
    assert all(torch.equal(plain[3][key], same[3][key]) for key in ("image", "labels"))


def test_left_and_right_are_never_swapped_without_x(dataset: Path, tmp_path: Path) -> None:
    """Left (label 1) lies at lower x than right in RAS order, whatever is flipped or rotated by up to 30 degrees."""
    drawn = patches(
        dataset,
        tmp_path / "c",
        patch_size=(16, 32, 32),
        mirror_axes=("z", "y"),
        augmentation={"kind": "light", "spatial_probability": 0.5, "intensity_probability": 0.5},
    )
    flipped_y = set()
    for index in range(30):
        labels = drawn[index]["labels"]
        left, right = (torch.nonzero(labels == value)[:, 2].double().mean() for value in (1, 2))
        assert left < right
        flipped_y.add(int(torch.nonzero(labels == 1)[:, 1].double().mean() > 15.5))
    swapped = patches(dataset, tmp_path / "c", patch_size=(16, 32, 32), mirror_axes=("x",))
    orders = {
        bool(
            torch.nonzero(swapped[i]["labels"] == 1)[:, 2].double().mean()
            < torch.nonzero(swapped[i]["labels"] == 2)[:, 2].double().mean()
        )
        for i in range(20)
    }
    assert orders == {True, False}


def test_labels_of_several_data_sets_get_one_number_by_name(dataset: Path, partial: Path, tmp_path: Path) -> None:
    """Left lies at lower x than right in RAS order; the second data set calls them 3 and 1."""
    opened = [open_dataset(path) for path in (dataset, partial)]
    labels = Labels.merged(dataset.labels for dataset in opened)
    assert labels == {"background": 0, "left": 1, "right": 2, "third": 3}
    settings: dict[str, Any] = {"spacing": (2, 1, 1), "patch_size": (16, 32, 32), "augmentation": PLAIN}
    caches = [CaseCache(tmp_path / "c", each, how(each, spacing=(2, 1, 1))) for each in opened]
    parts = [(cache, cache.dataset.cases) for cache in caches]
    for cache, cases in parts:
        cache.prepare(cases)
    drawn = joined(parts, labels, **settings)
    assert len(drawn.members) == 7
    seen = set()
    for index in range(40):
        patch = drawn[index]
        places = {value: torch.nonzero(patch["labels"] == value)[:, 2].double().mean() for value in (1, 2, 3)}
        found = tuple(bool(value.isfinite()) for value in places.values())
        assert not found[0] or places[1] < places[2]
        seen.add((tuple(patch["annotated"].tolist()), found))
    complete, both = (True, True, True, False), (True, True, False)
    assert seen == {
        (complete, both),  # the first data set knows no third; so does part_00
        ((True, False, True, True), (False, True, False)),
        ((True, True, True, True), both),
    }
    naive = joined(parts, labels, unannotated="background", **settings)
    for index in range(10):
        assert naive[index]["annotated"].all()
        assert all(torch.equal(naive[index][key], drawn[index][key]) for key in ("image", "labels"))


def test_instances_go_where_their_labels_go(dataset: Path, tmp_path: Path) -> None:
    stored = nib.load(dataset / "labelsTr" / "case_00.nii.gz")
    for path in sorted((dataset / "labelsTr").iterdir()):
        labels = np.asarray(nib.load(path).dataobj).copy()
        labels[1, 1:4, 1:4] = 1
        nib.save(nib.Nifti1Image(labels, stored.affine), path)
    drawn = patches(
        dataset,
        tmp_path / "c",
        patch_size=(16, 32, 32),
        instances="components",
        mirror_axes=("z", "y", "x"),
        augmentation={"kind": "light", "spatial_probability": 1, "scale": (1.0, 1.2)},
    )
    for index in range(10):
        patch = drawn[index]
        assert "instances" in patch
        labels, instances = patch["labels"], patch["instances"]
        assert (instances.dtype, instances.shape) == (torch.int64, labels.shape)
        assert torch.equal(instances > 0, labels > 0)
        assert {(int(a), int(b)) for a, b in zip(labels.flatten(), instances.flatten(), strict=True)} == {
            (0, 0),
            (1, 1),
            (1, 2),
            (2, 3),
        }
    assert "instances" not in patches(dataset, tmp_path / "c")[0]
