"""Which device, which precision, how many workers."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from maskmed_zoo import distributed
from maskmed_zoo.arguments import expect
from maskmed_zoo.errors import UserError, first_line


def pick_device(name: str | None) -> torch.device:
    """The named device, or the first CUDA device, or the CPU. Raises `UserError` if it is not there.

    Of several processes on a machine with GPUs, each has one of its own.
    """
    if distributed.size() > 1 and torch.cuda.is_available() and name in (None, "cuda"):
        device = torch.device("cuda", distributed.local_device())
        torch.cuda.set_device(device)
        return device
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    expect("device", name, (str, torch.device), "cpu, cuda, cuda:1, … or mps")
    try:
        device = torch.device(name)
    except RuntimeError as error:  # PyTorch lists two dozen kinds, most of which nobody has
        remedy = "use cpu, cuda, cuda:1, … or mps; GPUs of NVIDIA and AMD are called cuda, Apple's mps"
        raise UserError(f"device '{name}' cannot be used (PyTorch knows no such name); {remedy}") from error
    try:
        if device.type == "meta":
            raise NotImplementedError("it holds no data")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = first_line(error)
        raise UserError(f"device '{name}' cannot be used ({reason}); use cpu, cuda, cuda:1, … or mps") from error
    return device


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
    sharing = torch.cuda.device_count() if distributed.size() > 1 else 1
    return 0 if device.type == "cpu" else min(8, max(1, (os.cpu_count() or 2) // sharing - 1))
