"""What everything that a recipe holds is made of: the base of all settings, and the types they share."""

from __future__ import annotations

from typing import Annotated, Any, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

LARGEST = 10**9
"""Of any whole number: epochs, steps, tokens; more than anything here is counted to, and a whole number everywhere."""
WIDEST = 2**16
"""Channels, features, queries, heads, points: forty times those of the widest networks that are trained."""
MOST_LAYERS = 2**6
"""Blocks or layers, one after the other: every one is an object that takes time to make, even without memory."""
MOST_LEVELS = 2**4
"""Resolutions of a network: with halving, 15 steps down would take patches of 32768 voxels."""
LONGEST_SIDE = 2**12
"""Voxels of a patch, a kernel or a window along one axis."""
MOST_QUERIES = 2**12
"""Of a head: each is a mask on every map."""
MOST_POINTS = 2**20
"""Voxels at which a loss looks: so many masks are sampled at each."""
LONGEST_WINDOW = 12
"""Tokens along an axis of a window: every one of the window attends to every other, and each pair has a number."""
LONGEST_NAME = 100
"""Characters of a name that is part of file names, which have 255 bytes."""

Size3 = tuple[int, int, int]
"""Voxels along z, y and x."""
Spacing3 = tuple[float, float, float]
"""Voxel size along z, y and x, mm."""
PositiveInt = Annotated[int, Field(ge=1, le=LARGEST)]
Width = Annotated[int, Field(ge=1, le=WIDEST)]
Base = Annotated[int, Field(ge=1, le=WIDEST // 2**4)]
"""Channels of a finest level, which double four times."""
Layers = Annotated[int, Field(ge=1, le=MOST_LAYERS)]
Queries = Annotated[int, Field(ge=1, le=MOST_QUERIES)]
Points = Annotated[int, Field(ge=1, le=MOST_POINTS)]
Side = Annotated[int, Field(ge=1, le=LONGEST_SIDE)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=LONGEST_NAME)]
"""Of a recipe or a grid: files are named after it."""


def _triple(value: object) -> object:
    return (value, value, value) if isinstance(value, int) else value


Triple = Annotated[
    tuple[Side, Side, Side],
    BeforeValidator(_triple, json_schema_input_type=Side | tuple[Side, Side, Side]),
]
"""Three positive integers (z, y, x); a single one stands for all three."""
_InWindow = Annotated[int, Field(ge=1, le=LONGEST_WINDOW)]
Window = Annotated[
    tuple[_InWindow, _InWindow, _InWindow],
    BeforeValidator(_triple, json_schema_input_type=_InWindow | tuple[_InWindow, _InWindow, _InWindow]),
]
"""Tokens of a window, likewise."""


class Settings(BaseModel):
    """Base of everything a recipe holds: typed, frozen, unknown keys refused, no bool or infinity for a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _bool_is_no_number(cls, data: Any) -> Any:
        for name, value in cast(dict[str, Any], data if isinstance(data, dict) else {}).items():
            if isinstance(value, bool) and name in cls.model_fields and cls.model_fields[name].annotation is not bool:
                raise ValueError(f"'{name}' takes neither true nor false, got {str(value).lower()}")
        return data
