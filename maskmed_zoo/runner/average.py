"""The exponential moving average of a network's weights: what `train.ema` validates, saves and predicts with.

The decay begins small and grows to the one asked for, lest the average be mostly of the first weights for long: after n
updates it is min(decay, (1 + n) / (10 + n)), as in TensorFlow's `ExponentialMovingAverage` with `num_updates`.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from maskmed_zoo.model import SegmentationModel

Tensors = tuple[Tensor, ...] | list[Tensor]


class Average:
    """A copy of a network that follows it; running statistics of norms are averaged like weights, whole numbers copied.

    Until its first update it is nothing: weights of others may be loaded into the network before.
    """

    def __init__(self, model: SegmentationModel, decay: float) -> None:
        self.decay = decay
        self._averaged = AveragedModel(model, multi_avg_fn=self._move, use_buffers=True)
        self._averaged.requires_grad_(False)

    @property
    def model(self) -> SegmentationModel:
        """The network with the averaged weights; a compiled one's copy is not compiled."""
        return cast(SegmentationModel, self._averaged.module)

    @property
    def updates(self) -> int:
        """Steps that it is an average of."""
        return int(self._averaged.n_averaged)

    def update(self, model: SegmentationModel) -> None:
        """Take the weights after a step into the average; the first ones are the average."""
        self._averaged.update_parameters(model)

    def state(self) -> dict[str, Any]:
        """The average as plain tensors and numbers."""
        return {"updates": self.updates, "model": self.model.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.model.load_state_dict(state["model"])
        self._averaged.n_averaged.fill_(state["updates"])

    @torch.no_grad()
    def _move(self, averages: Tensors, newest: Tensors, updates: Tensor | int) -> None:
        """Move averages, all of one kind of numbers, towards the newest."""
        if not averages[0].is_floating_point():  # of which the function of torch would leave others, cut off
            for average, new in zip(averages, newest, strict=True):
                average.copy_(new)
            return
        count = self.updates  # the same number, where it need not be waited for
        get_ema_multi_avg_fn(min(self.decay, (1 + count) / (10 + count)))(averages, newest, updates)
