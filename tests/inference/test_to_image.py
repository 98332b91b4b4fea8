"""Slice by slice equals all at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from maskmed_zoo.errors import JointError
from maskmed_zoo.inference import to_image as resample
from maskmed_zoo.inference.to_image import probabilities_to_labels


@pytest.mark.parametrize("shape", [(6, 7, 8), (13, 9, 21), (3, 14, 5), (6, 10, 8), (1, 1, 1), (25, 7, 8)])
@pytest.mark.parametrize("chunk", [1, 1500, 2**24])
def test_equals_resize_then_argmax(shape, chunk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resample, "CHUNK_ELEMENTS", chunk)
    torch.manual_seed(0)
    probabilities = (3 * torch.randn(5, 6, 7, 8)).softmax(0)
    resized = F.interpolate(probabilities[None], shape, mode="trilinear", align_corners=False)[0]
    result = probabilities_to_labels(probabilities, shape)
    assert result.shape == shape
    assert result.dtype == np.uint8
    best = resized.topk(2, 0).values
    clear = (best[0] - best[1] > 1e-5).numpy()  # elsewhere rounding decides
    assert clear.mean() > 0.999
    np.testing.assert_array_equal(result[clear], resized.argmax(0).numpy()[clear])


def test_differs_from_resizing_labels() -> None:
    probabilities = torch.tensor([0.9, 0.45]).reshape(1, 1, 1, 2)
    probabilities = torch.cat([probabilities, 1 - probabilities])
    assert probabilities_to_labels(probabilities, (1, 1, 8)).ravel().tolist() == [0] * 6 + [1] * 2


def test_small_chunks_never_hold_all_labels_at_full_size(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    original = F.interpolate

    def spy(x, **arguments):
        nonlocal largest
        result = original(x, **arguments)
        largest = max(largest, result.numel())
        return result

    monkeypatch.setattr(resample, "CHUNK_ELEMENTS", 30 * 40 * 10)
    monkeypatch.setattr(resample.F, "interpolate", spy)
    probabilities_to_labels(torch.rand(10, 4, 5, 6), (20, 30, 40))
    assert largest == 30 * 40 * 10


def test_many_labels_need_sixteen_bits() -> None:
    probabilities = torch.zeros(300, 1, 1, 2)
    probabilities[299, 0, 0, 0] = 1
    probabilities[7, 0, 0, 1] = 1
    result = probabilities_to_labels(probabilities, (1, 1, 2))
    assert result.dtype == np.uint16
    assert result.ravel().tolist() == [299, 7]


def test_wrong_axes_are_refused() -> None:
    with pytest.raises(JointError, match="k d h w"):
        probabilities_to_labels(torch.zeros(1, 2, 3, 4, 5), (3, 4, 5))
