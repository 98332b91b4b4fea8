"""What everything that a recipe holds is made of: the base of all settings, and the types they share."""

from __future__ import annotations

from typing import Annotated, Any, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Size3 = tuple[int, int, int]
"""Voxels along z, y and x."""
Spacing3 = tuple[float, float, float]
"""Voxel size along z, y and x, mm."""
PositiveInt = Annotated[int, Field(ge=1)]


def _triple(value: object) -> object:
    return (value, value, value) if isinstance(value, int) else value


Triple = Annotated[
    tuple[PositiveInt, PositiveInt, PositiveInt],
    BeforeValidator(_triple, json_schema_input_type=PositiveInt | tuple[PositiveInt, PositiveInt, PositiveInt]),
]
"""Three positive integers (z, y, x); a single one stands for all three."""


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
