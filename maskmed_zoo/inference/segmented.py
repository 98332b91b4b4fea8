"""A consumer of windows that makes labels of them on the image's own voxels, slab by slab."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskmed_zoo.contracts import HeadOutput
from maskmed_zoo.data.crop import Box
from maskmed_zoo.data.image import times
from maskmed_zoo.data.preprocess import Region
from maskmed_zoo.inference.probability_map import ProbabilitySlabs
from maskmed_zoo.inference.sliding_window import Place, Windows
from maskmed_zoo.inference.to_image import ToImage, into_array, into_labels, into_slabs, label_type
from maskmed_zoo.memory import check_available, give_back


class Segmented:
    """The labels (z y x) of a file, of which windows see a `region`; background around that.

    Probabilities of the labels (index) in `weights` are multiplied by these before the largest is taken. `into`, an
    array (k z y x) of any floating type, gets the probabilities as they were; `slabs` gets them too, place by place of
    the region; with `keep` those at the network's spacing stay, `seen` (k z y x) on the CPU. Windows are summed up on
    `device`. Others need `beside` bytes for this image.
    Raises `MemoryShortageError` for more than there is memory for, in a line that begins with `where`.
    """

    def __init__(
        self,
        windows: Windows,
        region: Region,
        num_classes: int,
        *,
        device: torch.device | str = "cpu",
        into: NDArray[np.floating] | None = None,
        slabs: Callable[[Box, Tensor], None] | None = None,
        keep: bool = False,
        weights: Mapping[int, float] | None = None,
        beside: int = 0,
        where: str = "image",
    ) -> None:
        held = windows.window[windows.axis] / windows.shape[windows.axis] if torch.device(device).type == "cpu" else 0
        _check_memory(windows, region, num_classes, share=held + keep, beside=beside, where=where)
        self.labels = np.zeros(region.shape, label_type(num_classes))
        self.gives: list[Callable[[slice, Tensor], None]] = [
            into_labels(self.labels[region.box], windows.axis, weights)
        ]
        if into is not None:
            if region.cropped != region.shape:  # all is background where nothing was seen
                for index, one in enumerate(into):
                    one[...] = index == 0
            self.gives.append(into_array(into[(slice(None), *region.box)], windows.axis))
        if slabs is not None:
            self.gives.append(into_slabs(slabs, region.box, windows.axis))
        self.seen = torch.empty(num_classes, *region.resampled) if keep else None
        self.to_image = ToImage(region.resampled, region.cropped, region.thick_back, windows.axis, self._give)
        self.slabs = ProbabilitySlabs(windows, num_classes, self._finished, device)

    def take(self, places: Sequence[Place], output: HeadOutput) -> None:
        """Add a batch of windows; raises as `ProbabilitySlabs.take`."""
        self.slabs.take(places, output)

    def _finished(self, slab: Tensor) -> None:
        if self.seen is not None:
            axis = self.slabs.windows.axis + 1
            self.seen.narrow(axis, self.to_image.seen, slab.shape[axis]).copy_(slab)
        self.to_image.take(slab)
        give_back()

    def _give(self, rows: slice, probabilities: Tensor) -> None:
        for give in self.gives:
            give(rows, probabilities)


def _check_memory(windows: Windows, region: Region, num_classes: int, *, share: float, beside: int, where: str) -> None:
    sums = 4 * num_classes * math.prod(windows.shape) * share
    labels = math.prod(region.shape) * np.dtype(label_type(num_classes)).itemsize
    of = f"{num_classes} labels{' and their objects' if beside else ''}"
    what = f"{where}: {times(windows.shape)} voxels at the recipe's spacing, of {of}, which"
    check_available(int(sums) + labels + beside, what)
