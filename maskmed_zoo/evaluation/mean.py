"""The mean of what there is."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are not None; None without any."""
    present = [value for value in values if value is not None]
    return fmean(present) if present else None
