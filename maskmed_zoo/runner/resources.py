"""What training cost: time and peak memory of this process, and `resources.json`, where a run's peak memory may lie."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from maskmed_zoo.errors import DataError
from maskmed_zoo.files import read_json

RESOURCES = "resources.json"
"""In the run folder."""


class _Resources(BaseModel):
    model_config = ConfigDict(strict=True)

    peak_memory_bytes: Annotated[int, Field(ge=0, lt=2**63)] | None
    memory: str


def read_resources(run: Path) -> dict[str, Any]:
    """Keys `peak_memory_bytes` and `memory` ('cuda' or 'resident'); empty where they are not known."""
    try:
        content = read_json(run / RESOURCES)
        _Resources.model_validate(content)
    except (DataError, ValueError, OverflowError):
        return {}
    return content


def peak_memory(device: torch.device) -> dict[str, Any]:
    """Most memory this process has needed: on the graphics card, or resident in main memory; bytes."""
    if device.type == "cuda":
        return {"peak_memory_bytes": torch.cuda.max_memory_allocated(device), "memory": "cuda"}
    return {"peak_memory_bytes": _peak_resident(), "memory": "resident"}


def _peak_resident() -> int | None:
    """Bytes; None where the system does not tell.

    Linux counts `ru_maxrss` on from the process that started this one, /proc does not.
    """
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE) if status.exists() else None
    if found:
        return int(found[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def cpu_seconds() -> float:
    """Processor time of this process and of those of its children that have ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system
