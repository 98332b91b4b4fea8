"""The probabilities of a volume from those of its windows, blended with Gaussian weights.

Idea: windows are visited along one axis, so what they add up to is finished slab by slab, and only the slabs that some
window still touches need memory. Sums are float32; on a GPU they lie there.

Deviations from nnU-Net v2: probabilities are averaged, not logits, because a query head gives floored
log-probabilities. The weights are not summed over the volume: the probabilities of one voxel sum to 1, so dividing by
their sum does the same with less memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from maskmed_zoo.contracts import HeadOutput
from maskmed_zoo.errors import JointError, NonFiniteError
from maskmed_zoo.inference.sliding_window import Place, Windows, importance


class ProbabilitySlabs:
    """A consumer of windows that gives away the probabilities of a volume, a slab as soon as its last window is there.

    `give` gets the slabs in order along `windows.axis`, (k z y x) float32 on `device`, summing to 1 over k, without the
    padding. Memory: k times the voxels of the slabs under a window, if windows come in the order of `Windows.places`.
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
        counts = Counter(place[windows.axis].start for place in windows.places)
        self.bounds = list(pairwise([*sorted(counts), windows.shape[windows.axis]]))
        self.left = [
            sum(n for start, n in counts.items() if start < last and first < start + windows.window[windows.axis])
            for first, last in self.bounds
        ]
        self.slabs: dict[int, Tensor] = {}
        self.given = 0

    def take(self, places: Sequence[Place], output: HeadOutput) -> None:
        """Add a batch of windows.

        Raises `JointError` for an output of another shape, `NonFiniteError` for NaN or infinite probabilities.
        """
        log_probabilities = output.log_probabilities()
        expected = (len(places), self.num_classes, *self.windows.window)
        if tuple(log_probabilities.shape) != expected:
            raise JointError(f"the model gave shape {tuple(log_probabilities.shape)} for windows, expected {expected}")
        self.weights = self.weights.to(log_probabilities.device)
        for place, part in zip(places, log_probabilities.exp().mul_(self.weights).to(self.device), strict=True):
            self._add(place, part)
        while self.given < len(self.left) and not self.left[self.given]:
            self.give(self._finished(self.given))
            self.given += 1

    def _add(self, place: Place, part: Tensor) -> None:
        axis, along = self.windows.axis, place[self.windows.axis]
        for index, (first, last) in enumerate(self.bounds):
            start, stop = max(first, along.start), min(last, along.stop)
            if start >= stop:
                continue
            if index not in self.slabs:
                shape = [*self.windows.shape]
                shape[axis] = last - first
                self.slabs[index] = torch.zeros(self.num_classes, *shape, device=self.device)
            where = [*place]
            where[axis] = slice(start - first, stop - first)
            self.slabs[index][(slice(None), *where)] += part.narrow(axis + 1, start - along.start, stop - start)
            self.left[index] -= 1

    def _finished(self, index: int) -> Tensor:
        axis, (first, last) = self.windows.axis, self.bounds[index]
        where = [*self.windows.inner]
        where[axis] = slice(max(where[axis].start - first, 0), min(where[axis].stop, last) - first)
        total = self.slabs.pop(index)[(slice(None), *where)]
        norm = total.sum(0)
        if not bool(torch.isfinite(norm).all()) or not bool((norm > 0).all()):
            raise NonFiniteError("the model's probabilities hold NaN or infinity, or sum to 0 somewhere")
        return total.div_(norm)


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
