"""Foreground intensities of the training cases, by which CT is normalized.

Source: nnU-Net's `DatasetFingerprintExtractor` (Isensee et al., Nat Methods 18, 203, 2021).
"""

from __future__ import annotations

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
        """The inverse of `to_dict`; raises `DataError` for missing or non-numeric entries."""
        try:
            return cls(**{name: float(values[name]) for name in cls.__dataclass_fields__})
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"fingerprint: expected numbers {', '.join(cls.__dataclass_fields__)}, got {values}"
            ) from error


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
