"""Which objects of a prediction meet which of a reference, and what follows for each of them.

Objects are numbers in two maps of one shape, wherever these come from: the instances of a network, or the connected
parts of a label. Pairs of objects that do not meet cost nothing, however many objects there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.integer[Any]]
Counts = NDArray[np.int64]
MATCH = 0.5
"""IoU above which a predicted and a reference object are a pair; no object is in two pairs then."""


@dataclass(frozen=True, eq=False)
class Overlaps:
    """The meetings of n reference and m predicted objects.

    `reference` (n) and `prediction` (m) are sizes in voxels, objects in the order of their numbers. Of the q meetings
    `first` (q) and `second` (q) are the places of the reference and the predicted object in these, `shared` (q) the
    voxels that they have in common, 1 or more.
    """

    reference: Counts
    prediction: Counts
    first: Counts
    second: Counts
    shared: Counts

    @property
    def ious(self) -> NDArray[np.float64]:
        """(q) of the meetings."""
        return self.shared / (self.reference[self.first] + self.prediction[self.second] - self.shared)

    @property
    def dice(self) -> NDArray[np.float64]:
        """(n) of every reference object with all predicted objects that meet it, taken together; 0 where none does."""
        count = len(self.reference)
        inside = np.bincount(self.first, self.shared, count)
        covering = np.bincount(self.first, self.prediction[self.second], count)
        return 2 * inside / (self.reference + covering)

    @property
    def false(self) -> int:
        """How many predicted objects meet no reference object."""
        return len(self.prediction) - len(np.unique(self.second))

    def pairs(self, over: float = MATCH) -> list[float]:
        """IoU of the pairs, all greater than `over`: taken from the largest down, every object in one pair at most."""
        ious = self.ious
        first, second = set[int](), set[int]()
        found = list[float]()
        for meeting in np.argsort(-ious, kind="stable").tolist():
            if not ious[meeting] > over:
                break
            r, p = int(self.first[meeting]), int(self.second[meeting])
            if r not in first and p not in second:
                first.add(r)
                second.add(p)
                found.append(float(ious[meeting]))
        return found


def overlaps(pred: Ids, ref: Ids) -> Overlaps:
    """The meetings of the objects of two maps of numbers (z y x), 0 for none."""
    (p_places, p_sizes), (r_places, r_sizes) = (_numbered(side) for side in (pred, ref))
    both = (pred > 0) & (ref > 0)
    keys = r_places[ref[both]] * max(1, len(p_sizes)) + p_places[pred[both]]
    met, shared = np.unique(keys, return_counts=True)
    first, second = np.divmod(met, max(1, len(p_sizes)))
    return Overlaps(r_sizes, p_sizes, first, second, shared.astype(np.int64))


def _numbered(ids: Ids) -> tuple[Counts, Counts]:
    """Table from the numbers of a map to the places of the objects among those that are there, and their sizes."""
    sizes = np.bincount(ids[ids > 0])
    there = np.flatnonzero(sizes)
    places = np.zeros(len(sizes), np.int64)
    places[there] = np.arange(len(there))
    return places, sizes[there]


class Quality(NamedTuple):
    """Panoptic quality and its factors; `pq` and `rq` are None without any object, `sq` is None without a pair."""

    pq: float | None
    sq: float | None
    rq: float | None

    @classmethod
    def of(cls, met: Overlaps) -> Quality:
        """Of the objects of one label in one case."""
        return cls.of_pairs(met.pairs(), len(met.prediction), len(met.reference))

    @classmethod
    def of_pairs(cls, ious: Sequence[float], predicted: int, reference: int) -> Quality:
        """From the IoU of the pairs, and how many objects there are on each side."""
        if not predicted + reference:
            return cls(None, None, None)
        rq = 2 * len(ious) / (predicted + reference)
        return cls(rq * fmean(ious), fmean(ious), rq) if ious else cls(0.0, None, 0.0)
