"""Dice against its formula and MONAI's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.metrics.meandice import compute_dice

from maskmed_zoo.errors import DataError
from maskmed_zoo.evaluation import joint
from maskmed_zoo.evaluation.metrics.dice import dice_per_label

SHAPE = (3, 4, 5)


def _formula(pred: np.ndarray, ref: np.ndarray, label: int, ignore: int | None) -> float | None:
    keep = np.ones(ref.shape, bool) if ignore is None else ref != ignore
    a, b = pred[keep] == label, ref[keep] == label
    total = np.float64(a.sum() + b.sum())
    return None if total == 0 else float(2 * np.float64((a & b).sum()) / total)


@given(
    arrays(np.int16, SHAPE, elements=st.integers(-2, 9)),
    arrays(np.uint8, SHAPE, elements=st.integers(0, 9)),
    st.lists(st.integers(0, 7), unique=True),
    st.sampled_from([None, 8]),
    st.sampled_from([1, 20, 2**22]),
)
@settings(max_examples=80, deadline=None)
def test_equals_the_formula(pred, ref, labels, ignore, chunk) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joint, "CHUNK_VOXELS", chunk)
        result = dice_per_label(pred, ref, labels, ignore)
    assert list(result) == labels
    for label in labels:
        assert result[label] == _formula(pred, ref, label, ignore)


def test_equals_monai() -> None:
    rng = np.random.default_rng(0)
    pred, ref = rng.integers(0, 5, (2, 9, 10, 11))
    pred = np.where(rng.random(ref.shape) < 0.7, ref, pred)
    one_hot = [torch.eye(5)[torch.from_numpy(a)].permute(3, 0, 1, 2)[None] for a in (pred, ref)]
    expected = compute_dice(*one_hot, include_background=True)[0]
    result = dice_per_label(pred, ref, range(5), None)
    assert list(result.values()) == pytest.approx(expected.tolist(), abs=1e-6)
    assert 0.5 < min(expected) < max(expected) < 1


def test_absent_missed_and_invented_labels() -> None:
    ref, pred = np.array([[1, 1, 0, 0, 9]]), np.array([[1, 0, 0, 2, 2]])
    assert dice_per_label(pred, ref, [1, 2, 3], None) == {1: 2 / 3, 2: 0.0, 3: None}
    assert dice_per_label(pred[:, [0, 1, 2, 4]], ref[:, [0, 1, 2, 4]], [1, 2], 9) == {1: 2 / 3, 2: None}


def test_values_beyond_the_labels_do_not_count() -> None:
    ref, pred = np.array([5000, 1, 1], np.uint16), np.array([3, 1, 5000], np.uint16)
    assert dice_per_label(pred, ref, [1, 2, 3], None) == {1: 2 / 3, 2: None, 3: 0.0}
    assert dice_per_label(pred, ref, [5000], None) == {5000: 0.0}


@pytest.mark.parametrize(
    ("pred", "labels", "ignore", "message"),
    [
        (np.zeros((2, 2), int), [1], None, "differ in shape"),
        (np.zeros((2, 3), float), [1], None, "integers"),
        (np.zeros((2, 3), int), [1, 1], None, "different"),
        (np.zeros((2, 3), int), [1, 2], 2, "ignored 2"),
        (np.zeros((2, 3), int), [-1], None, "65535"),
    ],
)
def test_wrong_input_is_refused(pred, labels, ignore, message) -> None:
    with pytest.raises(DataError, match=message):
        dice_per_label(pred, np.zeros((2, 3), int), labels, ignore)
