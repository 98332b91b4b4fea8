"""Foreground intensities of the training cases, by which CT is normalized.

Source: nnU-Net's `DatasetFingerprintExtractor` (Isensee et al., Nat Methods 18, 203, 2021).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskmed_zoo.errors import DataError


@dataclass(frozen=True)
class IntensityStats:
    """Foreground intensities of one channel over the training cases, in the image's units (HU for CT)."""

    mean: float
    std: float
    percentile_00_5: float
    percentile_99_5: float

    def to_dict(self) -> dict[str, float]:
        """The four numbers by name, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> IntensityStats:
        """The inverse of `to_dict`; raises `DataError` for entries that are missing or no statistics."""
        names = list(cls.__dataclass_fields__)
        try:
            numbers = {name: float(values[name]) for name in names}
            if any(isinstance(values[name], bool | str) or not math.isfinite(numbers[name]) for name in names):
                raise ValueError("not a number")
            found = cls(**numbers)
            if found.std < 0 or found.percentile_00_5 > found.percentile_99_5:
                raise ValueError("not statistics")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"fingerprint: expected finite numbers {', '.join(names)}, got {values}") from error
        return found


Fingerprint = tuple[IntensityStats, ...]
"""One entry per channel."""


def fingerprint(samples: Sequence[NDArray[Any]]) -> Fingerprint:
    """Statistics per channel over foreground samples (c n) of several cases; `DataError` if there is none at all."""
    if sum(sample.shape[1] for sample in samples) == 0:
        raise DataError("fingerprint: no foreground voxel in any training case; check the label maps")
    stats: list[IntensityStats] = []
    for values in np.concatenate(samples, axis=1).astype(np.float64):
        low, high = np.percentile(values, (0.5, 99.5))
        stats.append(IntensityStats(float(values.mean()), float(values.std()), float(low), float(high)))
    return tuple(stats)
