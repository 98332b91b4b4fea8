"""One start of a training run, noted in the run's manifest: time and memory that it took, and how it ended.

The totals are those of all sessions of the run. A session that is still open when the next one begins was killed. The
manifest is rewritten as a whole whenever the state is; training goes on where that cannot be done.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from maskmed_zoo import distributed
from maskmed_zoo.errors import StoppedError, UserError, first_line
from maskmed_zoo.files import write_json
from maskmed_zoo.runner.manifest import now
from maskmed_zoo.runner.manifest_file import History, Interruption, OpenSession, history_of, read_manifest
from maskmed_zoo.runner.resources import cpu_seconds, peak_memory

KILLED = "killed, or its machine went down"


class Session:
    """A context while training; `note` is called when the state was saved."""

    def __init__(self, manifest: Path, device: torch.device, step: int) -> None:
        self.file, self.device, self.step = manifest, device, step
        self._content: dict[str, Any] = {}
        self._before, self._clock = History(), _used()
        self._started = now()

    def __enter__(self) -> Self:
        with suppress(UserError):
            self._content = read_manifest(self.file) if distributed.is_first() else {}
        self._before = history_of(self._content)
        last = self._before.session
        if last is not None:
            killed = Interruption(time=last.time, step=last.step, by=KILLED)
            self._before = self._before.model_copy(update={"interruptions": [*self._before.interruptions, killed]})
        self.note(self.step)
        return self

    def note(self, step: int) -> None:
        """A state of this step is on the disk."""
        self.step = step
        self._write(self._before.interruptions, OpenSession(started=self._started, time=now(), step=step))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ended = [] if error is None else [Interruption(time=now(), step=self.step, by=_cause(error))]
        self._write([*self._before.interruptions, *ended], None)

    def _write(self, interruptions: list[Interruption], session: OpenSession | None) -> None:
        if not self._content:
            return  # nobody could read it, or it is not ours to replace
        before, spent = self._before, [after - then for after, then in zip(_used(), self._clock, strict=True)]
        most = peak_memory(self.device)
        peaks = [
            most["peak_memory_bytes"] or 0,
            before.peak_memory_bytes or 0 if before.memory == most["memory"] else 0,
        ]
        history = History(
            seconds=round(before.seconds + spent[0], 3),
            cpu_seconds=round(before.cpu_seconds + spent[1], 3),
            peak_memory_bytes=max(peaks) or None,
            memory=most["memory"],
            interruptions=interruptions,
            session=session,
        )
        with suppress(UserError):
            write_json(self.file, self._content | history.model_dump())


def _used() -> tuple[float, float]:
    return time.perf_counter(), cpu_seconds()


def _cause(error: BaseException) -> str:
    """What ended a session: a signal's name, or the error."""
    if isinstance(error, StoppedError):
        return error.by
    if isinstance(error, KeyboardInterrupt):
        return "SIGINT"
    named = f"{type(error).__name__}: {first_line(error)}"
    return named if isinstance(error, Exception) else str(error) or named
