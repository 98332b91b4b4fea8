"""The same for several labels of a case, side by side in threads: NumPy and SciPy work outside the interpreter lock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from maskmed_zoo.files import reading_threads


def over_labels(names: Sequence[str], value: Callable[[str], float]) -> dict[str, float]:
    """The value of every label, each computed by one thread of as many as there are cores, up to eight."""
    with ThreadPoolExecutor(reading_threads()) as pool:
        return dict(zip(names, pool.map(value, names), strict=True))
