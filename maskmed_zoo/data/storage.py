"""Normalized images on disk: in 16 bits of equal steps, which halves what a patch has to read.

Idea: the range of a channel in 65,535 steps is finer than float16 from the value 1 on, where most voxels of z-scores
and CT lie, and needs no more time to read than float32. A channel with 0 in its range has it as a step, so that what
is 0 stays 0. Where a step would show, in an image with few values far from all others, the image is kept as float32.

Slices are written one after the other, as they are made, and never through a map: a full disk is then an error and not
a signal that ends the process.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from maskmed_zoo.data.normalize import Normalized
from maskmed_zoo.data.resample import slabs

STEPS = 65_534
"""Steps between the smallest and the largest value; one more may be needed to have 0 among them."""
LARGEST_ERROR = 1e-3
"""Share of a channel's standard deviation by which 16 bits may change a value."""


@dataclass(frozen=True)
class Coding:
    """How a channel's values are kept: as `(value - base) / step + zero`, a whole number from 0 to 65535."""

    step: float
    zero: float
    base: float

    def encoded(self, values: NDArray[np.float32]) -> NDArray[np.uint16]:
        """Values to the nearest step."""
        steps = np.rint((values - np.float32(self.base)) / np.float32(self.step)) + np.float32(self.zero)
        return np.clip(steps, 0, 65_535).astype(np.uint16)

    def decoded(self, stored: NDArray[np.uint16]) -> NDArray[np.float32]:
        """What `encoded` was given, up to half a step."""
        values = stored.astype(np.float32)
        values -= np.float32(self.zero)
        values *= np.float32(self.step)
        if self.base:
            values += np.float32(self.base)
        return values

    def to_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Spread:
    """Smallest and largest value, and standard deviation, of a channel."""

    low: float
    high: float
    std: float

    @classmethod
    def of(cls, channel: Normalized) -> Spread:
        """That of a normalized channel, read a few slices at a time."""
        low, high, total, squares = math.inf, -math.inf, 0.0, 0.0
        for part in slabs(channel.shape):
            values = channel[part]
            low, high = min(low, float(values.min())), max(high, float(values.max()))
            total += float(values.sum(dtype=np.float64))
            squares += float(np.square(values, dtype=np.float64).sum())
        count = math.prod(channel.shape)
        return cls(low, high, math.sqrt(max(squares / count - (total / count) ** 2, 0.0)))


def coding_of(spread: Spread) -> Coding | None:
    """How a channel is kept in 16 bits; None where that would change it by more than `LARGEST_ERROR`."""
    extent = spread.high - spread.low
    if extent == 0:
        return Coding(1.0, 0.0, spread.low)
    step = float(np.float32(extent / STEPS))
    if not step / 2 <= LARGEST_ERROR * spread.std or not np.finfo(np.float32).tiny <= step:
        return None
    if spread.low <= 0 <= spread.high:
        return Coding(step, float(math.ceil(-spread.low / step)), 0.0)
    # Far from 0 for its range, a channel loses as much as float32 does there.
    return Coding(step, 0.0, float(np.float32(spread.low)))


class ImageWriter:
    """An .npy file (c z y x) that is filled channel by channel, slices in ascending order; a context manager.

    With `codings`, one per channel, as uint16, else as float32.
    """

    def __init__(self, path: Path, shape: Sequence[int], codings: Sequence[Coding] | None) -> None:
        self.shape, self.codings = tuple(shape), codings
        self._file = path.open("wb")
        dtype = np.dtype(np.float32 if codings is None else np.uint16)
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._file.close()

    @property
    def channels(self) -> list[_ChannelWriter]:
        """What each channel is written to."""
        return [_ChannelWriter(self, index) for index in range(self.shape[0])]

    def append(self, channel: int, index: slice, values: NDArray[Any]) -> None:
        """Write slices `index` of a channel; `ValueError` unless they are the next ones."""
        if channel * self.shape[1] + index.start != self._rows:
            raise ValueError(f"slice {index.start} of channel {channel} is not the next one")
        coded = values.astype(np.float32, copy=False)
        if self.codings is not None:
            coded = self.codings[channel].encoded(coded)
        self._file.write(np.ascontiguousarray(coded).data)
        self._rows += len(coded)


@dataclass(frozen=True)
class _ChannelWriter:
    writer: ImageWriter
    channel: int

    def __setitem__(self, index: slice, values: NDArray[Any]) -> None:
        self.writer.append(self.channel, index, values)


@dataclass(frozen=True, eq=False)
class StoredImage:
    """An image (c z y x) on disk, of which an index reads the part, as float32.

    The index begins with all channels, a slice of them, or one.
    """

    array: NDArray[Any]
    codings: tuple[Coding, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(c, z, y, x)"""
        return self.array.shape

    def __getitem__(self, index: Any) -> NDArray[np.float32]:
        part = np.asarray(self.array[index])
        if self.codings is None:
            return part.astype(np.float32)
        first = index[0] if isinstance(index, tuple) else index
        if isinstance(first, int | np.integer):
            return self.codings[first].decoded(part)
        chosen = self.codings[first] if isinstance(first, slice) else self.codings
        if len(set(chosen)) == 1:
            return chosen[0].decoded(part)
        return np.stack([coding.decoded(channel) for coding, channel in zip(chosen, part, strict=True)])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        del copy
        return self[:].astype(dtype or np.float32, copy=False)
