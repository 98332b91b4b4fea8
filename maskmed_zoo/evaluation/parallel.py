"""The same for several labels of a case, side by side in threads: NumPy and SciPy work outside the interpreter lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from maskmed_zoo.evaluation.case import LabelMapPair

MOST_THREADS = 8
VOXELS_AT_ONCE = 2**27
"""Of the boxes of labels that are scored side by side; lesions take the most, some 17 bytes for each."""
Value = TypeVar("Value")


def over_labels(pair: LabelMapPair, names: Sequence[str], value: Callable[[str], Value]) -> dict[str, Value]:
    """The value of every label, each computed by one of `threads`."""
    with ThreadPoolExecutor(threads(pair, names)) as pool:
        return dict(zip(names, pool.map(value, names), strict=True))


def threads(pair: LabelMapPair, names: Sequence[str]) -> int:
    """As many as there are cores, up to eight, and fewer where labels lie all over a large image; one at least."""
    largest = max((prod(side.stop - side.start for side in pair.boxes[name]) for name in names), default=1)
    return max(1, min(MOST_THREADS, os.cpu_count() or 1, VOXELS_AT_ONCE // largest))
