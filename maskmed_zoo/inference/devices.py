"""Which devices a volume is segmented on, where the first does not have the memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from maskmed_zoo.errors import first_line

log = logging.getLogger(__name__)
Result = TypeVar("Result")
CPU = torch.device("cpu")


def with_memory(device: torch.device, segment: Callable[[torch.device, torch.device], Result]) -> Result:
    """What `segment(network, sums)` gives: with the network and the sums of its windows on these devices.

    When a GPU's memory runs out, the sums move to the CPU, then the network too; each is told in one line.
    """
    if device.type != "cpu":
        for sums, remedy in (
            (device, "windows are summed up on the CPU"),
            (CPU, "this case is segmented on the CPU, which takes longer"),
        ):
            try:
                return segment(device, sums)
            except torch.OutOfMemoryError as error:
                log.warning("%s: out of memory (%s); %s", device, first_line(error), remedy)
            torch.cuda.empty_cache()  # what the attempt held is gone with its frames
    return segment(CPU, CPU)
