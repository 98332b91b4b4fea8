"""Normalized intensities: what a network sees of an image.

Source: nnU-Net's `CTNormalization` and `ZScoreNormalization` (Isensee et al., Nat Methods 18, 203, 2021).
Deviations: z-scores and CT statistics are those of the resampled image (nnU-Net normalizes first); there is no crop to
the non-zero region.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from maskmed_zoo.data.fingerprint import Fingerprint
from maskmed_zoo.errors import DataError

Scheme = Literal["ct", "zscore"]


def schemes(normalization: Literal["auto", "ct", "zscore"], channels: Sequence[str]) -> tuple[Scheme, ...]:
    """One normalisation scheme per channel; 'auto' is 'ct' for a channel named CT in any case, else 'zscore'."""
    if normalization != "auto":
        return (normalization,) * len(channels)
    return tuple("ct" if name.strip().lower() == "ct" else "zscore" for name in channels)


def normalize(
    array: NDArray[Any],
    schemes: Sequence[Scheme],
    fingerprint: Fingerprint | None,
    *,
    moments: tuple[Sequence[float] | NDArray[Any], Sequence[float] | NDArray[Any]] | None = None,
) -> NDArray[np.float32]:
    """Normalised copy of an image (c z y x), float32.

    'ct': clip to the fingerprint's percentiles 0.5 and 99.5, subtract its mean, divide by its standard deviation.
    'zscore': subtract the mean and divide by the standard deviation of all voxels of the channel; for a patch, give
    the means (c) and standard deviations (c) of the whole case as `moments`.
    Raises `DataError` if the fingerprint is missing, or channels do not match.
    """
    if len(schemes) != array.shape[0]:
        raise DataError(f"image has {array.shape[0]} channels, expected {len(schemes)}; check its channel files")
    if "ct" in schemes and (fingerprint is None or len(fingerprint) != len(schemes)):
        raise DataError(
            f"'ct' normalization needs a fingerprint of {len(schemes)} channels; compute it from training cases"
        )
    result = np.empty(array.shape, np.float32)
    for index, scheme in enumerate(schemes):
        channel = array[index].astype(np.float32)
        if scheme == "ct" and fingerprint is not None:
            stats = fingerprint[index]
            np.clip(channel, stats.percentile_00_5, stats.percentile_99_5, out=channel)
            mean, std = stats.mean, stats.std
        else:
            mean = float(channel.mean(dtype=np.float64) if moments is None else moments[0][index])
            std = float(channel.std(dtype=np.float64) if moments is None else moments[1][index])
        result[index] = (channel - np.float32(mean)) / np.float32(max(std, 1e-8))
    return result
