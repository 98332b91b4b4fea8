"""The lesions of a label: its connected parts (26 neighbours) in prediction and reference, and how they meet.

BraTS counts lesions otherwise: see `brats_lesions`. Source: the rule that its organisers published for 2023
(Synapse syn51156910, "lesion-wise metrics"; github.com/rachitsaluja/BraTS-2023-Metrics). The tests take its steps one
by one, with cc3d and `surface-distance`; the published program itself is not run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maskmed_zoo.evaluation.matching import Counts, Overlaps, overlaps
from maskmed_zoo.evaluation.surfaces import Mask
from maskmed_zoo.metric_settings import MetricSettings

TOUCHING = np.ones((3, 3, 3), np.bool_)
"""A voxel and its 26 neighbours."""
DILATION = ndimage.generate_binary_structure(3, 2)
"""A voxel and the 18 neighbours that share a face or an edge with it, as BraTS dilates."""
LESION = "A lesion is a part of a label that is connected by 26 neighbours"
PAIRS = f"{LESION}; a predicted and a reference lesion are a pair if their IoU is over 0.5"
"""In the words of definitions."""


def lesions(pred: Mask, ref: Mask) -> Overlaps:
    """How the lesions of two masks (z y x) meet."""
    return overlaps(connected(pred), connected(ref))


def connected(mask: Mask) -> NDArray[np.int32]:
    """Numbers 1, 2, … of the 26-connected parts of a mask (z y x), 0 elsewhere."""
    return cast(tuple[NDArray[np.int32], int], ndimage.label(mask, TOUCHING))[0]


@dataclass(frozen=True, eq=False)
class BratsLesions:
    """The n lesions of a label that count in BraTS, and the predicted parts that belong to each.

    `regions`, the dilated lesions, and `parts` are numbers (z y x), and `reference` is the mask of the lesions in the
    former. `numbers` (n) and `dice` (n) are of the lesions that are large enough; `false` is how many predicted parts
    belong to no lesion, be it large enough or not.
    """

    reference: Mask
    regions: NDArray[np.int32]
    parts: NDArray[np.int32]
    meetings: Overlaps
    numbers: Counts
    dice: NDArray[np.float64]
    false: int

    def mean(self, values: Sequence[float], *, false: float, nothing: float) -> float:
        """Of the lesions' `values` and, for every false part, of `false`; `nothing` without any of both."""
        count = len(values) + self.false
        return (sum(values) + self.false * false) / count if count else nothing

    def masks(self) -> Iterator[tuple[Mask, Mask]]:
        """Of each lesion, the predicted parts that belong to it and itself: (z y x) of a box around both."""
        parts, regions = ndimage.find_objects(self.parts), ndimage.find_objects(self.regions)
        for number in self.numbers.tolist():
            own = self.meetings.second[self.meetings.first == number - 1] + 1
            box = _union([regions[number - 1], *(parts[part - 1] for part in own.tolist())])
            yield np.isin(self.parts[box], own), self.reference[box] & (self.regions[box] == number)


def brats_lesions(pred: Mask, ref: Mask, dilation: int, smallest: float) -> BratsLesions:
    """The lesions of two masks (z y x) as BraTS 2023 counts them.

    The reference is dilated by `dilation` voxels (18 neighbours); what of it is connected then is one lesion, of the
    voxels that it had before. All predicted parts (26 neighbours) that touch a dilated lesion belong to it, and one may
    belong to several. Lesions of at most `smallest` voxels are left out of the scores, but what belongs to them is not
    false. What a lesion is dilated by beyond the border of the volume connects none that are not connected within it.
    Memory: some 17 bytes per voxel, of which half goes with what is returned.
    """
    pred, ref = (np.pad(mask, dilation) for mask in (pred, ref))
    grown = ndimage.binary_dilation(ref, DILATION, dilation) if dilation else ref
    regions, parts = connected(np.asarray(grown, np.bool_)), connected(pred)
    meetings = overlaps(parts, regions)  # every region holds a lesion, and the numbers are 1, 2, … without a gap
    count = len(meetings.reference)
    sizes = np.bincount(regions[ref], minlength=count + 1)[1:]
    inside = np.bincount(regions[ref & pred], minlength=count + 1)[1:]  # a part inside a lesion belongs to it
    covering = np.bincount(meetings.first, meetings.prediction[meetings.second], count)
    large = np.flatnonzero(sizes > smallest)
    dice = 2 * inside[large] / (sizes[large] + covering[large])
    return BratsLesions(ref, regions, parts, meetings, large + 1, dice, meetings.false)


def brats_words(settings: MetricSettings) -> str:
    """What a lesion is, and what belongs to it, in the words of a definition."""
    return (
        f"the reference is dilated by {settings.brats_dilation} voxels (brats_dilation; 18 neighbours), and what of it "
        f"is connected then (26 neighbours) is one lesion, of the voxels it had before; connected parts of the "
        f"prediction that touch a dilated lesion belong to it; lesions of {settings.brats_smallest:g} mm³ or less "
        f"(brats_smallest) do not count, nor does what belongs to them alone"
    )


def _union(boxes: list[Any]) -> tuple[slice, ...]:
    return tuple(slice(min(b.start for b in axis), max(b.stop for b in axis)) for axis in zip(*boxes, strict=True))
