"""What thresholds change in a case: probabilities of the few voxels whose label any of them can change.

Idea: weights of thresholds lie between those of the lowest and the highest one, so a label whose probability is smaller
than the largest one by more than their ratio wins under no thresholds at all. Where only one label is left, the voxel
is settled; of the others, mostly at borders, what is left is kept, and gives the label map of any thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskmed_zoo.data.crop import Box
from maskmed_zoo.inference.postprocessing import Step
from maskmed_zoo.labels import Labels
from maskmed_zoo.postprocessing.counts import LabelCounts

GRID = (0.2, 0.3, 0.4, 0.6, 0.7, 0.8)
"""Thresholds that are tried; .5 is what label maps have."""
LIGHTEST, *_, HEAVIEST = sorted(Step(label="any", do="threshold", at=at).weight for at in GRID)
RATIO = 1.001 * HEAVIEST / LIGHTEST
"""Of the largest probability to the smallest that can win beside it, with room for rounding."""


@dataclass(frozen=True, eq=False)
class Undecided:
    """Voxels (n) of a map, counted along its flat array, and of each the entries from `starts` (n) to the next's.

    An entry (m) is a label that can win there, in the order of labels, and its probability.
    """

    voxels: NDArray[np.int64]
    starts: NDArray[np.int64]
    labels: NDArray[np.int16]
    probabilities: NDArray[np.float32]

    def winners(self, weights: Mapping[int, float]) -> NDArray[np.int16]:
        """The label (n) of the largest probability, those of labels in `weights` multiplied by these; of equal ones the
        first.
        """
        if not len(self.voxels):
            return np.zeros(0, np.int16)
        factors = np.ones(int(self.labels.max()) + 1, np.float32)
        for label, weight in weights.items():
            if label < len(factors):
                factors[label] = weight
        given = self.probabilities * factors[self.labels]
        is_largest = given == np.repeat(np.maximum.reduceat(given, self.starts), self._counts)
        place = self._owners[is_largest]
        return self.labels[is_largest][np.diff(place, prepend=-1) > 0]

    def only(self, chosen: NDArray[np.bool_]) -> Undecided:
        """Of some of the voxels (n)."""
        counts, is_kept = self._counts[chosen], np.repeat(chosen, self._counts)
        starts = np.cumsum(counts) - counts
        return Undecided(self.voxels[chosen], starts, self.labels[is_kept], self.probabilities[is_kept])

    def with_label(self, label: int) -> NDArray[np.bool_]:
        """Whether the label can win at each voxel (n)."""
        found = np.zeros(len(self.voxels), np.bool_)
        found[self._owners[self.labels == label]] = True
        return found

    @property
    def _counts(self) -> NDArray[np.int64]:
        return np.diff(self.starts, append=len(self.labels))

    @property
    def _owners(self) -> NDArray[np.int64]:
        """Of each entry (m) the place of its voxel in `voxels`."""
        return np.repeat(np.arange(len(self.voxels)), self._counts)

    def write(self, path: Path) -> None:
        """As an .npz file."""
        np.savez(path, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def read(cls, path: Path) -> Self:
        """What `write` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            return cls(**{field.name: stored[field.name] for field in fields(cls)})

    @classmethod
    def joined(cls, parts: Sequence[Undecided]) -> Self:
        """Of voxels in several places."""
        lengths = np.cumsum([0, *(len(part.labels) for part in parts)])
        return cls(
            np.concatenate([np.zeros(0, np.int64), *(part.voxels for part in parts)]),
            np.concatenate([np.zeros(0, np.int64), *(p.starts + n for p, n in zip(parts, lengths, strict=False))]),
            np.concatenate([np.zeros(0, np.int16), *(part.labels for part in parts)]),
            np.concatenate([np.zeros(0, np.float32), *(part.probabilities for part in parts)]),
        )


class Collector:
    """Takes the slabs of `Predictor.segment`, of an image of `shape` (z y x); given once more, a slab is replaced."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = shape
        self.slabs: dict[tuple[int, ...], Undecided] = {}

    def take(self, place: Box, probabilities: Tensor) -> None:
        """Those (k z y x) of a place."""
        starts = tuple(part.start for part in place)
        can_win = probabilities * RATIO >= probabilities.amax(0)
        is_open = can_win.sum(0) > 1
        z, y, x = (along + start for along, start in zip(is_open.nonzero(as_tuple=True), starts, strict=True))
        entries = can_win[:, is_open].T  # (n k)
        counts = entries.sum(1)
        self.slabs[starts] = Undecided(
            ((z * self.shape[1] + y) * self.shape[2] + x).cpu().numpy(),
            (counts.cumsum(0) - counts).cpu().numpy(),
            entries.nonzero()[:, 1].to(torch.int16).cpu().numpy(),
            probabilities[:, is_open].T[entries].float().cpu().numpy(),
        )

    def result(self) -> Undecided:
        """Of the whole image."""
        return Undecided.joined([*self.slabs.values()])


def changes_alone(
    undecided: Undecided, reference: NDArray[np.integer], counts: Mapping[str, LabelCounts], labels: Labels
) -> dict[Step, dict[str, float]]:
    """By each threshold of each label, alone: the changes in Dice of the labels in `counts`, where there is one.

    `reference` (n): values there; `counts` are those of the label map without thresholds.
    """
    found, size = dict[Step, dict[str, float]](), len(labels.names)
    plain = {labels[name]: one.plain.sum(0).tolist() for name, one in counts.items()}
    is_counted = np.ones(len(reference), np.bool_) if labels.ignore is None else reference != labels.ignore
    before = undecided.winners({})
    for name, value in labels.foreground.items():
        chosen = undecided.with_label(value) & is_counted
        here, there, old = undecided.only(chosen), reference[chosen], before[chosen]
        for at in GRID:
            step = Step(label=name, do="threshold", at=at)
            new = here.winners({value: step.weight})
            is_moved = new != old
            sizes = _differences(new[is_moved], old[is_moved], size)
            right = [side[is_moved & (side == there)] for side in (new, old)]
            shared = _differences(right[0], right[1], size)
            found[step] = {}
            for other, one in counts.items():
                place = labels[other]
                if sizes[place] or shared[place]:
                    _, own, both = plain[place]
                    after = one.dice_of(own + int(sizes[place]), both + int(shared[place]))
                    found[step][other] = after - one.dice_of(own, both)
    return found


def _differences(more: NDArray[np.int16], less: NDArray[np.int16], size: int) -> NDArray[np.int64]:
    """By value, how often it is in one and not in the other."""
    return np.bincount(more, minlength=size) - np.bincount(less, minlength=size)
