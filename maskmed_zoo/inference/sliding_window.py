"""A whole volume window by window: where the windows lie, what weighs how much, and a generator that visits them.

`visit` yields the places of a batch of windows and what the network says of them; what is made of that is the business
of consumers, any number of them side by side (`Consumer`). Windows are visited along the axis that holds most of them,
so that at any time only a slab of the volume is touched.

Source: nnU-Net v2 `inference/sliding_window_prediction.py`: evenly spread windows, the last one flush with the border,
weighted by a Gaussian of sigma = 1/8 of the window.
Deviations: the step is rounded down, so that the overlap is never less than asked for. The Gaussian is centred between
the voxels of an even window and its tails are raised to 1e-3, as in MONAI.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from itertools import product
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from maskmed_zoo.contracts import HeadOutput
from maskmed_zoo.errors import ArgumentError, JointError
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
        raise ArgumentError(f"overlap must be at least 0 and below 1, got {overlap}")
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


class Image(Protocol):
    """An image (c z y x) float32 of which windows can be cut: a tensor, or what makes its voxels when it is asked."""

    def __getitem__(self, index: tuple[slice, ...], /) -> Tensor: ...


class Windows:
    """The windows of a volume of `size` voxels (z, y, x): `places`, in the order in which they are visited.

    A volume smaller than the window is padded on both sides; `shape` is its size then, and places count from there.
    Places are in order along `axis`, the one on which the volume is most windows long.
    """

    def __init__(self, size: Sequence[int], window: Size3, overlap: float) -> None:
        missing = [max(0, w - n) for w, n in zip(window, size, strict=True)]
        before = [m // 2 for m in missing]
        self.window = window
        self.padding = [(b, m - b) for m, b in zip(missing, before, strict=True)]
        z, y, x = (max(n, w) for n, w in zip(size, window, strict=True))
        self.shape: Size3 = (z, y, x)
        self.inner = tuple(slice(b, b + n) for b, n in zip(before, size, strict=True))
        lengths = [n / w for n, w in zip(self.shape, window, strict=True)]
        self.axis = lengths.index(max(lengths))
        starts = product(*(window_starts(n, w, overlap) for n, w in zip(size, window, strict=True)))
        depth, height, width = window
        places: list[Place] = [(slice(z, z + depth), slice(y, y + height), slice(x, x + width)) for z, y, x in starts]
        self.places = sorted(places, key=lambda place: place[self.axis].start)

    def cut(self, image: Image, place: Place) -> Tensor:
        """The window at `place` (c d h w) of an image (c z y x) without padding, in place of which it has zeros."""
        parts = zip(place, self.inner, strict=True)
        sides = [(max(0, inner.start - part.start), max(0, part.stop - inner.stop)) for part, inner in parts]
        own = [
            slice(part.start + before - inner.start, part.stop - after - inner.start)
            for part, inner, (before, after) in zip(place, self.inner, sides, strict=True)
        ]
        window = image[(slice(None), *own)]
        return F.pad(window, [n for pair in reversed(sides) for n in pair]) if any(map(any, sides)) else window

    @classmethod
    def of(cls, image: Tensor, window: Size3, overlap: float) -> Windows:
        """The windows of one image (c d h w); raises `JointError` for a tensor of another shape."""
        if image.ndim != 4:
            raise JointError(f"a sliding window takes one image (c d h w), got a tensor of shape {tuple(image.shape)}")
        return cls(image.shape[1:], window, overlap)


class Consumer(Protocol):
    """What is made of the windows of a volume: a map of probabilities, of objects, or anything else."""

    def take(self, places: Sequence[Place], output: HeadOutput) -> None:
        """What the network says of the windows at `places`, one sample for each."""
        ...


def visit(
    model: Callable[[Tensor], HeadOutput],
    image: Image,
    windows: Windows,
    *,
    batch_size: int,
    device: torch.device | str,
) -> Generator[tuple[list[Place], HeadOutput]]:
    """Places and outputs of the windows of a normalized image (c d h w) float32, batch after batch.

    Places come in the order of `windows.places`. `model` gets up to `batch_size` windows (b c d h w) on `device`, and
    runs in inference mode; put it in `eval()` before. A volume smaller than the window is padded with zeros on both
    sides. Windows in which every channel has one value, such as air, share one output while that value stays the same.
    """
    known: Tensor | None = None
    constant: HeadOutput | None = None
    for places, patches, is_constant in _batches(image, windows, batch_size):
        values = patches[0, :, 0, 0, 0]
        if is_constant and constant is not None and known is not None and torch.equal(values, known):
            yield places, constant
            continue
        if is_constant:
            known, constant = values.clone(), None
        with torch.inference_mode():  # not across the yield, where it would be the consumer's mode too
            output = model(patches.to(device))
        constant = output if is_constant else constant
        yield places, output
        del output  # may be large: what the consumer keeps, it keeps


def _batches(image: Image, windows: Windows, batch_size: int) -> Generator[tuple[list[Place], Tensor, bool]]:
    """Places in their order, their windows (b c d h w), and whether it is one that is constant, which comes alone."""
    varied: list[tuple[Place, Tensor]] = []
    for place in windows.places:
        patch = windows.cut(image, place)
        if bool((patch == patch[:, :1, :1, :1]).all()):
            if varied:
                yield _stacked(varied)
            yield [place], patch[None].clone(), True
        else:
            varied.append((place, patch))
            if len(varied) == batch_size:
                yield _stacked(varied)
    if varied:
        yield _stacked(varied)


def _stacked(varied: list[tuple[Place, Tensor]]) -> tuple[list[Place], Tensor, bool]:
    """The windows as a batch, no longer held one by one."""
    places, patches = [place for place, _ in varied], torch.stack([patch for _, patch in varied])
    varied.clear()
    return places, patches, False
