"""The fingerprint of a data set: grids and foreground intensities of its labelled cases.

Idea: every case counts the same, however many foreground voxels it has, which is what nnU-Net's drawing of the same
number of voxels from each comes to on average. So the numbers are exact and the same every time.
Source: nnU-Net's `DatasetFingerprintExtractor` (Isensee et al., Nat Methods 18, 203, 2021).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskmed_zoo.data.case import Case, load_case
from maskmed_zoo.data.case_facts import CaseFacts, FactsFolder, facts_of
from maskmed_zoo.data.dataset import RawDataset
from maskmed_zoo.data.over_cases import Progress, over_cases
from maskmed_zoo.errors import DataError, Failures
from maskmed_zoo.memory import within_memory
from maskmed_zoo.settings import Size3, Spacing3

_NEEDED = ("mean", "std", "percentile_00_5", "percentile_99_5")


@dataclass(frozen=True)
class IntensityStats:
    """Foreground intensities of one channel over the labelled cases, in the image's units (HU for CT).

    `median`, `min` and `max` are None in runs and weights of before they were kept; nothing is normalized by them.
    """

    mean: float
    std: float
    percentile_00_5: float
    percentile_99_5: float
    median: float | None = None
    min: float | None = None
    max: float | None = None

    def to_dict(self) -> dict[str, float]:
        """The numbers by name, for JSON."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> IntensityStats:
        """The inverse of `to_dict`; raises `DataError` for entries that are missing or no statistics."""
        try:
            names = [*_NEEDED, *(name for name in ("median", "min", "max") if values.get(name) is not None)]
            numbers = {name: float(values[name]) for name in names}
            if any(isinstance(values[name], bool | str) or not math.isfinite(numbers[name]) for name in names):
                raise ValueError("not a number")
            found = cls(**numbers)
            if found.std < 0 or found.percentile_00_5 > found.percentile_99_5:
                raise ValueError("not statistics")
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"fingerprint: expected finite numbers {', '.join(_NEEDED)}, got {values}") from error
        return found


Fingerprint = tuple[IntensityStats, ...]
"""One entry per channel."""


@dataclass(frozen=True, eq=False)
class DatasetFingerprint:
    """What is known of the labelled cases of one data set, or of several together, from the voxels of their files."""

    cases: tuple[CaseFacts, ...]

    @classmethod
    def merged(cls, fingerprints: Iterable[DatasetFingerprint]) -> DatasetFingerprint:
        """That of the cases of all data sets."""
        return cls(tuple(case for fingerprint in fingerprints for case in fingerprint.cases))

    @cached_property
    def intensities(self) -> Fingerprint:
        """Statistics per channel, each case with the same weight.

        Raises `DataError` without any foreground voxel, and for cases of different numbers of channels.
        """
        found = [case for case in self.cases if case.has_foreground]
        if not found:
            raise DataError("fingerprint: no foreground voxel in any labelled case; check the label maps")
        counts = sorted({len(case.means) for case in found})
        if len(counts) > 1:
            shown = " and ".join(map(str, counts))
            raise DataError(f"fingerprint: cases of {shown} channels; take data sets of the same channels")
        return tuple(_pooled(found, channel) for channel in range(len(found[0].means)))

    @property
    def spacings(self) -> tuple[Spacing3, ...]:
        """Voxel size (z, y, x), mm, of each case."""
        return tuple(case.spacing for case in self.cases)

    @property
    def shapes_after_crop(self) -> tuple[Size3, ...]:
        """Voxels (z, y, x) of each case's non-zero region."""
        return tuple(case.shape_after_crop for case in self.cases)

    @property
    def median_relative_size(self) -> float:
        """Median over the cases of the share of their voxels that the crop leaves; `DataError` without a case."""
        if not self.cases:
            raise DataError("fingerprint: no labelled case; add some")
        return float(median(case.relative_size for case in self.cases))


def fingerprint_dataset(
    dataset: RawDataset,
    cases: Sequence[Case] | None = None,
    *,
    folder: Path | None = None,
    workers: int = 0,
    progress: Progress | None = None,
    failures: Failures | None = None,
) -> DatasetFingerprint:
    """Read those of `cases`, by default all of the data set, of which `folder` does not hold the facts yet.

    `folder` is a cache folder, in which facts are kept; None keeps none. With `workers` threads (0: in this one).
    `progress(done, total)` counts all cases. Raises one `DataError` for all cases that cannot be used, after the
    others, unless they are to be collected in `failures`, and left out; `OutputError` if facts cannot be written.
    """
    chosen, kept = dataset.cases if cases is None else tuple(cases), Failures() if failures is None else failures
    facts = FactsFolder(folder, dataset)

    def one(case: Case) -> CaseFacts | None:
        with kept.kept(), within_memory(f"{case.images[0]}: this case"):
            return _facts_of_case(case, facts)
        return None

    found = over_cases(chosen, one, workers=workers, progress=progress)
    if failures is None:
        kept.tell(len(chosen), "the others can be used", in_one_line=True)
    return DatasetFingerprint(tuple(value for value in found if value is not None))


def _facts_of_case(case: Case, facts: FactsFolder) -> CaseFacts:
    found = facts.read(case)
    if found is None:
        image, labels, geometry = load_case(case, facts.dataset)
        if labels is None:
            raise DataError(f"{case.images[0]}: case '{case.identifier}' has no label map, which a fingerprint needs")
        found = facts_of(image, labels, geometry.spacing)
        facts.keep(case, found)
    return found


def _pooled(cases: Sequence[CaseFacts], channel: int) -> IntensityStats:
    """One channel over cases that have foreground."""
    means = np.array([case.means[channel] for case in cases])
    variance = np.mean([case.variances[channel] for case in cases]) + means.var()
    values = np.concatenate([case.values[channel] for case in cases])
    weights = np.concatenate([np.full(case.values.shape[1], 1 / case.values.shape[1]) for case in cases])
    low, middle, high = _percentiles(values, weights, (0.5, 50.0, 99.5))
    return IntensityStats(
        mean=float(means.mean()),
        std=float(np.sqrt(variance)),
        percentile_00_5=low,
        percentile_99_5=high,
        median=middle,
        min=float(min(case.lows[channel] for case in cases)),
        max=float(max(case.highs[channel] for case in cases)),
    )


def _percentiles(values: NDArray[Any], weights: NDArray[Any], wanted: Sequence[float]) -> list[float]:
    """Percentiles of weighted values, linear between the middles of their weights."""
    order = np.argsort(values, kind="stable")
    ordered, shares = values[order].astype(np.float64), weights[order]
    middles = (np.cumsum(shares) - shares / 2) / shares.sum()
    return np.interp(np.asarray(wanted) / 100, middles, ordered).tolist()
