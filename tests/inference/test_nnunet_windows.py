"""Windows, weights, mirrored copies and folds as nnU-Net has them, against float64 and against nnU-Net's own."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskmed_zoo.errors import JointError, NonFiniteError
from maskmed_zoo.inference.nnunet_windows import importance, mirrored, window_logits, window_starts

STARTS = {
    (8, 8): [0],
    (9, 8): [0, 1],
    (12, 8): [0, 4],
    (13, 8): [0, 2, 5],  # 2.5 to the even number
    (30, 8): [0, 4, 7, 11, 15, 18, 22],
    (20, 7): [0, 3, 6, 10, 13],
}


@pytest.mark.parametrize("size", STARTS)
def test_starts(size: tuple[int, int]) -> None:
    assert window_starts(*size) == STARTS[size]


def test_starts_and_weights_are_nnunets() -> None:
    theirs = pytest.importorskip("nnunetv2.inference.sliding_window_prediction")
    for window in (5, 8, 16, 28, 33):
        for size in range(window, 4 * window):
            assert window_starts(size, window) == theirs.compute_steps_for_sliding_window([size], [window], 0.5)[0]
    for shape in ((8, 16, 12), (5, 7, 33), (64, 96, 80)):
        expected = theirs.compute_gaussian(shape, 1 / 8, 10, device=torch.device("cpu"))
        assert torch.equal(importance(shape), expected)


def weight(window: tuple[int, int, int]) -> np.ndarray:
    """In float64, from the formula."""
    total = np.ones((1, 1, 1))
    for axis, size in enumerate(window):
        offset = np.arange(size) - size // 2
        sigma = size / 8
        values = np.where(np.abs(offset) <= int(4 * sigma + 0.5), np.exp(-0.5 * (offset / sigma) ** 2), 0)
        total = total * values.reshape([-1 if a == axis else 1 for a in range(3)])
    return 10 * total


def network(seed: int) -> nn.Module:
    """Without any symmetry, and aware of where in a window it is."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv3d(2, 6, 3, padding=1), nn.LeakyReLU(), nn.Conv3d(6, 3, 5, padding=2))


def reference(
    networks: list[nn.Module],
    image: Tensor,
    window: tuple[int, int, int],
    starts: list[list[int]],
    axes: tuple[int, ...],
) -> np.ndarray:
    """The definition, in float64: weighted means of windows, of mirrored copies, of networks."""
    image, weights = image.double(), weight(window)
    total, norm = np.zeros((3, *image.shape[1:])), np.zeros(tuple(image.shape[1:]))
    for start in product(*starts):
        place = tuple(slice(s, s + w) for s, w in zip(start, window, strict=True))
        patch = image[(slice(None), *place)].numpy()
        found = []
        for one, flips in product(networks, product((False, True), repeat=len(axes))):
            flipped = tuple(axis + 1 for axis, flip in zip(axes, flips, strict=True) if flip)
            seen = torch.from_numpy(np.flip(patch, flipped).copy())[None]
            with torch.no_grad():
                found.append(np.flip(one(seen)[0].numpy(), flipped))
        total[(slice(None), *place)] += weights * np.mean(found, 0)
        norm[place] += weights
    return np.where(norm > 0.001, total / norm, np.nan)


def check(found: Tensor, expected: np.ndarray) -> None:
    inside = np.isfinite(expected)
    assert inside.mean() > 0.6
    np.testing.assert_allclose(found.double().numpy()[inside], expected[inside], atol=5e-3)


@pytest.mark.parametrize("axes", [(), (1,), (0, 2), (0, 1, 2)])
def test_logits_are_the_definitions(axes: tuple[int, ...]) -> None:
    window, starts = (8, 16, 12), [[0, 2, 5], [0, 3], [0, 6]]
    image = torch.randn(2, 13, 19, 18, generator=torch.Generator().manual_seed(1))
    networks = [network(seed) for seed in range(2)]
    found = window_logits(networks, image, window, 3, mirror_axes=axes)
    assert (found.dtype, found.shape) == (torch.float16, (3, 13, 19, 18))
    expected = reference([one.double() for one in networks], image, window, starts, axes)
    check(found, expected)


def test_a_smaller_image_is_padded_around() -> None:
    window = (8, 16, 12)
    image = torch.randn(2, 5, 16, 9, generator=torch.Generator().manual_seed(1))
    found = window_logits([network(0)], image, window, 3)
    padded = F.pad(image, (1, 2, 0, 0, 1, 2))
    expected = reference([network(0).double()], padded, window, [[0], [0], [0]], ())
    check(found, expected[:, 1:6, :, 1:10])


def test_a_network_that_is_symmetric_gives_a_symmetric_answer() -> None:
    image = torch.rand(1, 2, 8, 8, 8)
    found = mirrored(network(0), image, (0, 1))
    assert found.shape == (1, 3, 8, 8, 8)
    with torch.no_grad():
        turned = mirrored(network(0), image.flip(2), (0, 1)).flip(2)
        torch.testing.assert_close(turned, found, rtol=0, atol=1e-5)
        alone = network(0)(image)
    assert not torch.allclose(alone, found, atol=1e-3)


def test_mistakes_are_told() -> None:
    image = torch.zeros(2, 8, 16, 12)
    with pytest.raises(JointError, match=r"logits of shape \(3, 8, 16, 12\)"):
        window_logits([network(0)], image, (8, 16, 12), 4)
    with pytest.raises(JointError, match="got none"):
        window_logits([], image, (8, 16, 12), 3)
    with pytest.raises(NonFiniteError, match="beyond float16"):
        window_logits([lambda x: torch.full((1, 3, 8, 16, 12), 7e4)], image, (8, 16, 12), 3)
