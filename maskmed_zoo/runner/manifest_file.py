"""`manifest.json` as it is read: checked in everything that is used of it, whoever has changed it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from maskmed_zoo.data.fingerprint import IntensityStats
from maskmed_zoo.errors import CheckpointError, UserError, first_line
from maskmed_zoo.files import read_json
from maskmed_zoo.labels import Labels

CaseName = Annotated[str, Field(pattern=r"^[^/\\\x00]*$")]
"""Part of the name of a file."""


def _stats(values: dict[str, Any]) -> dict[str, Any]:
    return IntensityStats.from_dict(values).to_dict()


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _DataSet(_Record):
    path: str
    name: str
    cases: Literal["all", "fold"]
    prefix: CaseName
    labels: Labels
    annotated: dict[str, list[str]]


class _Init(_Record):
    source: str
    file: str
    sha256: str


class _Extension(_Record):
    begin: int = Field(alias="from")
    to: int


class _Manifest(_Record):
    dataset: str
    fold: int
    seed: int
    data: list[_DataSet]
    validation: list[CaseName]
    training: list[str] = []
    fingerprint: list[Annotated[dict[str, Any], AfterValidator(_stats)]]
    environment: dict[str, Any] = {}
    preprocessing: int = 1
    init: _Init | None = None
    extended: list[_Extension] = []


def read_manifest(path: Path) -> dict[str, Any]:
    """The content of a manifest; raises `CheckpointError` that names the key which is missing or wrong."""
    if not path.exists():
        raise CheckpointError(f"{path}: is missing, and with it what the run was made from; train the run again")
    try:
        content = read_json(path, error=CheckpointError)
        _Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        reason = f"{'.'.join(map(str, first['loc'])) or 'all of it'}: {first['msg']}"
    except (UserError, ValueError, OverflowError) as error:
        reason = first_line(error).removeprefix(f"{path}: ")
    else:
        return {"environment": {}, "preprocessing": 1} | content
    raise CheckpointError(f"{path}: cannot be read ({reason}); put it back as it was, or train the run again")
