"""What the score of a label is made of, part by part: enough to know it after any choice of parts, without the maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskmed_zoo.data.parts import boxes_of, parts_of
from maskmed_zoo.inference.postprocessing import Step, fill_holes
from maskmed_zoo.labels import Labels

NO_PARTS = np.zeros((0, 3), np.int64)


@dataclass(frozen=True, eq=False)
class LabelCounts:
    """One label in one case.

    `plain` and `filled` (parts 3), of the prediction without and with its holes filled: each part's voxels, those of
    them that are not 'ignore' in the reference, and those that are the label there. `reference` voxels of the label,
    and the volumes of its parts (mm³). A voxel has `voxel_mm3`.
    """

    plain: NDArray[np.int64]
    filled: NDArray[np.int64]
    reference: int
    reference_mm3: NDArray[np.float64]
    voxel_mm3: float

    def dice(self, steps: Sequence[Step] = ()) -> float:
        """Dice after the steps for this label; 1 where neither side has it then."""
        parts = self.filled if any(step.do == "fill_holes" for step in steps) else self.plain
        for step in steps:
            parts = parts[step.kept(parts[:, 0], self.voxel_mm3)]
        return self.dice_of(*parts.sum(0).tolist()[1:])

    def dice_of(self, counted: int, shared: int) -> float:
        """Dice of so many voxels of the label that are not 'ignore' in the reference, and that are the label there."""
        return 2 * shared / (counted + self.reference) if counted + self.reference else 1.0


@dataclass(frozen=True, eq=False)
class AtThresholds:
    """A case at thresholds: the `changes` in Dice that each alone makes, by label, of labels where there is one.

    `counts` gives the counts of the annotated labels at several thresholds together.
    """

    changes: Mapping[Step, Mapping[str, float]]
    counts: Callable[[tuple[Step, ...]], Mapping[str, LabelCounts]]


@dataclass(frozen=True, eq=False)
class CaseCounts:
    """A case with the counts of the labels that were annotated in it; `patient` is the case where nothing is known.

    `thresholds` where its probabilities were computed.
    """

    name: str
    patient: str
    labels: Mapping[str, LabelCounts]
    thresholds: AtThresholds | None = None

    def dice(self, steps: Sequence[Step]) -> dict[str, float]:
        """Of each label after all steps."""
        moved = tuple(step for step in steps if step.kind == "threshold")
        found = self.thresholds.counts(moved) if self.thresholds and moved else self.labels
        return {name: one.dice([step for step in steps if step.label == name]) for name, one in found.items()}


def counts_of(
    prediction: NDArray[Any], reference: NDArray[Any], labels: Labels, wanted: Sequence[str], spacing: Sequence[float]
) -> dict[str, LabelCounts]:
    """Of the `wanted` labels in a predicted and a reference label map (z y x); holes are filled in the former."""
    values, voxel_mm3 = [labels[name] for name in wanted], prod(spacing)
    boxes, theirs = boxes_of(prediction, values), boxes_of(reference, values)
    found: dict[str, LabelCounts] = {}
    for name, value in zip(wanted, values, strict=True):
        plain = filled = NO_PARTS
        if value in boxes:
            ours, there = prediction[boxes[value]], reference[boxes[value]]
            plain = filled = _counted(ours, there, value, labels.ignore)
            before = int(plain[:, 0].sum())
            fill_holes(ours, value)
            if np.count_nonzero(ours == value) > before:
                filled = _counted(ours, there, value, labels.ignore)
        sizes = parts_of(reference[theirs[value]], value).sizes if value in theirs else np.zeros(0, np.int64)
        volumes = sizes.astype(np.float64) * voxel_mm3
        found[name] = LabelCounts(plain, filled, int(sizes.sum()), volumes, voxel_mm3)
    return found


def _counted(ours: NDArray[Any], there: NDArray[Any], value: int, ignore: int | None) -> NDArray[np.int64]:
    """(parts 3) of a label in its box."""
    parts = parts_of(ours, value)
    counts = np.zeros((parts.count + 1, 3), np.int64)
    for planes, numbers in parts.slabs():
        for column, inside in ((1, there[planes] != ignore), (2, there[planes] == value)):
            counts[:, column] += np.bincount(numbers[inside], minlength=parts.count + 1)
    counts[1:, 0] = parts.sizes
    return counts[1:]
