"""Cases through a predictor: the next one is read, and the last one written, while one is computed.

One thread reads and one writes, each one case at a time. So up to three cases are in memory: the image that is read
ahead, what the network makes of one, and the label map, objects and asked-for probabilities of the one before. Where
that is too much, a case is read, or computed, once more with nothing beside it.

A case that is being made is claimed by a locked file, `OUT/.predicting-….lock`, so that several processes on one folder
share its cases. What a dead process claimed is free.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from maskmed_zoo.data.case import Case, load_image
from maskmed_zoo.data.image import Geometry
from maskmed_zoo.errors import Failures, MemoryShortageError
from maskmed_zoo.inference.write import PREDICTING, Prediction
from maskmed_zoo.lock import NoLocksError, locked
from maskmed_zoo.memory import within_memory

LOCK = ".lock"
"""At the end of the name of the file that claims a case."""
Image = tuple[NDArray[Any], Geometry]


@dataclass(frozen=True)
class Job:
    """A case, and the label map that is to be made of it."""

    case: Case
    target: Path


@dataclass(frozen=True)
class Steps:
    """What is done with each job: whether it `is_done` already, `compute` of its image, and `write`."""

    is_done: Callable[[Job], bool]
    compute: Callable[[Image], Prediction]
    write: Callable[[Job, Prediction], None]


@dataclass
class Work:
    """What came of the jobs: how many are settled, the label maps written, and what went wrong with single cases."""

    total: int
    progress: Callable[[int, int], None]
    settled: int = 0
    written: list[Path] = field(default_factory=list[Path])
    failures: Failures = field(default_factory=Failures)

    def settle(self) -> None:
        """Count a job that nothing more is done with."""
        self.settled += 1
        self.progress(self.settled, self.total)


def work_through(jobs: Sequence[Job], steps: Steps, work: Work) -> None:
    """Do all jobs; those that another process is at are waited for, and done here if it dies.

    A case's `DataError` or `MemoryShortageError` is kept; whatever else is raised, Ctrl-C too, comes up when the case
    that is being written is written.
    """
    left = [*jobs]
    while left:
        left = _Pass(left, steps, work).run()
        if left:
            with _claimed(left[0].target, wait=True):  # while no case is claimed here, so that nobody waits in a circle
                pass


@dataclass
class _Ahead:
    """A claimed job and its image, which is being read; None where it is to be read when it is needed."""

    job: Job
    image: Future[Image] | None


class _Pass:
    """All jobs once, but those that another process is at."""

    def __init__(self, jobs: Sequence[Job], steps: Steps, work: Work) -> None:
        self.waiting, self.elsewhere = deque(jobs), list[Job]()
        self.steps, self.work = steps, work
        self.claims: dict[Path, ExitStack] = {}
        self.ahead: _Ahead | None = None
        self.writing: tuple[Job, Future[None]] | None = None

    def run(self) -> list[Job]:
        """The jobs that are left to others."""
        with ExitStack() as stack, ThreadPoolExecutor(1) as self.writer, ThreadPoolExecutor(1) as self.reader:
            stack.callback(self._release)
            self.ahead = self._read_next()
            while (now := self.ahead) is not None:
                self._do(now)
            self._finish_writing()
        return self.elsewhere

    def _do(self, now: _Ahead) -> None:
        image = self._image(now)
        self.ahead = self._read_next()
        prediction = None if image is None else self._computed(now.job, image)
        del image
        self._finish_writing()
        if prediction is None:
            self._settle(now.job)
        else:
            self.writing = now.job, self.writer.submit(self.steps.write, now.job, prediction)

    def _read_next(self) -> _Ahead | None:
        """The next job that there is something to do for."""
        while self.waiting:
            job, claim = self.waiting.popleft(), ExitStack()
            if not claim.enter_context(_claimed(job.target)):
                self.elsewhere.append(job)
                continue
            self.claims[job.target] = claim
            if not self.steps.is_done(job):
                return _Ahead(job, self.reader.submit(_read, job))
            self._settle(job)
        return None

    def _image(self, now: _Ahead) -> Image | None:
        """The image of a job, None where there is none."""
        reading, now.image = now.image, None
        with self.work.failures.kept():
            if reading is not None:
                with suppress(MemoryShortageError):
                    return reading.result()
                del reading
            self._finish_writing()
            return _read(now.job)
        return None

    def _computed(self, job: Job, image: Image) -> Prediction | None:
        """What is made of an image, None where nothing can be."""
        with self.work.failures.kept(), within_memory(_name(job)):
            with suppress(MemoryShortageError) if self._is_beside() else nullcontext():
                return self.steps.compute(image)
            self._finish_writing()
            if self.ahead is not None and self.ahead.image is not None:
                wait([self.ahead.image])
                self.ahead.image = None
            return self.steps.compute(image)
        return None

    def _is_beside(self) -> bool:
        """Whether another case is in memory, one that is being written or read ahead."""
        return self.writing is not None or (self.ahead is not None and self.ahead.image is not None)

    def _finish_writing(self) -> None:
        if self.writing is None:
            return
        (job, written), self.writing = self.writing, None
        with self.work.failures.kept():
            written.result()
            self.work.written.append(job.target)
        self._settle(job)

    def _settle(self, job: Job) -> None:
        self.claims.pop(job.target).close()
        self.work.settle()

    def _release(self) -> None:
        for claim in self.claims.values():
            claim.close()


def _name(job: Job) -> str:
    return f"case '{job.case.identifier}'"


def _read(job: Job) -> Image:
    with within_memory(_name(job)):
        return load_image(job.case)


@contextmanager
def _claimed(target: Path, *, wait: bool = False) -> Generator[bool]:
    """Claim a label map; False if another process has it. Where there are no locks, nobody else is at work."""
    name = sha256(target.name.encode(errors="surrogateescape")).hexdigest()[:16]  # short, however long that is
    is_free = True
    with ExitStack() as stack:
        with suppress(NoLocksError):
            path = target.with_name(f"{PREDICTING}{name}{LOCK}")
            is_free = stack.enter_context(locked(path, wait=wait, keep=False)) is not None
        yield is_free
