"""The boundary IoU against bands by counting neighbours and by one distance transform of the whole mask."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import binary_erosion, distance_transform_edt

from maskmed_zoo.evaluation.case import score_case
from maskmed_zoo.evaluation.metrics import boundary_iou, chosen, metrics
from maskmed_zoo.metric_settings import MetricSettings
from tests.evaluation.metrics.shapes import ball, pair_of, random_pairs


def score(prediction, reference, spacing, width: float) -> Any:
    pair = replace(pair_of(prediction, reference, spacing), settings=MetricSettings(boundary_width=width))
    return score_case(pair, chosen(["boundary_iou"])).scores["boundary_iou"].values["label"]


@pytest.mark.parametrize("chunk", [1, 400, 2**21])
def test_bands_are_those_of_a_whole_distance_transform(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boundary_iou, "CHUNK_VOXELS", chunk)
    for pair in random_pairs(10, seed=chunk):
        for width in (0.0, 1.3, 3.7, 20.0):
            bands = []
            for mask in (pair.prediction == 1, pair.reference == 1):
                away, inner = distance_transform_edt(np.pad(mask, 1), sampling=pair.spacing), binary_erosion(mask)
                near = np.asarray(away)[1:-1, 1:-1, 1:-1] <= width
                bands.append(mask & (near | np.logical_not(inner)))
            expected = (bands[0] & bands[1]).sum() / (bands[0] | bands[1]).sum()
            arrays = pair.prediction == 1, pair.reference == 1
            assert score(*arrays, pair.spacing, width) == pytest.approx(expected)


def test_of_balls() -> None:
    """Two balls of one centre: bands 3 mm wide, 2 mm apart, share a third; a wide band is the whole ball."""
    spacing, shape = (0.5, 0.5, 0.5), (90, 90, 90)
    large, small = ball(shape, 20, spacing), ball(shape, 18, spacing)
    share = (18**3 - 17**3) / (20**3 - 15**3)
    # centres of voxels beside a boundary are up to a voxel apart from those outside, on average half
    assert score(small, large, spacing, 3.0) < share < score(small, large, spacing, 3.25)
    assert score(small, large, spacing, 100.0) == pytest.approx((18 / 20) ** 3, abs=0.01)
    assert score(large, large, spacing, 3.0) == 1


def test_it_says_how_wide_the_bands_are() -> None:
    rules = metrics()["boundary_iou"].rules
    assert "near is within 2 mm" in rules()
    assert "near is within 0.7 mm" in rules(MetricSettings(boundary_width=0.7))
