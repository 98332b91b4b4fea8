"""Normalized intensities: what a network sees of an image.

Source: nnU-Net's `default_normalization_schemes.py`, and its mapping from names of channels to schemes (Isensee et al.,
Nat Methods 18, 203, 2021).
Deviations: z-scores, ranges and CT statistics are those of the resampled image (nnU-Net normalizes first); there is no
crop to the non-zero region.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from maskmed_zoo.data.fingerprint import Fingerprint
from maskmed_zoo.errors import DataError

Scheme = Literal["ct", "zscore", "nonorm", "rescale_to_0_1", "rgb_to_0_1"]
BY_NAME: dict[str, Scheme] = {name: name for name in get_args(Scheme)}
"""Names of channels that mean a scheme, in any case; a channel of another name has z-scores."""
Pair = tuple[Sequence[float] | NDArray[Any], Sequence[float] | NDArray[Any]]
_TINY = 1e-8


def schemes(normalization: Literal["auto", "ct", "zscore"], channels: Sequence[str]) -> tuple[Scheme, ...]:
    """One normalisation scheme per channel; 'auto' goes by the channel's name, see `BY_NAME`."""
    if normalization != "auto":
        return (normalization,) * len(channels)
    return tuple(BY_NAME.get(name.strip().casefold(), "zscore") for name in channels)


def normalize(
    array: NDArray[Any],
    schemes: Sequence[Scheme],
    fingerprint: Fingerprint | None,
    *,
    moments: Pair | None = None,
    extremes: Pair | None = None,
) -> NDArray[np.float32]:
    """Normalised copy of an image (c z y x), float32.

    'ct': clip to the fingerprint's percentiles 0.5 and 99.5, subtract its mean, divide by its standard deviation.
    'zscore': subtract the mean and divide by the standard deviation of all voxels of the channel. 'nonorm': as it is.
    'rescale_to_0_1': from the smallest value to the largest. 'rgb_to_0_1': divide by 255. For a patch, give the means
    and standard deviations (c) of the whole case as `moments`, its smallest and largest values (c) as `extremes`.
    Raises `DataError` if the fingerprint is missing, channels do not match, or 'rgb_to_0_1' has not 0 … 255.
    """
    if len(schemes) != array.shape[0]:
        raise DataError(f"image has {array.shape[0]} channels, expected {len(schemes)}; check its channel files")
    if "ct" in schemes and (fingerprint is None or len(fingerprint) != len(schemes)):
        raise DataError(
            f"'ct' normalization needs a fingerprint of {len(schemes)} channels; compute it from training cases"
        )
    if "rgb_to_0_1" in schemes and extremes is None:
        flat = array.reshape(len(schemes), -1)
        check_range(schemes, (flat.min(1), flat.max(1)), "image")
    result = np.empty(array.shape, np.float32)
    for index, scheme in enumerate(schemes):
        channel = array[index].astype(np.float32)
        if scheme == "ct" and fingerprint is not None:
            stats = fingerprint[index]
            np.clip(channel, stats.percentile_00_5, stats.percentile_99_5, out=channel)
            mean, std = stats.mean, stats.std
        elif scheme == "zscore":
            mean = float(channel.mean(dtype=np.float64) if moments is None else moments[0][index])
            std = float(channel.std(dtype=np.float64) if moments is None else moments[1][index])
        else:
            low, high = (channel.min(), channel.max()) if extremes is None else (e[index] for e in extremes)
            mean, std = _shift(scheme, float(low), float(high))
        result[index] = (channel - np.float32(mean)) / np.float32(max(std, _TINY))
    return result


def check_range(schemes: Sequence[Scheme], extremes: Pair, where: str) -> None:
    """Raise `DataError` unless the channels of a case have values that their schemes can take."""
    for index, scheme in enumerate(schemes):
        low, high = (float(e[index]) for e in extremes)
        if scheme == "rgb_to_0_1" and not (low >= 0 and high <= 255):
            raise DataError(
                f"{where}: channel {index} has values {low:g} … {high:g}, 'rgb_to_0_1' expects 0 … 255; name the "
                f"channel otherwise if it is no color"
            )


def _shift(scheme: Scheme, low: float, high: float) -> tuple[float, float]:
    """What is subtracted and what is divided by, for the schemes that only look at the range."""
    if scheme == "rescale_to_0_1":
        return low, high - low
    return 0.0, 255.0 if scheme == "rgb_to_0_1" else 1.0
