"""Which device, which precision, how many workers."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from maskmed_zoo.errors import MemoryShortageError, UserError, first_line

SHORTAGE = ("out of memory", "allocate memory", "not enough memory")
"""What torch says, on one device or another, where it has no error of its own for it."""


def pick_device(name: str | None) -> torch.device:
    """The named device, or the first CUDA device, or the CPU. Raises `UserError` if it is not there."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise NotImplementedError("it holds no data")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = first_line(error)
        raise UserError(f"device '{name}' cannot be used ({reason}); use cpu, cuda, cuda:1, … or mps") from error
    return device


@contextmanager
def enough_memory(remedy: str) -> Generator[None]:
    """Raise `MemoryShortageError` with a remedy where torch or NumPy get no memory; also a decorator."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        said = str(error).lower()
        if isinstance(error, RuntimeError) and not any(words in said for words in SHORTAGE):
            raise
        raise MemoryShortageError(f"not enough memory ({first_line(error)}); {remedy}") from error


def autocast_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    """The low precision of a recipe's `amp` on a device, or None for float32."""
    if amp == "auto":
        if device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]


def autocast(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager[Any]:
    """Autocast to `dtype` on `device`; nothing where it is None."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def pick_workers(workers: int | None, device: torch.device) -> int:
    """Loader processes: none on the CPU, where they would take the network's cores, else up to eight.

    Raises `UserError` for a negative number.
    """
    if workers is not None and workers < 0:
        raise UserError(f"workers: expected 0 or more, got {workers}")
    if workers is not None:
        return workers
    return 0 if device.type == "cpu" else min(8, max(1, (os.cpu_count() or 2) - 1))
