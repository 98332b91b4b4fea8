"""Places: centroids against SciPy's, windows at borders, grids."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.ndimage import center_of_mass, zoom

from maskmed_zoo.explain.places import (
    centroid,
    largest_label,
    middle_voxel,
    on_other_grid,
    voxel_of,
    window_around,
)


def test_centroid() -> None:
    mask = np.random.default_rng(0).random((5, 6, 7)) > 0.8
    assert centroid(mask) == pytest.approx(center_of_mass(mask))


def test_middle_of_a_ring_lies_on_the_ring() -> None:
    mask = np.zeros((3, 7, 7), bool)
    mask[1, 1:6, 1:6] = True
    mask[1, 2:5, 2:5] = False
    mask[1, 3, 1] = False  # heavier on the right
    assert not mask[tuple(round(c) for c in centroid(mask))]
    voxel = middle_voxel(mask)
    assert mask[voxel]
    assert voxel == (1, 3, 5)


@pytest.mark.parametrize(
    ("point", "starts"),
    [((5, 5, 5), (3, 4, 2)), ((0, 0, 0), (0, 0, 0)), ((9, 9, 9), (5, 6, 0 + 4)), ((4.4, 5.6, 5.0), (2, 4, 2))],
)
def test_window_is_centred_and_stays_inside(point: tuple[float, float, float], starts: tuple[int, ...]) -> None:
    place = window_around(point, (10, 10, 10), (5, 4, 6))
    assert tuple(s.start for s in place) == starts
    assert tuple(s.stop - s.start for s in place) == (5, 4, 6)


def test_points_keep_their_place_on_another_grid() -> None:
    """Against SciPy's zoom of coordinates with voxels as cells."""
    ramp = np.arange(12, dtype=float)
    finer: Any = zoom(np.tile(ramp, (2, 2, 1)), (1, 1, 2), order=1, grid_mode=True, mode="nearest")
    for index in range(1, 11):
        at = on_other_grid((0, 0, index), (2, 2, 12), (2, 2, 24))[2]
        assert np.interp(at, np.arange(24), finer[0, 0]) == pytest.approx(index)
    assert on_other_grid((3, 2, 1), (4, 5, 6), (4, 5, 6)) == (3, 2, 1)


def test_voxel_of_a_coarser_grid() -> None:
    assert voxel_of((0, 3, 4), (8, 8, 8), (2, 4, 8)) == (0, 1, 4)
    assert voxel_of((7, 7, 7), (8, 8, 8), (1, 2, 3)) == (0, 1, 2)


def test_largest_label_is_foreground() -> None:
    labels = np.array([[[0, 0, 0, 0, 2, 2, 1]]])
    assert largest_label(labels) == 2
    assert largest_label(labels * 0) is None
