"""IoU, precision, recall and differences of volumes: against MONAI's confusion matrix and plain counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.metrics import compute_iou
from monai.metrics.confusion_matrix import compute_confusion_matrix_metric, get_confusion_matrix

from maskmed_zoo.evaluation.case import score_case
from maskmed_zoo.evaluation.metrics import chosen
from tests.evaluation.metrics.shapes import pair_of, random_pairs

NAMES = ("iou", "precision", "recall", "volume_difference", "relative_volume_difference")


def test_equals_monai_and_counts() -> None:
    for pair in random_pairs(15, seed=2):
        scored = score_case(pair, chosen(NAMES)).scores
        found: dict[str, Any] = {name: scored[name].values["label"] for name in NAMES}
        ours, theirs = pair.prediction == 1, pair.reference == 1
        first, second = (torch.from_numpy(mask)[None, None].float() for mask in (ours, theirs))
        matrix = get_confusion_matrix(first, second)
        assert found["iou"] == pytest.approx(compute_iou(first, second).item(), abs=1e-6)
        for name in ("precision", "recall"):
            assert found[name] == pytest.approx(compute_confusion_matrix_metric(name, matrix).item(), abs=1e-6)
        volumes = [mask.sum() * np.prod(pair.spacing) / 1000 for mask in (ours, theirs)]
        assert found["volume_difference"] == pytest.approx(abs(volumes[0] - volumes[1]))
        assert found["relative_volume_difference"] == pytest.approx(100 * abs(volumes[0] / volumes[1] - 1))
        dice = scored["dice"].values["label"]
        assert dice == pytest.approx(2 * found["iou"] / (1 + found["iou"]))


def test_by_hand() -> None:
    prediction, reference = np.zeros((2, 1, 1, 10), bool)
    prediction[..., 2:8] = True
    reference[..., 5:9] = True
    scored = score_case(pair_of(prediction, reference, (5.0, 2.0, 10.0)), chosen(NAMES)).scores
    assert [scored[name].values["label"] for name in NAMES] == pytest.approx([3 / 7, 0.5, 0.75, 0.2, 50.0])


def test_a_false_label_has_a_volume() -> None:
    nothing, some = np.zeros((2, 2, 3, 4), bool)
    some[0] = True
    for pair, relative in ((pair_of(some, nothing), 100.0), (pair_of(nothing, some), 100.0)):
        scored = score_case(pair, chosen(NAMES)).scores
        assert scored["volume_difference"].values["label"] == pytest.approx(0.012)
        assert scored["relative_volume_difference"].values["label"] == relative
