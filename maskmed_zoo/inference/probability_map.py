"""The probabilities of a volume from those of its windows, blended with Gaussian weights.

Deviations from nnU-Net v2: probabilities are averaged, not logits, because a query head gives floored
log-probabilities. The weights are not summed over the volume: the probabilities of one voxel sum to 1, so dividing by
their sum does the same with less memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maskmed_zoo.contracts import HeadOutput
from maskmed_zoo.errors import JointError, NonFiniteError
from maskmed_zoo.inference.sliding_window import Place, Windows, importance


class ProbabilityMap:
    """A consumer of windows. Memory: the result and one label's map on the CPU, a batch where the output is."""

    def __init__(self, windows: Windows, num_classes: int) -> None:
        self.windows, self.num_classes = windows, num_classes
        self.weights = importance(windows.window)
        self.total = torch.zeros(num_classes, *windows.shape)

    def take(self, places: Sequence[Place], output: HeadOutput) -> None:
        """Add a batch of windows; raises `JointError` for an output of another shape."""
        log_probabilities = output.log_probabilities()
        expected = (len(places), self.num_classes, *self.windows.window)
        if tuple(log_probabilities.shape) != expected:
            raise JointError(f"the model gave shape {tuple(log_probabilities.shape)} for windows, expected {expected}")
        self.weights = self.weights.to(log_probabilities.device)
        for place, part in zip(places, log_probabilities.exp().mul_(self.weights).cpu(), strict=True):
            self.total[(slice(None), *place)] += part

    def result(self) -> Tensor:
        """(k d h w) float32 on the CPU, summing to 1 over k, without the padding.

        Raises `NonFiniteError` for NaN or infinite probabilities. Call it once, it reuses the memory.
        """
        total = self.total[(slice(None), *self.windows.inner)]
        norm = total.sum(0)
        if not bool(torch.isfinite(norm).all()) or not bool((norm > 0).all()):
            raise NonFiniteError("the model's probabilities hold NaN or infinity, or sum to 0 somewhere")
        return total.div_(norm)
