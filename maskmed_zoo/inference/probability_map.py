"""The probabilities of a volume from those of its windows, blended with Gaussian weights.

Idea: windows are visited along one axis, so what they add up to is finished slice by slice, and only the slices that
some window still touches need memory: as many as a window is long, used again in turn. Sums are float32; on a GPU they
lie there.

Deviations from nnU-Net v2: probabilities are averaged, not logits, because a query head gives floored
log-probabilities. The weights are not summed over the volume: the probabilities of one voxel sum to 1, so dividing by
their sum does the same with less memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from maskmed_zoo.contracts import HeadOutput
from maskmed_zoo.errors import JointError, NonFiniteError
from maskmed_zoo.inference.sliding_window import Place, Windows, importance


class ProbabilitySlabs:
    """A consumer of windows that gives away the probabilities of a volume, a slab as soon as its last window is there.

    Windows come in the order of `Windows.places` along `windows.axis`. `give` gets the slabs in that order too,
    (k z y x) float32 on `device`, summing to 1 over k, without the padding; their memory is used again afterwards.
    Memory: k times the voxels under a window that is as wide as the volume.
    """

    def __init__(
        self,
        windows: Windows,
        num_classes: int,
        give: Callable[[Tensor], None],
        device: torch.device | str = "cpu",
    ) -> None:
        self.windows, self.num_classes, self.give, self.device = windows, num_classes, give, device
        self.weights = importance(windows.window)
        self.left = Counter(place[windows.axis].start for place in windows.places)
        self.slabs = pairwise([*sorted(self.left), windows.shape[windows.axis]])
        self.slab = next(self.slabs)

    @cached_property
    def sums(self) -> Tensor:
        """Those of all labels over the length of a window, slice n at n modulo that length."""
        shape = [self.num_classes, *self.windows.shape]
        shape[self.windows.axis + 1] = self.windows.window[self.windows.axis]
        return torch.zeros(shape, device=self.device)

    def take(self, places: Sequence[Place], output: HeadOutput) -> None:
        """Add a batch of windows.

        Raises `JointError` for an output of another shape and for windows in another order, `NonFiniteError` for NaN or
        infinite probabilities.
        """
        log_probabilities = output.log_probabilities()
        expected = (len(places), self.num_classes, *self.windows.window)
        if tuple(log_probabilities.shape) != expected:
            raise JointError(f"the model gave shape {tuple(log_probabilities.shape)} for windows, expected {expected}")
        self.weights = self.weights.to(log_probabilities.device)
        for place, part in zip(places, log_probabilities.exp().mul_(self.weights).to(self.device), strict=True):
            self._add(place, part)

    def _add(self, place: Place, part: Tensor) -> None:
        axis, along = self.windows.axis, place[self.windows.axis]
        if along.start != self.slab[0]:
            raise JointError(f"windows do not come in order: slice {along.start}, where {self.slab[0]} is due")
        where = [slice(None), *place]
        where[axis + 1] = slice(None)
        for start, sums in self._sums(along.start, along.stop):
            sums[tuple(where)].add_(part.narrow(axis + 1, start - along.start, sums.shape[axis + 1]))
        self.left[along.start] -= 1
        if not self.left[along.start]:
            self._finish()

    def _sums(self, first: int, last: int) -> list[tuple[int, Tensor]]:
        """Those of some slices with the number of the first: in two parts, where the end of the memory lies between."""
        axis, length = self.windows.axis, self.windows.window[self.windows.axis]
        turn = min(last, first - first % length + length)
        parts = [(first, turn), (turn, last)]
        return [(n, self.sums.narrow(axis + 1, n % length, stop - n)) for n, stop in parts if n < stop]

    def _finish(self) -> None:
        axis = self.windows.axis
        for start, sums in self._sums(*self.slab):
            where = [slice(None), *self.windows.inner]
            where[axis + 1] = slice(max(where[axis + 1].start - start, 0), where[axis + 1].stop - start)
            found = sums[tuple(where)]
            norm = found.sum(0)
            if not bool(torch.isfinite(norm).all()) or not bool((norm > 0).all()):
                raise NonFiniteError("the model's probabilities hold NaN or infinity, or sum to 0 somewhere")
            self.give(found.div_(norm))
            sums.zero_()
        end = self.windows.shape[axis]
        self.slab = next(self.slabs, (end, end))


class ProbabilityMap:
    """A consumer of windows that keeps all probabilities of a volume, on the CPU."""

    def __init__(self, windows: Windows, num_classes: int) -> None:
        self.total = torch.empty(num_classes, *(part.stop - part.start for part in windows.inner))
        self.axis, self.filled = windows.axis + 1, 0
        self.slabs = ProbabilitySlabs(windows, num_classes, self.keep)

    def take(self, places: Sequence[Place], output: HeadOutput) -> None:
        """Add a batch of windows; raises as `ProbabilitySlabs.take`."""
        self.slabs.take(places, output)

    def keep(self, slab: Tensor) -> None:
        """Put the next slab in its place."""
        size = slab.shape[self.axis]
        self.total.narrow(self.axis, self.filled, size).copy_(slab)
        self.filled += size

    def result(self) -> Tensor:
        """(k d h w) float32, summing to 1 over k, without the padding; `JointError` before all windows are there."""
        if self.filled < self.total.shape[self.axis]:
            raise JointError("windows of the volume are missing, whose probabilities are asked for")
        return self.total
