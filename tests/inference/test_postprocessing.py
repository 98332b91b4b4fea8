"""Steps on label maps, against MONAI's transforms and SciPy; objects that follow; the file, and what it refuses."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from monai.transforms import FillHoles, KeepLargestConnectedComponent, RemoveSmallObjects
from pydantic import ValidationError
from scipy import ndimage

from maskmed_zoo.data import parts
from maskmed_zoo.errors import CheckpointError
from maskmed_zoo.inference.postprocessing import FORMAT, Postprocessing, Step, read_postprocessing
from maskmed_zoo.inference.stitcher import Instances, follow_labels

VALUES = {"background": 0, "liver": 1, "spleen": 2, "tumour": 3}
SPACING = (2.0, 0.5, 0.5)


def blobs(seed: int, shape: tuple[int, int, int] = (12, 20, 18), smooth: float = 1.0) -> np.ndarray:
    """A label map with parts and holes of many sizes."""
    random = np.random.default_rng(seed)
    fields = ndimage.gaussian_filter(random.normal(size=(4, *shape)), (0, smooth, smooth, smooth))
    fields[0] += 0.5 * fields.std()
    return fields.argmax(0).astype(np.uint8)


def applied(labels: np.ndarray, *steps: Step) -> np.ndarray:
    return Postprocessing(steps, VALUES).apply(labels.copy(), SPACING)


def monai(transform: Callable[..., Any], labels: np.ndarray) -> np.ndarray:
    return np.asarray(transform(torch.from_numpy(labels.astype(np.int32))[None]))[0]


@pytest.mark.filterwarnings("ignore:Parameter `min_size` is deprecated:FutureWarning")  # MONAI's use of scikit-image
@pytest.mark.parametrize("slab", [200, 10**6])
@pytest.mark.parametrize(("seed", "smooth"), [(0, 0.6), (1, 1.0), (2, 1.0), (3, 1.5)])
def test_as_monai(seed: int, smooth: float, slab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for holes with other labels in them, over which MONAI writes, against its documentation."""
    monkeypatch.setattr(parts, "SLAB_VOXELS", slab)
    labels = blobs(seed, smooth=smooth)
    for name, value in list(VALUES.items())[1:]:
        theirs = monai(FillHoles(applied_labels=value, connectivity=1), labels)
        numbers, count = cast(tuple[np.ndarray, int], ndimage.label(theirs != labels))
        for hole in range(1, count + 1):
            if labels[numbers == hole].any():
                theirs[numbers == hole] = labels[numbers == hole]
        np.testing.assert_array_equal(applied(labels, Step(label=name, do="fill_holes")), theirs)
        *_, second, first = parts_of_scipy(labels, value)
        assert first > second, "of equal parts MONAI keeps all"
        keep = KeepLargestConnectedComponent(applied_labels=[value], connectivity=3, is_onehot=False)
        largest = applied(labels, Step(label=name, do="keep_largest"))
        np.testing.assert_array_equal(largest, monai(keep, labels))
        sizes = parts_of_scipy(labels, value)
        free = [size for size in range(2, 60) if size not in sizes]  # versions differ in what is just as large
        for voxels in free[:2]:
            small = applied(labels, Step(label=name, do="remove_small", below_mm3=voxels * 0.5))
            remove = RemoveSmallObjects(min_size=voxels, connectivity=3)
            np.testing.assert_array_equal(small == value, monai(remove, labels == value) > 0)


def parts_of_scipy(labels: np.ndarray, value: int) -> list[int]:
    numbers, _ = cast(tuple[np.ndarray, int], ndimage.label(labels == value, np.ones((3, 3, 3))))
    return sorted(np.bincount(numbers.ravel())[1:].tolist())


def test_holes_of_one_label_are_scipys() -> None:
    for seed in range(10):
        labels = (blobs(seed) > 1).astype(np.uint8)
        filled = applied(labels, Step(label="liver", do="fill_holes"))
        assert (filled != labels).any() or seed
        np.testing.assert_array_equal(filled, ndimage.binary_fill_holes(labels))


def test_holes_that_are_not_filled() -> None:
    """With another label inside, between two labels, and open to the border of the image."""
    labels = np.zeros((7, 9, 30), np.uint8)
    for start in (0, 10, 20):
        labels[1:6, 1:8, start + 1 : start + 8] = 1
        labels[2:5, 2:7, start + 2 : start + 7] = 0
    labels[3, 4, 4] = 2
    labels[1:6, 1:4, 11:18][labels[1:6, 1:4, 11:18] == 1] = 2
    labels[:2, 4, 24] = 0
    steps = [Step(label=name, do="fill_holes") for name in ("liver", "spleen")]
    np.testing.assert_array_equal(applied(labels, *steps), labels)
    labels[:2, 4, 24] = 1
    assert (applied(labels, *steps) != labels).sum() == 3 * 5 * 5


def test_a_step_changes_its_own_label_alone() -> None:
    """And what the steps for one label give does not depend on those for another, in whatever order."""
    labels = blobs(3)
    of_liver = (Step(label="liver", do="keep_largest"), Step(label="liver", do="fill_holes"))
    of_spleen = (Step(label="spleen", do="fill_holes"), Step(label="spleen", do="remove_small", below_mm3=6.0))
    alone, all_ = applied(labels, *of_liver), applied(labels, *of_spleen, *of_liver)
    np.testing.assert_array_equal(alone == 1, all_ == 1)
    np.testing.assert_array_equal(
        alone[labels != 1] * (alone[labels != 1] != 1), labels[labels != 1] * (alone[labels != 1] != 1)
    )
    np.testing.assert_array_equal(all_, applied(labels, *of_liver[::-1], *of_spleen[::-1]))
    assert (all_ == 3).sum() == (labels == 3).sum() > 0


