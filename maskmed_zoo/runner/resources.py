"""What training cost: time and peak memory of this process, and the peak memory of a run."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from maskmed_zoo.errors import DataError, UserError
from maskmed_zoo.files import read_json
from maskmed_zoo.runner.manifest_file import history_of
from maskmed_zoo.runner.run_folder import RunFolder

RESOURCES = "resources.json"
"""In the folder of an earlier version's job, whose manifest does not tell."""


class _Resources(BaseModel):
    model_config = ConfigDict(strict=True)

    peak_memory_bytes: Annotated[int, Field(ge=0, lt=2**63)] | None
    memory: str


def read_resources(run: RunFolder) -> dict[str, Any]:
    """Keys `peak_memory_bytes` and `memory` ('cuda' or 'resident'); empty where they are not known."""
    with suppress(UserError):
        history = history_of(run.manifest())
        if history.peak_memory_bytes is not None and history.memory is not None:
            return {"peak_memory_bytes": history.peak_memory_bytes, "memory": history.memory}
    try:
        content = read_json(run.path / RESOURCES)
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
