"""The centreline Dice and the thinning behind it: topology by SciPy, values by the skeletons of scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, label
from skimage.measure import euler_number
from skimage.morphology import skeletonize

from maskmed_zoo.evaluation.case import score_case
from maskmed_zoo.evaluation.metrics import chosen
from maskmed_zoo.evaluation.skeleton import skeleton
from tests.evaluation.metrics.shapes import pair_of


def topology(mask: np.ndarray) -> tuple[int, int, int]:
    """Parts, background parts (with those outside) and Euler number, of 26-connected voxels."""
    padded = np.pad(mask, 1)
    parts, holes = (label(side, structure)[1] for side, structure in ((padded, np.ones((3, 3, 3))), (~padded, None)))
    return int(parts), int(holes), int(euler_number(padded, connectivity=3))


def tubes(seed: int, size: int = 48) -> np.ndarray:
    """A trunk that branches, with radii from 4 to 2 voxels, as the union of balls along curved lines."""
    rng = np.random.default_rng(seed)
    points: list[tuple[np.ndarray, float]] = []

    def grow(place: np.ndarray, way: np.ndarray, radius: float, branches: int) -> None:
        for _ in range(size // 3):
            way = way + 0.08 * rng.normal(size=3)
            place = place + way / np.linalg.norm(way)
            points.append((place, radius))
        for sign in (-1, 1) if branches else ():
            grow(place, way / np.linalg.norm(way) + sign * np.roll([0, 0.7, 0], branches), radius * 0.75, branches - 1)

    grow(np.array([2.0, size / 2, size / 2]), np.array([1.0, 0, 0]), 4.0, 2)
    z, y, x = np.ogrid[:size, :size, :size]
    mask = np.zeros((size,) * 3, bool)
    for place, radius in points:
        mask |= (z - place[0]) ** 2 + (y - place[1]) ** 2 + (x - place[2]) ** 2 <= radius**2
    return mask


@pytest.mark.parametrize("smooth", [0.0, 1.0, 2.0])
def test_thinning_keeps_the_topology(smooth: float) -> None:
    rng = np.random.default_rng(int(smooth))
    for level in (-0.3, 0.0, 0.5):
        values = gaussian_filter(rng.normal(size=(11, 13, 16)), smooth)
        mask = values > level * values.std()
        found = skeleton(mask)
        assert topology(found) == topology(mask)
        assert not (found & ~mask).any()
        assert np.array_equal(skeleton(found), found), "it cannot be thinned further"


def test_lines_of_simple_shapes() -> None:
    bar = np.zeros((9, 9, 40), bool)
    bar[2:7, 2:7, 2:38] = True
    found = skeleton(bar)
    assert 28 <= found.sum() <= 36
    assert set(map(tuple, np.argwhere(found)[4:-4, :2])) == {(4, 4)}, "along the middle"
    z, y, x = np.ogrid[:15, :31, :31]
    ring = (np.hypot(y - 15, x - 15) - 10) ** 2 + (z - 7) ** 2 <= 9
    line = skeleton(ring)
    assert topology(line) == topology(ring) == (1, 1, 0)
    assert line.sum() == pytest.approx(skeletonize(ring).sum(), abs=4)  # 58, no spurs
    shell = np.ones((7, 7, 7), bool)
    shell[3, 3, 3] = False
    assert topology(skeleton(shell)) == topology(shell) == (1, 2, 2)
    assert skeleton(np.ones((1, 1, 1), bool)).all()
    assert not skeleton(np.zeros((3, 3, 3), bool)).any()


def test_cldice_is_near_that_of_scikit_images_skeleton() -> None:
    for seed in range(2):
        reference = tubes(seed)
        assert topology(reference) == (1, 1, 1)
        prediction = np.roll(reference, 2, 1)
        prediction[26:34] = False
        scored = score_case(pair_of(prediction, reference), chosen(["cldice"])).scores
        inside = reference[skeletonize(prediction) > 0].mean()
        found = prediction[skeletonize(reference) > 0].mean()
        expected = 2 * inside * found / (inside + found)
        assert scored["cldice"].values["label"] == pytest.approx(expected, abs=0.03)
        assert 0.4 < expected < 0.95


def test_by_hand() -> None:
    reference = np.zeros((5, 5, 30), bool)
    reference[2, 2, 2:28] = True
    prediction = np.zeros_like(reference)
    prediction[2, 2, 8:28] = prediction[0, 2, 2:6] = True
    for ours, expected in ((reference, 1.0), (prediction, 2 * (20 / 24) * (20 / 26) / (20 / 24 + 20 / 26))):
        scored = score_case(pair_of(ours, reference), chosen(["cldice"])).scores
        assert scored["cldice"].values["label"] == pytest.approx(expected)
    apart = score_case(pair_of(np.roll(reference, 2, 0), reference), chosen(["cldice"])).scores
    assert apart["cldice"].values["label"] == 0
