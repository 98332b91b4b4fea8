"""What of an image lies under the windows that are visited now, normalized and resampled when they come to it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from maskmed_zoo.data.preprocess import Cropped
from maskmed_zoo.errors import JointError


class ImageSlab:
    """An image (c z y x) float32 of which windows are cut in order along `axis`, never held as a whole.

    Memory: the slices of the latest window and those made with them, and what resampling needs on the way.
    """

    def __init__(self, case: Cropped, axis: int) -> None:
        self.slices, self.axis = case.slices(axis), axis
        self.first = self.last = 0
        self.held = self.slices[0:0]

    def __getitem__(self, index: tuple[slice, ...]) -> Tensor:
        """A copy of a part (c d h w); `JointError` for one that begins before the slices that are still there."""
        wanted = index[self.axis + 1]
        if wanted.start < self.first:
            raise JointError(f"windows do not come in order: slice {wanted.start} after {self.first}")
        if wanted.stop > self.last:
            start = max(wanted.start, self.last)
            kept, size = max(0, self.last - wanted.start), wanted.stop - wanted.start
            before = self.held[self._along(slice(self.last - kept - self.first, None))]
            if self.held.shape[self.axis + 1] != size:
                shape = [*before.shape]
                shape[self.axis + 1] = size
                self.held = np.empty(shape, np.float32)
            self.held[self._along(slice(kept))] = before
            self.held[self._along(slice(kept, None))] = self.slices[start : wanted.stop]
            self.first, self.last = wanted.start, wanted.stop
        where = [*index]
        where[self.axis + 1] = slice(wanted.start - self.first, wanted.stop - self.first)
        return torch.from_numpy(self.held[tuple(where)].copy())  # what is held is overwritten

    def _along(self, part: slice) -> tuple[slice, ...]:
        return tuple(part if axis == self.axis + 1 else slice(None) for axis in range(4))
