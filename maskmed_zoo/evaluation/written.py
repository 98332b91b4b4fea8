"""Scores as `evaluate` wrote them, read again: checked in everything that is used of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from maskmed_zoo.errors import DataError
from maskmed_zoo.files import read_json

Score = Annotated[float, Field(ge=0, le=1)] | None


class _Scored(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Label(_Scored):
    mean: Score


class _Case(_Scored):
    case: str
    mean: Score
    patient: str | None = None


class _Summary(_Scored):
    mean_dice: Score
    labels: dict[str, _Label]
    cases: list[_Case]
    mean_dice_over_labels: Score = None
    weights: str | None = None
    weights_sha256: str | None = None
    epochs: int | None = None
    overlap: float | None = None
    test_time_augmentation: bool = False
    seconds_per_case: Annotated[float, Field(ge=0)] | None = None
    date: str = ""


def read_summary(path: Path) -> dict[str, Any] | None:
    """A summary of Dice scores; None for a file that is missing, cut off, or holds something else."""
    try:
        content = read_json(path)
        _Summary.model_validate(content)
    except (DataError, ValidationError, ValueError, OverflowError):
        return None
    return cast(dict[str, Any], content)
