"""Where patches lie, against nnU-Net's data loader on the same made-up case."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from maskmed_zoo.data.sampling import (
    annotated_voxel,
    any_start,
    foreground_voxel,
    is_forced,
    start_around,
    window,
)
from maskmed_zoo.settings import Size3

SHAPE, BOX, PATCH = (30, 50, 41), (31, 44, 36), (20, 32, 24)
"""The volume is smaller than the box along z, and larger along the others."""
DRAWS = 1500


def labels() -> NDArray[np.int16]:
    """Two organs, the second near the upper end, and unannotated slices."""
    array = np.zeros(SHAPE, np.int16)
    array[4:9, 5:20, 8:12] = 1
    array[26:30, 40:50, 33:41] = 2
    return array


def theirs(box: Size3, patch: Size3, *, ignore: int | None = None, share: float = 0.33, batch: int = 2) -> Any:
    manager = SimpleNamespace(all_labels=[0, 1, 2], has_ignore_label=ignore is not None)
    cases = SimpleNamespace(identifiers=["a"])
    return nnUNetDataLoader(cases, batch, box, patch, manager, oversample_foreground_percent=share)  # type: ignore[arg-type]


def alike(ours: Any, others: Any) -> None:
    """Distributions of first voxels, axis by axis, and their ranges."""
    ours, others = np.array(ours), np.array(others)
    for axis in range(3):
        assert ks_2samp(ours[:, axis], others[:, axis]).pvalue > 1e-3
        assert ours[:, axis].min() == pytest.approx(others[:, axis].min(), abs=1)
        assert ours[:, axis].max() == pytest.approx(others[:, axis].max(), abs=1)


@pytest.mark.parametrize("box", [BOX, PATCH])
def test_boxes_anywhere(box: Size3) -> None:
    loader, rng = theirs(box, PATCH), np.random.default_rng(0)
    np.random.seed(0)
    alike(
        [any_start(SHAPE, box, PATCH, rng) for _ in range(DRAWS)],
        [loader.get_bbox(SHAPE, False, None)[0] for _ in range(DRAWS)],
    )


@pytest.mark.parametrize("box", [BOX, PATCH])
def test_boxes_about_foreground(box: Size3) -> None:
    array, rng = labels(), np.random.default_rng(0)
    places = {value: np.argwhere(array == value).astype(np.int32) for value in (1, 2, 3)}
    located = {value: np.pad(found, [(0, 0), (1, 0)]) for value, found in places.items()}
    places = {value: found for value, found in places.items() if len(found)}  # as a cache has them
    loader, ours = theirs(box, PATCH), list[Size3]()
    np.random.seed(0)
    for _ in range(DRAWS):
        voxel = foreground_voxel(places, rng)
        assert voxel is not None
        ours.append(start_around(voxel, SHAPE, box, PATCH))
    alike(ours, [loader.get_bbox(SHAPE, True, located)[0] for _ in range(DRAWS)])
    assert foreground_voxel({}, rng) is None
    assert max(start[2] for start in ours) + box[2] > SHAPE[2] + (box[2] - PATCH[2]) / 2, "over the upper limit"


def test_boxes_about_annotated_voxels() -> None:
    """With an 'ignore' label, all boxes that need not show foreground lie about a voxel without it."""
    array, rng = labels(), np.random.default_rng(0)
    array[:, :35] = 3
    annotated = np.pad(np.argwhere(array != 3), [(0, 0), (1, 0)])
    loader, ours = theirs(BOX, PATCH, ignore=3), list[Size3]()
    np.random.seed(0)
    for _ in range(DRAWS):
        voxel = annotated_voxel(array, 3, rng)
        assert voxel is not None
        assert array[tuple(voxel)] != 3
        ours.append(start_around(voxel, SHAPE, BOX, PATCH))
    alike(ours, [loader.get_bbox(SHAPE, False, {(-1, 0, 1, 2): annotated})[0] for _ in range(DRAWS)])


def test_a_single_annotated_voxel_is_found() -> None:
    array, rng = np.full((40, 40, 40), 3), np.random.default_rng(0)
    assert annotated_voxel(array, 3, rng) is None
    array[7, 8, 9] = 0
    assert np.array_equal(annotated_voxel(array, 3, rng), (7, 8, 9))  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 7, 12])
@pytest.mark.parametrize("share", [0.0, 0.33, 0.5, 0.67, 0.75, 1.0])
def test_places_of_a_batch_that_are_kept_for_foreground(batch: int, share: float) -> None:
    loader = theirs(BOX, PATCH, share=share, batch=batch)
    expected = [loader.get_do_oversample(slot) for slot in range(batch)]
    assert [is_forced(slot, batch, share) for slot in range(batch)] == expected


def test_window_slices_and_padding_complete_each_other() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        shape, size = rng.integers(1, 9, 3), rng.integers(1, 9, 3)
        start = rng.integers(-10, 12, 3)
        array = rng.random(shape)
        inside, padding = window(shape.tolist(), start.tolist(), size.tolist())
        got = np.pad(array[inside], padding)
        assert got.shape == tuple(size)
        expected = np.zeros(size)
        for index in np.ndindex(*size):
            place = tuple(int(v) for v in start + index)
            if all(0 <= p < n for p, n in zip(place, shape, strict=True)):
                expected[index] = array[place]
        np.testing.assert_array_equal(got, expected)
