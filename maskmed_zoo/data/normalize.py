"""Normalized intensities: what a network sees of an image.

Idea: every scheme clips, subtracts and divides. What it subtracts and divides by is found first, of the voxels of the
file, before they are resampled; then any slices can be normalized when they are wanted.
Source: nnU-Net's `default_normalization_schemes.py`, and its mapping from names of channels to schemes (Isensee et al.,
Nat Methods 18, 203, 2021). Deviations: means and variances are summed in 64 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from maskmed_zoo.data.fingerprint import Fingerprint, IntensityStats
from maskmed_zoo.data.resample import slabs
from maskmed_zoo.errors import DataError
from maskmed_zoo.recipe.schema import Scheme

SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
BY_NAME: dict[str, Scheme] = {"nonorm" if name == "none" else name: name for name in SCHEMES}
"""Names of channels that mean a scheme, in any case, as nnU-Net has them; a channel of another name has z-scores."""
_TINY = 1e-8


def schemes(normalization: Literal["auto"] | Scheme | Sequence[Scheme], channels: Sequence[str]) -> tuple[Scheme, ...]:
    """One scheme per channel: by the channels' names (`BY_NAME`), one for all of them, or those given.

    Raises `DataError` unless there are as many as channels.
    """
    if normalization == "auto":
        return tuple(BY_NAME.get(name.strip().casefold(), "zscore") for name in channels)
    given = (normalization,) * len(channels) if isinstance(normalization, str) else tuple(normalization)
    if len(given) != len(channels):
        raise DataError(
            f"data.normalization has {len(given)} schemes ({', '.join(given)}), the data {len(channels)} channels "
            f"({', '.join(channels)}); give one for each"
        )
    return given


@dataclass(frozen=True)
class Scaling:
    """How one channel is normalized: clipped to `low` … `high`, less `shift`, over `divisor`.

    `in_mask`: in the non-zero region alone; around it values stay as they are, which is 0.
    """

    shift: float
    divisor: float
    low: float = -np.inf
    high: float = np.inf
    in_mask: bool = False

    def of(self, values: NDArray[Any], mask: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
        """A normalized copy of some voxels, float32; `mask` says which of them lie in the region."""
        result = values.astype(np.float32)
        if np.isfinite(self.low) or np.isfinite(self.high):
            np.clip(result, self.low, self.high, out=result)
        where: Any = mask if self.in_mask and mask is not None else True
        np.subtract(result, np.float32(self.shift), out=result, where=where)
        return np.divide(result, np.float32(max(self.divisor, _TINY)), out=result, where=where)


def scaling_of(
    channel: NDArray[Any],
    scheme: Scheme,
    stats: IntensityStats | None,
    mask: NDArray[np.bool_] | None = None,
    *,
    where: str = "image",
) -> Scaling:
    """How a channel (z y x), cut to its non-zero region, is normalized.

    'ct': clip to the percentiles 0.5 and 99.5 of `stats`, subtract their mean, divide by their standard deviation.
    'zscore': by mean and standard deviation of the channel, of the voxels in `mask` if there is one. 'none': as it is.
    'rescale_to_0_1': from the smallest value to the largest. 'rgb_to_0_1': divide by 255. Raises `DataError`, which
    begins with `where`, if statistics are missing or 'rgb_to_0_1' has not 0 … 255.
    """
    if scheme == "ct":
        if stats is None:
            raise DataError(f"{where}: 'ct' normalization needs a fingerprint; compute it from the labelled cases")
        return Scaling(stats.mean, stats.std, stats.percentile_00_5, stats.percentile_99_5)
    if scheme == "zscore":
        return Scaling(*moments(channel, mask), in_mask=mask is not None)
    if scheme == "none":
        return Scaling(0.0, 1.0)
    low, high = float(channel.min()), float(channel.max())
    if scheme == "rescale_to_0_1":
        return Scaling(low, high - low)
    if not (low >= 0 and high <= 255):
        raise DataError(
            f"{where} has values {low:g} … {high:g}, 'rgb_to_0_1' expects 0 … 255; name the channel otherwise if it is "
            f"no color"
        )
    return Scaling(0.0, 255.0)


def moments(channel: NDArray[Any], mask: NDArray[np.bool_] | None = None) -> tuple[float, float]:
    """Mean and standard deviation of a channel (z y x), of the voxels in `mask`, a few slices at a time."""
    count, total, squares = 0, 0.0, 0.0
    parts = [(channel[part], None if mask is None else mask[part]) for part in slabs(channel.shape)]
    for values, inside in parts:
        chosen = values if inside is None else values[inside]
        count, total = count + chosen.size, total + float(chosen.sum(dtype=np.float64))
    if not count:
        return 0.0, 0.0
    mean = total / count
    for values, inside in parts:
        chosen = values if inside is None else values[inside]
        squares += float(np.square(chosen - np.float64(mean)).sum())
    return mean, float(np.sqrt(squares / count))


class Normalized:
    """A channel (z y x) of which slices are normalized when they are read."""

    def __init__(self, channel: NDArray[Any], scaling: Scaling, mask: NDArray[np.bool_] | None = None) -> None:
        self.channel, self.scaling, self.mask = channel, scaling, mask if scaling.in_mask else None

    @property
    def shape(self) -> tuple[int, ...]:
        """(z, y, x) voxels."""
        return self.channel.shape

    def __getitem__(self, index: slice) -> NDArray[np.float32]:
        return self.scaling.of(self.channel[index], None if self.mask is None else self.mask[index])

    def along(self, axis: int) -> Normalized:
        """The same channel with another axis first, so that slices along it can be read."""
        mask = None if self.mask is None else np.moveaxis(self.mask, axis, 0)
        return Normalized(np.moveaxis(self.channel, axis, 0), self.scaling, mask)


def check_fingerprint(schemes: Sequence[Scheme], fingerprint: Fingerprint, channels: int) -> None:
    """Raise `DataError` unless there is a scheme for each channel, and statistics where 'ct' needs them."""
    if len(schemes) != channels:
        raise DataError(f"image has {channels} channels, expected {len(schemes)}; check its channel files")
    if "ct" in schemes and len(fingerprint) != len(schemes):
        raise DataError(
            f"'ct' normalization needs a fingerprint of {len(schemes)} channels; compute it from labelled cases"
        )
