"""`manifest.json` as it is read: checked in everything that is used of it, whoever has changed it."""

from __future__ import annotations

from contextlib import suppress
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


Seconds = Annotated[float, Field(ge=0)]
Step = Annotated[int, Field(ge=0)]


class Interruption(_Record):
    """An end of training before its last step: when it was noted, after which saved step, and by what."""

    time: str
    step: Step
    by: str


class OpenSession(_Record):
    """A process that trains, or was killed since: what it had saved, and when."""

    started: str
    time: str
    step: Step


class History(_Record):
    """How a run was trained, over all its sessions; nothing of training depends on it."""

    seconds: Seconds = 0.0
    cpu_seconds: Seconds = 0.0
    peak_memory_bytes: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    memory: str | None = None
    interruptions: list[Interruption] = []
    session: OpenSession | None = None


class _Init(_Record):
    source: str
    file: str
    sha256: str


class _Extension(_Record):
    begin: int = Field(alias="from")
    to: int


class EarlyEnd(_Record):
    """The end of a run that `train.patience` ended: after how many epochs of how many, and why."""

    epoch: Annotated[int, Field(ge=1)]
    of: Annotated[int, Field(ge=1)]
    validations: Step
    best: float

    def in_words(self) -> str:
        return (
            f"training has ended after {self.epoch} of {self.of} epochs: {self.validations} validations in a row "
            f"without a new best (train.patience), which is a smoothed Dice of {self.best:.4f}"
        )


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
    processes: Annotated[int, Field(ge=1)] = 1
    data_hash: str | None = None
    init: _Init | None = None
    extended: list[_Extension] = []
    ended_early: EarlyEnd | None = None


def history_of(manifest: dict[str, Any]) -> History:
    """The history in a manifest; of an earlier version's, or a damaged one, what can be read of it."""
    kept: dict[str, Any] = {}
    for name in History.model_fields:
        with suppress(ValueError, OverflowError):
            if name in manifest:
                History.model_validate({name: manifest[name]})
                kept[name] = manifest[name]
    return History.model_validate(kept)


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
