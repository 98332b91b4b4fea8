"""When training saves within an epoch and when it stops: by the clock, and by signals.

SIGINT is Ctrl-C; SIGTERM and SIGUSR1 are what schedulers send some time before they kill, SLURM for one. A signal is
noted, and the step that is being made is finished and saved before training stops. The same signal a second time does
what it would have done before training began, which is to end at once.
"""

from __future__ import annotations

import signal
import threading
import time
from enum import IntEnum
from types import FrameType, TracebackType
from typing import Any, Self

from maskmed_zoo.errors import StoppedError

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
AT_ONCE = 0.5
"""Seconds within which a signal that comes twice is one: `timeout`, for one, sends it to a process and to its group."""


class Turn(IntEnum):
    """What to do after a step; of several processes that train one model, all do the largest."""

    GO_ON = 0
    SAVE = 1
    STOP = 2


class Pauses:
    """A context while training: asked once after every step, and told when the state was saved.

    Signals are noted in the main thread only, which alone is given them, and until the end of the context.
    """

    def __init__(self, minutes: float) -> None:
        self.seconds = 60 * minutes
        self.signal: signal.Signals | None = None
        self._noted, self._before = dict[signal.Signals, float](), dict[signal.Signals, Any]()
        self._saved = self._asked = time.monotonic()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as of a command after `nohup` or in a script's `&`
                    self._before[number] = signal.signal(number, self._note)
        self.saved()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in [*self._before]:
            self._restore(number)

    def ask(self) -> Turn:
        """What to do now; SAVE before the step that would end after the state is due."""
        now, last = time.monotonic(), self._asked
        self._asked = now
        if self.signal is not None:
            return Turn.STOP
        return Turn.SAVE if now + (now - last) - self._saved >= self.seconds else Turn.GO_ON

    def saved(self) -> None:
        """The state that is on the disk is the one of now."""
        self._saved = self._asked = time.monotonic()

    def stop(self, what: str) -> StoppedError | KeyboardInterrupt:
        """The error that ends a training run of which `what` was saved."""
        name = "another process" if self.signal is None else self.signal.name
        line = f"{what}, stopped by {name}; go on with --resume (resume=True in Python)"
        return KeyboardInterrupt(line) if self.signal is signal.SIGINT else StoppedError(line, by=name)

    def _note(self, number: int, _: FrameType | None) -> None:
        now, name = time.monotonic(), signal.Signals(number)
        if now - self._noted.setdefault(name, now) > AT_ONCE:
            self._restore(name)
            signal.raise_signal(name)
        self.signal = self.signal or name

    def _restore(self, number: signal.Signals) -> None:
        before = self._before.pop(number)
        signal.signal(number, signal.SIG_DFL if before is None else before)  # None: set by something but Python
