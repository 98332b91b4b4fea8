"""How much memory a network is planned for: as asked, a GPU's, or 8 GiB as in nnU-Net."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch

from maskmed_zoo.device import autocast_dtype, pick_device
from maskmed_zoo.errors import ArgumentError
from maskmed_zoo.memory import GIB

DEFAULT = 8 * GIB
_SIZE = re.compile(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*([KMGT])(?:i?B)?\s*", re.IGNORECASE)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Budget:
    """`bytes` of memory, where they come from in words, and whether activations have 16 bits in them (`narrow`)."""

    bytes: int
    origin: str
    narrow: bool

    @property
    def gib(self) -> float:
        """In GiB, as nnU-Net's planner takes it."""
        return self.bytes / GIB


def budget_of(memory: str | None, amp: str) -> Budget:
    """The budget of a text such as 11G, or of this machine, for a recipe's `train.amp`.

    Raises `ArgumentError` for a text that is no size.
    """
    device = pick_device(None)
    narrow = autocast_dtype(amp, device) is not None
    if memory is not None:
        return Budget(size_of(memory), "as asked", narrow)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return Budget(int(properties.total_memory), f"all of {properties.name}", narrow)
    return Budget(DEFAULT, "nnU-Net's default", narrow)


def size_of(text: str) -> int:
    """Bytes of 11G, 8GiB, 900M, …; K, M, G and T are powers of 1024, with or without B or iB after them."""
    found = _SIZE.fullmatch(text)
    size = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if size <= 0:
        raise ArgumentError(f"memory: expected a size such as 11G, 8GiB or 900M, got {text[:40]!r}")
    return size


def shown(size: float) -> str:
    """Bytes in words, 7.4 GiB or 31.2 MiB."""
    return f"{size / GIB:.1f} GiB" if size >= 0.95 * GIB else f"{size / 2**20:.3g} MiB"


def enough(size: float) -> str:
    """Bytes in words that, asked for, are no less: rounded up to a hundredth."""
    unit, name = (GIB, "GiB") if size >= 0.95 * GIB else (2**20, "MiB")
    return f"{math.ceil(size / unit * 100) / 100:g} {name}"
