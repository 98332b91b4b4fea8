"""`resources.json` in the folder of a run: the peak memory of its training, where that was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
