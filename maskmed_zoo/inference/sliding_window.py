"""Prediction of a whole volume window by window, blended with Gaussian weights.

Source: nnU-Net v2 `inference/sliding_window_prediction.py`: evenly spread windows, the last one flush with the border,
weighted by a Gaussian of sigma = 1/8 of the window.

Deviations: probabilities are averaged, not logits, because a query head gives floored log-probabilities. The step is
rounded down, so that the overlap is never less than asked for. The Gaussian is centred between the voxels of an even
window and its tails are raised to 1e-3, as in MONAI. The weights are not summed over the volume: the probabilities of
one voxel sum to 1, so dividing by their sum does the same with less memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from maskmed_zoo.errors import JointError, NonFiniteError
from maskmed_zoo.settings import Size3

SIGMA = 1 / 8
LOWEST_WEIGHT = 1e-3

Place = tuple[slice, slice, slice]
"""Where a window lies in the padded volume."""


def window_starts(size: int, window: int, overlap: float) -> list[int]:
    """First voxels of the fewest evenly spread windows along an axis of `size` voxels.

    Neighbours are at most `window * (1 - overlap)` voxels apart, but at least one; the first window starts at 0, the
    last one ends with the axis. An axis not longer than the window has the one start 0. `overlap` is in [0, 1).
    """
    if not 0 <= overlap < 1:
        raise JointError(f"overlap must be at least 0 and below 1, got {overlap}")
    span = size - window
    if span <= 0:
        return [0]
    step = max(1, int(window * (1 - overlap) + 1e-6))
    count = -(-span // step) + 1
    return [round(index * span / (count - 1)) for index in range(count)]


def importance(window: Size3) -> Tensor:
    """(d h w) float32 weights of a window's voxels: a Gaussian with largest value 1 and none below 1e-3."""
    weights = torch.ones(1, 1, 1)
    for axis, size in enumerate(window):
        shape = [1, 1, 1]
        shape[axis] = size
        offset = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
        weights = weights * torch.exp(-0.5 * (offset / (SIGMA * size)) ** 2).reshape(shape)
    return (weights / weights.max()).clamp_min(LOWEST_WEIGHT)


class Windows:
    """The windows of a volume of `size` voxels (z, y, x): `places`, in the order in which they are predicted.

    A volume smaller than the window is padded on both sides; `shape` is its size then, and places count from there.
    """

    def __init__(self, size: Sequence[int], window: Size3, overlap: float) -> None:
        missing = [max(0, w - n) for w, n in zip(window, size, strict=True)]
        before = [m // 2 for m in missing]
        self.padding = [(b, m - b) for m, b in zip(missing, before, strict=True)]
        z, y, x = (max(n, w) for n, w in zip(size, window, strict=True))
        self.shape: Size3 = (z, y, x)
        self.inner = tuple(slice(b, b + n) for b, n in zip(before, size, strict=True))
        starts = product(*(window_starts(n, w, overlap) for n, w in zip(size, window, strict=True)))
        depth, height, width = window
        self.places: list[Place] = [
            (slice(z, z + depth), slice(y, y + height), slice(x, x + width)) for z, y, x in starts
        ]


def sliding_window(
    predict: Callable[[Tensor], Tensor],
    image: Tensor,
    *,
    window: Size3,
    num_classes: int,
    overlap: float,
    batch_size: int,
    device: torch.device | str,
) -> Tensor:
    """Probabilities (k d h w) float32 on the CPU, summing to 1 over k, for a normalised image (c d h w) float32.

    `predict` gets up to `batch_size` windows (b c *window) on `device`, in the order of `Windows.places`, and gives
    log-probabilities (b k *window). It runs in inference mode; put the model in `eval()` before. A volume smaller than
    the window is padded with zeros on both sides, and the padding cut off again. Memory: the result and one label's
    map on the CPU, a batch on `device`.
    Raises `JointError` for a wrong shape and `NonFiniteError` for NaN or infinite probabilities.
    """
    if image.ndim != 4:
        raise JointError(f"sliding_window takes one image (c d h w), got a tensor of shape {tuple(image.shape)}")
    windows = Windows(image.shape[1:], window, overlap)
    if windows.shape != tuple(image.shape[1:]):
        image = F.pad(image, [side for sides in reversed(windows.padding) for side in sides])
    total = torch.zeros(num_classes, *windows.shape)  # made outside inference mode, so that callers may change it
    with torch.inference_mode():
        weights = importance(window).to(device)
        for first in range(0, len(windows.places), batch_size):
            places = [(slice(None), *place) for place in windows.places[first : first + batch_size]]
            output = predict(torch.stack([image[place] for place in places]).to(device))
            expected = (len(places), num_classes, *window)
            if tuple(output.shape) != expected:
                raise JointError(f"the model gave shape {tuple(output.shape)} for a window, expected {expected}")
            for place, part in zip(places, output.float().exp().mul_(weights).cpu(), strict=True):
                total[place] += part
        total = total[(slice(None), *windows.inner)]
        norm = total.sum(0)
        if not bool(torch.isfinite(norm).all()) or not bool((norm > 0).all()):
            raise NonFiniteError("the model's probabilities hold NaN or infinity, or sum to 0 somewhere")
        return total.div_(norm)
