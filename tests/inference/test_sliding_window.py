"""Sliding window: the grid, the blending, and agreement with MONAI."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.inferers.utils import sliding_window_inference
from torch import nn
from torch.nn import functional as F

from maskmed_zoo.contracts import HeadOutput, StageOutput
from maskmed_zoo.errors import ArgumentError, JointError, NonFiniteError
from maskmed_zoo.inference.probability_map import ProbabilityMap
from maskmed_zoo.inference.sliding_window import Windows, importance, visit, window_starts


def _net(classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv3d(6, classes, 3, padding=1), nn.LogSoftmax(1)
    ).eval()


def _voxelwise(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, 2 * x, -x], 1).log_softmax(1)


def _run(predict, image, window, overlap=0.5, *, batch_size=2, num_classes=3):
    windows = Windows.of(image, window, overlap)
    probabilities = ProbabilityMap(windows, num_classes)
    for places, output in visit(
        lambda x: HeadOutput([StageOutput(logits=predict(x))]), image, windows, batch_size=batch_size, device="cpu"
    ):
        probabilities.take(places, output)
    return probabilities.result()


@given(st.integers(1, 90), st.integers(1, 40), st.floats(0, 0.95))
def test_window_starts_cover_the_axis_evenly(size: int, window: int, overlap: float) -> None:
    starts = window_starts(size, window, overlap)
    assert starts[0] == 0
    assert starts[-1] == max(0, size - window)
    steps = [b - a for a, b in pairwise(starts)]
    assert not steps or max(steps) <= max(1, window * (1 - overlap) + 1e-5)
    assert not steps or max(steps) - min(steps) <= 1
    if len(starts) > 1:  # one window fewer could not cover the axis with such steps
        assert (len(starts) - 2) * max(1, int(window * (1 - overlap) + 1e-6)) < size - window


@pytest.mark.parametrize(
    ("size", "window", "overlap", "expected"),
    [(110, 64, 0.5, [0, 23, 46]), (64, 64, 0.5, [0]), (20, 10, 0.8, list(range(0, 11, 2))), (30, 64, 0.5, [0])],
)
def test_window_starts_are_those_of_nnunet(size, window, overlap, expected) -> None:
    assert window_starts(size, window, overlap) == expected


def test_overlap_of_one_is_refused() -> None:
    with pytest.raises(ArgumentError, match="overlap"):
        window_starts(10, 5, 1.0)


@pytest.mark.parametrize("window", [(8, 6, 10), (9, 5, 7), (1, 4, 4)])
def test_importance(window) -> None:
    weights = importance(window)
    assert weights.shape == window
    assert weights.max() == 1
    assert weights.min() >= 1e-3
    for axis in range(3):
        torch.testing.assert_close(weights, weights.flip(axis), rtol=1e-5, atol=0)
    if window == (9, 5, 7):  # one sigma = 9/8 voxels from the centre along z
        assert weights[4, 2, 2] < weights[3, 2, 3] < 1
        assert weights[3, 2, 3].item() == pytest.approx(torch.exp(torch.tensor(-0.5 * (8 / 9) ** 2)).item())


def test_volume_of_one_window_is_the_plain_prediction() -> None:
    net, image = _net(), torch.randn(1, 8, 10, 12)
    with torch.no_grad():
        expected = net(image[None])[0].exp()
    torch.testing.assert_close(_run(net, image, (8, 10, 12)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [(4, 5, 6), (7, 7, 7), (3, 20, 4), (16, 16, 16)])
@pytest.mark.parametrize(("overlap", "batch_size"), [(0.0, 1), (0.5, 3), (0.75, 1)])
def test_voxelwise_prediction_does_not_depend_on_the_window(window, overlap, batch_size) -> None:
    image = torch.randn(1, 11, 9, 13)
    result = _run(_voxelwise, image, window, overlap, batch_size=batch_size)
    assert result.shape == (3, 11, 9, 13)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, _voxelwise(image[None])[0].exp(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.sum(0), torch.ones(11, 9, 13))


@pytest.mark.parametrize("size", [(21, 15, 9), (15, 21, 15)])
def test_agrees_with_monai_where_the_grids_coincide(size) -> None:
    # MONAI steps by int(window * (1 - overlap)) and pushes the last window back; sizes of window + n * step make both
    # grids equal (step 6). In odd windows both Gaussians are 1 in the centre, so that the floor of 1e-3 is the same.
    window, overlap = (9, 9, 9), 1 / 3
    net, image = _net(), torch.randn(1, *size)
    with torch.no_grad():
        expected = sliding_window_inference(
            image[None], window, 2, lambda x: net(x).exp(), overlap=0.333, mode="gaussian", sigma_scale=0.125
        )[0]
    ours = _run(net, image, window, overlap)
    assert len(window_starts(image.shape[1], 9, overlap)) > 1
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    mean = sliding_window_inference(image[None], window, 2, lambda x: net(x).exp(), overlap=0.333, mode="constant")[0]
    assert (ours - mean).abs().max() > 1e-4  # the weights matter here


def test_averages_probabilities_not_logarithms() -> None:
    calls = iter([torch.tensor([0.9, 0.1]), torch.tensor([0.1, 0.9])])

    def predict(x):
        return next(calls).log().reshape(1, 2, 1, 1, 1).expand(1, 2, *x.shape[2:])

    result = _run(predict, torch.randn(1, 3, 3, 5), (3, 3, 4), overlap=0.75, batch_size=1, num_classes=2)
    weights = importance((3, 3, 4))[1, 1]
    first, second = weights[1], weights[0]  # voxel 1 in the windows starting at 0 and 1
    expected = (0.9 * first + 0.1 * second) / (first + second)
    assert result[0, 1, 1, 1].item() == pytest.approx(expected.item(), abs=1e-6)


def test_small_volume_is_padded_on_both_sides() -> None:
    seen = []

    def predict(x):
        seen.append(x.clone())
        return _voxelwise(x)

    image = torch.full((1, 3, 4, 6), 5.0)
    result = _run(predict, image, (6, 4, 8))
    (window,) = seen
    torch.testing.assert_close(window[0], F.pad(image, (1, 1, 0, 0, 1, 2)))
    assert result.shape == (3, 3, 4, 6)


def test_runs_in_inference_mode_in_batches_and_gives_an_ordinary_tensor() -> None:
    sizes = []

    def predict(x):
        assert torch.is_inference_mode_enabled()
        sizes.append(len(x))
        return _voxelwise(x)

    result = _run(predict, torch.randn(1, 4, 4, 12), (4, 4, 4), overlap=0.5, batch_size=2)
    assert sizes == [2, 2, 1]
    assert not result.is_inference()
    result += 1


@given(st.lists(st.sampled_from(["noise", "air", "bone"]), min_size=1, max_size=9), st.integers(1, 4), st.booleans())
def test_places_come_in_order_and_outputs_are_those_of_each_window(
    parts: list[str], batch_size: int, is_overlapping: bool
) -> None:
    """Whichever windows are constant and share an output."""
    torch.manual_seed(0)
    blocks = {"noise": lambda: torch.randn(2, 4, 6, 3), "air": lambda: torch.full((2, 4, 6, 3), -1.0)}
    blocks["bone"] = lambda: torch.tensor([2.0, 3.0])[:, None, None, None].expand(2, 4, 6, 3)
    image = torch.cat([blocks[part]() for part in parts], 1)
    windows = Windows.of(image, (4, 4, 3), 0.5 if is_overlapping else 0.0)
    net, sizes = nn.Conv3d(2, 3, 3, padding=1), list[int]()

    def predict(x: torch.Tensor) -> HeadOutput:
        sizes.append(len(x))
        return HeadOutput([StageOutput(logits=net(x))])

    seen = list(visit(predict, image, windows, batch_size=batch_size, device="cpu"))
    assert [place for places, _ in seen for place in places] == windows.places
    assert max(sizes) <= batch_size
    for places, output in seen:
        for place, logits in zip(places, output.stages[0].spatial, strict=True):
            with torch.inference_mode():
                alone = net(image[(slice(None), *place)][None])[0]
            torch.testing.assert_close(logits, alone, rtol=1e-5, atol=1e-6)
    if not is_overlapping and "noise" not in parts:
        changes = 1 + sum(one != other for one, other in pairwise(parts))
        assert sizes == [1] * changes


def test_mistakes_are_named() -> None:
    image = torch.randn(1, 4, 4, 4)
    with pytest.raises(JointError, match=r"expected \(1, 5, 4, 4, 4\)"):
        _run(_voxelwise, image, (4, 4, 4), num_classes=5)
    with pytest.raises(JointError, match="one image"):
        _run(_voxelwise, image[None], (4, 4, 4))
    with pytest.raises(NonFiniteError):
        _run(lambda x: _voxelwise(x) * float("nan"), image, (4, 4, 4))