def test_labels_that_are_not_there_and_nothing_to_do() -> None:
    labels = np.zeros((3, 4, 5), np.uint16)
    steps = [Step(label="liver", do="fill_holes"), Step(label="liver", do="keep_largest")]
    assert not applied(labels, *steps).any()
    assert applied(blobs(0)).dtype == np.uint8
    np.testing.assert_array_equal(applied(blobs(0)), blobs(0))


def test_volumes_are_of_the_spacing_and_borders_belong_to_what_stays() -> None:
    labels = np.zeros((5, 5, 5), np.uint8)
    labels[0, 0, :4] = 1  # 2 mm³
    step = Step(label="liver", do="remove_small", below_mm3=2.0)
    assert applied(labels, step).sum() == 4
    assert Postprocessing((step,), VALUES).apply(labels.copy(), (2.0, 0.5, 0.49)).sum() == 0
    assert Postprocessing((step,), VALUES).apply(labels.copy(), (2.0, 0.5, 0.5 * (1 - 1e-8))).sum() == 4


def test_of_equal_parts_the_first_stays() -> None:
    labels = np.zeros((5, 5, 5), np.uint8)
    labels[4, 4, 4] = labels[0, 2, 2] = 1
    assert applied(labels, Step(label="liver", do="keep_largest"))[0, 2, 2] == 1


def test_memory_does_not_grow_with_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """A label all over a large image: numbers of all of its voxels would take 4 bytes for each."""
    monkeypatch.setattr(parts, "SLAB_VOXELS", 2**20)
    labels = np.ones((256, 256, 256), np.uint8)
    labels[::8, 1::3, 1::3] = 0
    labels[5, 5, 5], labels[5, 5, 6] = 2, 0
    steps = (Step(label="liver", do="fill_holes"), Step(label="spleen", do="keep_largest"))
    tracemalloc.start()
    Postprocessing(steps, VALUES).apply(labels, SPACING)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * labels.size


def test_objects_follow() -> None:
    labels = np.zeros((6, 8, 8), np.uint8)
    labels[1:5, 1:5, 1:5], labels[5, 7, 7] = 1, 1
    labels[2, 2, 2] = 0
    none = Instances(np.zeros(labels.shape, np.int32), (), ())
    found = follow_labels(none, labels, SPACING)
    assert len(found.labels) == 2
    after = applied(labels, Step(label="liver", do="fill_holes"), Step(label="liver", do="keep_largest"))
    for seen in (none, found):
        objects = follow_labels(seen, after, SPACING)
        assert objects.labels == (1,)
        np.testing.assert_array_equal(objects.ids, after)
    assert after.sum() == 64


def test_what_label_maps_are_known_by() -> None:
    fill, largest = Step(label="liver", do="fill_holes"), Step(label="liver", do="keep_largest")
    small = Step(label="liver", do="remove_small", below_mm3=2.0)
    known = [
        Postprocessing(steps, VALUES).settings
        for steps in (
            (),
            (fill,),
            (largest,),
            (fill, largest),
            (small,),
            (small.model_copy(update={"below_mm3": 3.0}),),
        )
    ]
    assert all(known.count(one) == 1 for one in known)
    assert Postprocessing((largest, fill), VALUES).settings == known[3]


def test_steps_with_a_size_too_many_or_too_few() -> None:
    for wrong in (
        {"do": "remove_small"},
        {"do": "fill_holes", "below_mm3": 1.0},
        {"do": "remove_small", "below_mm3": 0.0},
    ):
        with pytest.raises(ValidationError):
            Step.model_validate({"label": "liver"} | wrong)


def test_the_file_and_what_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "postprocessing.json"
    steps = [{"label": "liver", "do": "fill_holes", "below_mm3": None}]
    good: dict[str, Any] = {"format": FORMAT, "weights_sha256": "a", "steps": steps, "candidates": []}
    path.write_text(json.dumps(good))
    assert read_postprocessing(path, "a", VALUES).steps == (Step(label="liver", do="fill_holes"),)
    wrong: list[tuple[Any, str]] = [
        (good | {"weights_sha256": "b"}, "chosen for other weights"),
        (good | {"format": "2"}, "format: Input should be"),
        (good | {"steps": [{"label": "liver", "do": "shrink"}]}, r"steps\.0\.do: Input should be"),
        (good | {"steps": [{"label": "kidney", "do": "fill_holes"}]}, "names 'kidney', which is no label of the run"),
        (good | {"steps": [{"label": "background", "do": "fill_holes"}]}, "names 'background'"),
        (good | {"steps": [*steps, *steps]}, "a label has one threshold, holes filled once"),
        ([1], "all of it"),
        ({}, "format: Field required"),
    ]
    for content, reason in wrong:
        path.write_text(json.dumps(content))
        with pytest.raises(
            CheckpointError, match=f"postprocessing.json: .*{reason}.*; 'maskmed-zoo postprocess'.*--no-post"
        ):
            read_postprocessing(path, "a", VALUES)
    path.write_text("{")
    with pytest.raises(CheckpointError, match="invalid JSON"):
        read_postprocessing(path, "a", VALUES)
