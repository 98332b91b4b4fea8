"""Probabilities at the network's spacing to those at the image's own, and to labels, a few slices at a time.

Idea: interpolating probabilities and then taking the largest keeps borders smooth; interpolating labels does not. For
a hundred labels at full size the probabilities would need tens of gigabytes, so the result is made a few slices at a
time, from slabs as they are finished: trilinear interpolation is linear interpolation along one axis followed by
bilinear interpolation within slices, so only the last slice of a slab is kept for the next. A thick axis takes the
nearest slice instead, as in nnU-Net's export.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from maskmed_zoo.data.crop import Box, uncropped
from maskmed_zoo.data.preprocess import Region
from maskmed_zoo.data.spline import nearest_index, positions
from maskmed_zoo.errors import JointError

CHUNK_ELEMENTS = 2**24
"""Probabilities held at full size at a time (64 MB); one slice of all labels where that is more."""


class ToImage:
    """Slabs of probabilities on a grid of `source` voxels (z y x), to a grid of `shape` over the same field of view.

    Trilinear with edges aligned (`align_corners=False`), but for the `thick` axis. Slabs come in order along `axis`;
    `give` gets slices of the result along it, in order, with their places: (n k …), the other two axes at the end.
    Extra memory: about three times `CHUNK_ELEMENTS` float32 values, and one slice of the source.
    """

    def __init__(
        self,
        source: Sequence[int],
        shape: Sequence[int],
        thick: int | None,
        axis: int,
        give: Callable[[slice, Tensor], None],
    ) -> None:
        order = [axis, *(other for other in range(3) if other != axis)]
        (size, *planes), (wanted, *self.plane) = ([int(grid[i]) for i in order] for grid in (source, shape))
        self.axis, self.give, self.is_changed = axis, give, size != wanted and thick != axis
        place = positions(size, wanted).clip(0, size - 1)
        self.lower = nearest_index(size, wanted) if thick == axis else np.floor(place).astype(np.intp)
        self.upper = np.minimum(self.lower + 1, size - 1) if self.is_changed else self.lower
        self.fraction = torch.from_numpy((place - self.lower).astype(np.float32))
        self.across: tuple[int, NDArray[np.intp]] | None = None
        if thick is not None and thick != axis:
            plane = order.index(thick) - 1
            self.across = plane + 2, nearest_index(planes[plane], self.plane[plane])
        self.seen, self.made = 0, 0
        self.last: Tensor | None = None

    def take(self, slab: Tensor) -> None:
        """The next slab (k z y x)."""
        planes = slab.movedim(self.axis + 1, 1)
        first, self.seen = self.seen, self.seen + planes.shape[1]
        ready = int(np.searchsorted(self.upper, self.seen))
        step = max(1, CHUNK_ELEMENTS // (len(planes) * self.plane[0] * self.plane[1]))
        with torch.inference_mode():
            for start in range(self.made, ready, step):
                rows = slice(start, min(start + step, ready))
                self.give(rows, self._rows(planes, first, rows))
            self.made = ready
            self.last = planes[:, -1:].clone() if ready < len(self.lower) else None

    def _rows(self, planes: Tensor, first: int, rows: slice) -> Tensor:
        """Slices `rows` of the result, from slices of the source that begin at `first`, and the one before them."""
        lower, upper = self.lower[rows], self.upper[rows]
        start, stop = int(lower[0]), int(upper[-1]) + 1
        needed = planes[:, max(start - first, 0) : stop - first]
        if start < first and self.last is not None:
            needed = torch.cat([self.last, needed], 1)
        below = _chosen(needed, lower - start).float()
        if self.is_changed:
            weight = self.fraction[rows].to(needed.device)[None, :, None, None]
            below = torch.lerp(below, _chosen(needed, upper - start).float(), weight)
        slices = below.transpose(0, 1)
        if self.across is not None:
            slices = slices.index_select(self.across[0], torch.from_numpy(self.across[1]).to(slices.device))
        if list(slices.shape[2:]) != self.plane:
            slices = F.interpolate(slices, size=self.plane, mode="bilinear", align_corners=False)
        return slices


def _chosen(planes: Tensor, index: NDArray[np.intp]) -> Tensor:
    """Slices (k n p q) of some numbers; all of them are not copied."""
    if np.array_equal(index, np.arange(planes.shape[1])):
        return planes
    return planes.index_select(1, torch.from_numpy(index).to(planes.device))


def label_type(labels: int) -> type[np.uint8 | np.uint16]:
    """The type of a map of so many labels."""
    return np.uint8 if labels <= 256 else np.uint16


def into_labels(
    labels: NDArray[Any], axis: int, weights: Mapping[int, float] | None = None
) -> Callable[[slice, Tensor], None]:
    """What puts the most probable label of every voxel into `labels` (z y x), slices along an axis at a time.

    Probabilities of the labels (index) in `weights` are multiplied by these first, in a copy.
    """
    target = np.moveaxis(labels, axis, 0)

    def give(rows: slice, probabilities: Tensor) -> None:
        if weights:
            factors = [weights.get(label, 1.0) for label in range(probabilities.shape[1])]
            probabilities = probabilities * probabilities.new_tensor(factors)[:, None, None]
        target[rows] = probabilities.argmax(1).cpu().numpy()

    return give


def into_slabs(take: Callable[[Box, Tensor], None], box: Box, axis: int) -> Callable[[slice, Tensor], None]:
    """What hands on probabilities (k z y x) with their place, of a `box` whose slices come along an axis."""

    def give(rows: slice, probabilities: Tensor) -> None:
        place, start = [*box], box[axis].start
        place[axis] = slice(start + rows.start, start + rows.stop)
        slab = probabilities.transpose(0, 1).movedim(1, axis + 1)
        take((place[0], place[1], place[2]), slab.clone())  # whose memory is used again

    return give


def into_array(array: NDArray[Any], axis: int) -> Callable[[slice, Tensor], None]:
    """What puts probabilities into an `array` (k z y x), slices along an axis at a time."""
    target = np.moveaxis(array, axis + 1, 0)

    def give(rows: slice, probabilities: Tensor) -> None:
        target[rows] = probabilities.cpu().numpy()

    return give


def probabilities_to_labels(
    probabilities: Tensor, shape: Sequence[int], thick: int | None = None
) -> NDArray[np.uint8 | np.uint16]:
    """Label map `shape` (d h w), the most probable label of probabilities (k z y x) resized to it by `ToImage`.

    The same as resizing all labels and taking the argmax up to float32 rounding. Values are label indices, uint8 up to
    256 labels, else uint16. Raises `JointError` for a tensor that is not (k z y x).
    """
    if probabilities.ndim != 4 or len(shape) != 3:
        raise JointError(f"expected probabilities (k d h w) and a shape (d h w), got {tuple(probabilities.shape)}")
    result = np.empty(tuple(int(n) for n in shape), label_type(len(probabilities)))
    ToImage(probabilities.shape[1:], shape, thick, 0, into_labels(result, 0)).take(probabilities)
    return result


def resized(probabilities: Tensor, shape: Sequence[int], thick: int | None = None) -> NDArray[np.float32]:
    """Probabilities (k z y x) at `shape` (d h w) voxels over the same field of view, by `ToImage`."""
    if tuple(probabilities.shape[1:]) == tuple(shape):
        return probabilities.numpy()
    result = np.empty((len(probabilities), *(int(n) for n in shape)), np.float32)
    ToImage(probabilities.shape[1:], shape, thick, 0, into_array(result, 0)).take(probabilities)
    return result


@dataclass(frozen=True, eq=False)
class LabelProbabilities:
    """Probabilities of a segmented image, given label by label: name and (z y x) float32 on the image's own voxels.

    What is kept are those at the network's spacing, (k z y x) `seen` of a `region`; `names` are those of the k labels,
    background first. Outside the region all is background.
    """

    seen: Tensor
    region: Region
    names: Sequence[str]

    def __iter__(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        region = self.region
        for index, name in enumerate(self.names):
            inside = resized(self.seen[index : index + 1], region.cropped, region.thick_back)[0]
            yield name, uncropped(inside, region.box, region.shape, fill=float(index == 0))


def nearest(array: NDArray[np.integer], shape: Sequence[int]) -> NDArray[np.integer]:
    """Integers (d h w) on a grid of `shape` voxels over the same field of view: those of the nearest voxel."""
    index = [nearest_index(n, wanted) for n, wanted in zip(array.shape, shape, strict=True)]
    return array[np.ix_(*index)]
