"""Instance segmentation: which objects the queries of a window mean, and one map of all objects of a volume.

A window follows Mask2Former's panoptic rule (arXiv 2112.01527): a query stands for an object if its best class is a
foreground label of probability `threshold` or more; a voxel goes to the query with the largest class times mask
probability; an object is kept if at least 0.8 of its mask comes to it. Where a volume has several windows, two objects
of one label from overlapping windows are the same if their IoU over what both windows see is above 0.5, so that each
has one partner at most in a window, and so on in chains (union-find); with no overlap nothing is joined. The final map
follows the label map: see `follow_labels`.

Deviations: queries of the background compete for voxels and leave no object; only voxels inside the mask count as
having come to it. Compared in the tests with Hugging Face's `compute_segments`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from maskmed_zoo.contracts import HeadOutput, StageOutput, full_precision
from maskmed_zoo.errors import JointError
from maskmed_zoo.inference.sliding_window import Place, Windows, importance

MASK = 0.5
"""Smallest probability of a voxel in a mask."""
SURVIVING = 0.8
"""Smallest share of a mask that comes to its query."""
SAME = 0.5
"""IoU over the shared region above which two views show one object."""
REMNANT = 0.5
"""An object that keeps less than this share of its largest view, the rest claimed by better placed views, is none."""


@dataclass(frozen=True, eq=False)
class Instances:
    """`ids` (z y x): 0 for none, i for the object of label `labels[i - 1]` with score `scores[i - 1]`.

    A score is the class probability of the object's query, averaged over windows; None if no query found it.
    """

    ids: NDArray[np.integer]
    labels: tuple[int, ...]
    scores: tuple[float | None, ...]


def from_queries(stage: StageOutput, threshold: float) -> list[Instances]:
    """The objects of each window from masks (b n d h w) and class logits (b n k+1)."""
    if stage.masks is None or stage.class_logits is None or stage.logits is not None:
        raise JointError("instances are made of masks with class logits; this head gives logits")
    with full_precision(stage.masks):
        best, classes = stage.class_logits.float().softmax(-1).max(-1)
        is_kept = (classes < stage.class_logits.shape[-1] - 1) & (best >= threshold)
        return [
            _of_window(masks[kept], best[sample, kept], classes[sample, kept])
            for sample, (masks, kept) in enumerate(zip(stage.masks, is_kept, strict=True))
        ]


def _of_window(masks: Tensor, scores: Tensor, classes: Tensor) -> Instances:
    """`masks` (n d h w) logits of the kept queries, `scores` and `classes` (n)."""
    if not len(masks):
        return Instances(np.zeros(tuple(masks.shape[1:]), np.int32), (), ())
    probabilities = masks.float().sigmoid()
    winner = (probabilities * scores[:, None, None, None]).argmax(0)
    inside = probabilities >= MASK
    areas = inside.flatten(1).sum(1)
    own = torch.where(inside.gather(0, winner[None])[0], winner, len(masks))
    won = torch.bincount(own.flatten(), minlength=len(masks) + 1)[:-1]
    is_object = (classes > 0) & (won > 0) & (won >= SURVIVING * areas)
    ids = torch.zeros(len(masks) + 1, dtype=torch.int32, device=masks.device)
    ids[:-1] = is_object.cumsum(0) * is_object
    return Instances(
        ids[own].cpu().numpy(), tuple(classes[is_object].tolist()), tuple(map(float, scores[is_object].tolist()))
    )


def bytes_needed(windows: Windows, image: Sequence[int], *, has_queries: bool) -> int:
    """Memory that the objects of an image of so many voxels (z, y, x) take: the `Stitcher`'s, then `follow_labels`'s.

    Those of queries are stitched. What is left out are the boxes of parts of a label that objects cover in part.
    """
    seen = math.prod(windows.shape) if has_queries else 0
    return max(12 * seen, 4 * seen + 16 * math.prod(image))


class Stitcher:
    """A consumer of windows: their objects to objects of the volume (z y x).

    Windows come in the order of `Windows.places`. A voxel belongs to the object of the window in which it lies most
    central (by the weights of `sliding_window`). Memory: 8 bytes per voxel of the volume, 12 while the result is made,
    and the maps of the windows that may still meet a later one.
    """

    def __init__(self, windows: Windows, *, threshold: float) -> None:
        self.windows, self.threshold = windows, threshold
        self.ids = np.zeros(self.windows.shape, np.int32)
        self.weights = np.zeros(self.windows.shape, np.float32)
        self.importance = importance(windows.window).numpy()
        self.labels, self.scores, self.sizes = list[int](), list[float | None](), list[int]()
        self.parents = [0]
        self.recent: list[tuple[Place, NDArray[np.integer], int]] = []

    def take(self, places: Sequence[Place], output: HeadOutput) -> None:
        """Add the objects of a batch of windows; raises `JointError` for a head that gives logits."""
        for place, found in zip(places, from_queries(output.stages[0], self.threshold), strict=True):
            self._add(place, found)

    def _add(self, place: Place, found: Instances) -> None:
        axis = self.windows.axis
        self.recent = [view for view in self.recent if view[0][axis].stop > place[axis].start]
        if not found.labels:
            return
        first = len(self.labels)
        self.labels += found.labels
        self.scores += found.scores
        self.sizes += np.bincount(found.ids.ravel(), minlength=len(found.labels) + 1)[1:].tolist()
        self.parents += range(first + 1, len(self.labels) + 1)
        small = found.ids.astype(np.uint8 if len(found.labels) < 256 else np.uint16)
        for other_place, other, other_first in self.recent:
            self._join(_shared(place, other_place, small), first, _shared(other_place, place, other), other_first)
        self.recent.append((place, small, first))
        is_better = (small > 0) & (self.importance > self.weights[place])
        self.weights[place][is_better] = self.importance[is_better]
        self.ids[place][is_better] = found.ids[is_better] + first

    def _join(self, ours: NDArray[np.integer], first: int, theirs: NDArray[np.integer], other_first: int) -> None:
        """Unite what is the same in two views (z y x) of one region."""
        if not ours.any() or not theirs.any():
            return
        columns = int(theirs.max()) + 1
        joint = np.bincount(
            (ours.astype(np.int64) * columns + theirs).ravel(), minlength=(int(ours.max()) + 1) * columns
        )
        joint = joint.reshape(-1, columns)
        union = joint.sum(1, keepdims=True) + joint.sum(0, keepdims=True) - joint
        for i, j in zip(*np.nonzero(joint > SAME * union), strict=True):
            if i and j and self.labels[first + i - 1] == self.labels[other_first + j - 1]:
                self.parents[self._root(first + int(i))] = self._root(other_first + int(j))

    def _root(self, index: int) -> int:
        while self.parents[index] != index:
            self.parents[index] = self.parents[self.parents[index]]
            index = self.parents[index]
        return index

    def result(self) -> Instances:
        """Objects of the volume seen; a remnant of a view that others overrule is left out."""
        roots = np.array([self._root(index) for index in range(len(self.parents))])
        kept = np.bincount(roots, counts(self.ids, len(roots)), minlength=len(roots))
        views: dict[int, list[int]] = {}
        for index, root in enumerate(roots[1:].tolist()):
            views.setdefault(root, []).append(index)
        table = np.zeros(len(roots), np.int32)
        labels, scores = list[int](), list[float | None]()
        for root, members in views.items():
            if kept[root] and kept[root] >= REMNANT * max(self.sizes[index] for index in members):
                labels.append(self.labels[root - 1])
                scores.append(_mean([self.scores[index] for index in members]))
                table[root] = len(labels)
        return Instances(_renumbered(table[roots], self.ids[self.windows.inner]), tuple(labels), tuple(scores))


def follow_labels(found: Instances, labels: NDArray[np.integer], spacing: Sequence[float]) -> Instances:
    """Objects that cover the foreground of a label map (z y x) exactly, with ids ordered by label, then by size.

    An object keeps the voxels of its own label. Foreground voxels of no object join the nearest one (mm, by `spacing`)
    in their component of that label (26 neighbours); a component without any is an object of its own, without score.
    So without objects found, the components of every label come out. Memory: 16 bytes per voxel, and some 20 per voxel
    of the box around a component that objects cover in part.
    """
    ids = found.ids.astype(np.int32)
    ids[_renumbered(np.array([0, *found.labels], labels.dtype), ids) != labels] = 0
    names, scores = [*found.labels], [*found.scores]
    for label in np.unique(labels[(labels > 0) & (ids == 0)]).tolist():
        components, _ = cast(tuple[NDArray[np.int32], int], ndimage.label(labels == label, np.ones((3, 3, 3))))
        for number, box in enumerate(ndimage.find_objects(components), start=1):
            part, here = components[box] == number, ids[box]
            is_taken = part & (here > 0)
            if not is_taken.any():
                names.append(label)
                scores.append(None)
                here[part] = len(names)
            elif not is_taken[part].all():
                far = ndimage.distance_transform_edt(~is_taken, spacing, return_distances=False, return_indices=True)
                nearest = np.asarray(far)
                left = part & ~is_taken
                here[left] = here[tuple(axis[left] for axis in nearest)]
    sizes = counts(ids, len(names) + 1)
    order = sorted((i for i in range(1, len(sizes)) if sizes[i]), key=lambda i: (names[i - 1], -sizes[i], i))
    table = np.zeros(len(sizes), np.int32)
    table[order] = np.arange(1, len(order) + 1)
    return Instances(_renumbered(table, ids), tuple(names[i - 1] for i in order), tuple(scores[i - 1] for i in order))


def counts(ids: NDArray[np.integer], size: int) -> NDArray[np.intp]:
    """How often each number below `size` stands in a map (z y x); by slices, of which NumPy makes 64-bit numbers."""
    total = np.zeros(size, np.intp)
    for part in ids:
        total += np.bincount(part.ravel(), minlength=size)
    return total


def _renumbered(table: NDArray[np.integer], ids: NDArray[np.integer]) -> NDArray[np.integer]:
    """`table[ids]` of a map (z y x); by slices, as `counts`."""
    found = np.empty(ids.shape, table.dtype)
    for part, numbers in zip(found, ids, strict=True):
        part[...] = table[numbers]
    return found


def _shared(place: Place, other: Place, ids: NDArray[np.integer]) -> NDArray[np.integer]:
    """The part of the map of `place` that lies in `other` too."""
    return ids[
        tuple(
            slice(max(a.start, b.start) - a.start, max(0, min(a.stop, b.stop) - a.start))
            for a, b in zip(place, other, strict=True)
        )
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return fmean(present) if present else None
