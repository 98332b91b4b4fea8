"""Sine encodings: their frequencies, and what a token grid can carry of them."""

from __future__ import annotations

import math

import pytest
import torch

from maskmed_zoo.layers.position import sine_encoding

CPU = torch.device("cpu")


def frequencies(size: tuple[int, int, int], extent: tuple[float, float, float], *, is_limited: bool) -> torch.Tensor:
    """(4) radians per longest extent, from the first token along the axis whose tokens are shortest."""
    axis = min(range(3), key=lambda a: extent[a] / size[a])
    sine, cosine = sine_encoding(size, extent, 24, CPU, is_limited=is_limited)[0].view(2, 3, 4)[:, axis]
    return torch.atan2(sine, cosine) / (0.5 * extent[axis] / size[axis] / max(extent))


@pytest.mark.parametrize(
    ("size", "extent", "top"),
    [
        ((4, 4, 8), (80.0, 40.0, 40.0), 16),  # half as long as z, with eight tokens: sixteen along the longest
        ((4, 8, 8), (10.0, 80.0, 80.0), 32),  # the densest axis is z, which is short
        ((2, 2, 128), (80.0, 80.0, 80.0), 64),  # no more than without the limit
        ((1, 1, 1), (80.0, 80.0, 80.0), 1),
    ],
)
def test_limited_frequencies(size: tuple[int, int, int], extent: tuple[float, float, float], top: int) -> None:
    steps = torch.tensor([top ** (i / 3) for i in range(4)])
    found = frequencies(size, extent, is_limited=True) / math.pi
    torch.testing.assert_close(found, steps, rtol=1e-4, atol=1e-4)


def test_without_limit_it_is_64_at_any_size() -> None:
    found = frequencies((1, 1, 128), (80.0, 80.0, 80.0), is_limited=False) / math.pi
    torch.testing.assert_close(found, torch.tensor([1.0, 4.0, 16.0, 64.0]), rtol=1e-4, atol=1e-4)
    coarse, limited = (sine_encoding((4, 4, 4), (80.0,) * 3, 24, CPU, is_limited=x) for x in (False, True))
    assert not torch.allclose(coarse, limited, atol=0.1)
