"""Mirroring at test time: what a network says of windows, averaged over their mirrored copies.

Source: nnU-Net v2 `predict_from_raw_data.py`, `_internal_maybe_mirror_and_predict`: all combinations of the axes, the
windows as they are among them, each as often as any other.
Deviation: probabilities are averaged, not logits, as over windows and networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

from torch import Tensor

from maskmed_zoo.contracts import HeadOutput
from maskmed_zoo.recipe.schema import Axis


@dataclass
class _Mean(HeadOutput):
    """The stages of the windows as they are, and log-probabilities (b k d h w) that are those of all copies."""

    mean: Tensor

    def log_probabilities(self) -> Tensor:
        return self.mean


def mirrored(model: Callable[[Tensor], HeadOutput], axes: Sequence[Axis]) -> Callable[[Tensor], HeadOutput]:
    """A model of windows (b c d h w) whose log-probabilities are those of the mean over 2^len(axes) mirrored copies.

    The copies go through `model` one after the other, so a batch stays as large as it is, and one output is held at a
    time beside the sum. The stages, of which objects are made, are those of the windows as they are.
    """
    if not axes:
        return model
    flips = [
        [2 + "zyx".index(axis) for axis in some] for n in range(1, len(axes) + 1) for some in combinations(axes, n)
    ]

    def of(windows: Tensor, flip: list[int]) -> Tensor:
        return _unmirrored(model(windows.flip(flip)).log_probabilities().exp_(), flip)

    def says(windows: Tensor) -> HeadOutput:
        total = of(windows, flips[0])
        for flip in flips[1:]:
            total += of(windows, flip)
        output = model(windows)
        total += output.log_probabilities().exp_()
        return _Mean(output.stages, total.div_(len(flips) + 1).log_())

    return says


def _unmirrored(probabilities: Tensor, flip: list[int]) -> Tensor:
    """Probabilities (b k d h w) of mirrored windows, for the windows as they are.

    Every label is its own mirror image; labels that mirroring exchanges, left and right, would be exchanged here.
    """
    return probabilities.flip(flip)
