"""The batches of a training run: one loader per stream, whose processes stay from the first epoch to the last.

Which patches come, and in which order, is known from the start to the end of a run, so each stream is one sequence:
training patches on and on, validation patches the same again for each validation. Its processes read ahead across the
border of two epochs, and nothing is forked while training threads are at work. Batch i holds the patches
i x batch size onwards, whatever the number of processes, which draw no random number that training would draw.

Processes: those of the platform's default (fork on Linux before Python 3.14, so that what the cases have in common is
in memory once); PyTorch gives each of them one thread. A patch's arrays are maps of files that are closed with it, so
a process does not grow with the number of patches. Half as many read for validation, as in nnU-Net's trainer.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Literal, NamedTuple, Self

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from maskmed_zoo.data.patches import Patch
from maskmed_zoo.errors import MemoryShortageError, UserError, first_line, reason_of
from maskmed_zoo.runner.pauses import SIGNALS
from maskmed_zoo.runner.worker_death import FEWER, NO_SHARED_MEMORY, cause_of, out_of_shared_memory, unannounced

Stream = Literal["train", "validation"]
_PROCESSES = "_workers"
"""Where such an iterator has its processes; one that died at once is no active child of this process any more."""
_END = "_shutdown_workers"
"""What an iterator of PyTorch's with processes ends them by, which it does else when nobody refers to it any more."""


class Part(NamedTuple):
    """A stream: patches by index, and the indices in the order in which they are wanted, perhaps without an end."""

    patches: Dataset[Patch]
    indices: Iterable[int]


class Feed:
    """Batches of each stream in turn; a context, at whose end no process is left.

    `workers` processes prepare patches of training; 0: this one, when they are asked for. Raises what a patch raised
    (`DataError`), `MemoryShortageError` where a process was killed for memory, cannot be started, or shared memory ran
    out, and `WorkerError` where it crashed.
    """

    def __init__(
        self, parts: Mapping[Stream, Part], *, batch_size: int, workers: int, pin_memory: bool = False
    ) -> None:
        self.parts, self.batch_size, self.workers, self.pin_memory = parts, batch_size, workers, pin_memory
        self.processes: list[BaseProcess] = []
        self._iterators: dict[Stream, Iterator[Patch | UserError]] = {}

    def __enter__(self) -> Self:
        try:
            self._start()
        except OSError as error:
            self.__exit__()  # processes of the first stream, where those of the second cannot be started
            raise MemoryShortageError(f"loader processes cannot be started ({reason_of(error)}); {FEWER}") from error
        return self

    def _start(self) -> None:
        """Begin to read ahead in every stream."""
        for stream, part in self.parts.items():
            count = self.workers if stream == "train" else (self.workers + 1) // 2
            loader: DataLoader[Patch | UserError] = DataLoader(
                _Told(part.patches),
                batch_size=self.batch_size,
                sampler=part.indices,
                num_workers=count,
                collate_fn=_batch,
                worker_init_fn=_leave_it_to_training,
                pin_memory=self.pin_memory,
                generator=torch.Generator(),  # a seed is drawn for every iterator: not from what training draws from
            )
            self._iterators[stream] = iterator = iter(loader)
            self.processes += getattr(iterator, _PROCESSES, ())
            unannounced(iterator)

    def take(self, stream: Stream, count: int) -> Iterator[Patch]:
        """The next `count` batches of a stream."""
        for _ in range(count):
            try:
                self._look_after()
                batch = next(self._iterators[stream])
            except (RuntimeError, OSError, EOFError):  # a process that is waited for, or that had a batch to hand over
                ended = wait([process.sentinel for process in self.processes], timeout=1)
                for process in self.processes:
                    if process.sentinel in ended:
                        process.join(1)  # its pipes are closed before it has an exit code
                self._look_after()
                raise
            if isinstance(batch, UserError):
                raise batch
            yield batch

    def _look_after(self) -> None:
        """Raise the error for a process that is no more."""
        code = next((process.exitcode for process in self.processes if process.exitcode is not None), None)
        if code is not None:
            raise cause_of(code, self.workers)

    def __exit__(self, *_: object) -> None:
        for iterator in self._iterators.values():
            getattr(iterator, _END, lambda: None)()
        for process in self.processes:
            if process.is_alive():
                process.kill()  # PyTorch's own way is a signal that they do not heed
        self._iterators.clear()


class _Told(Dataset[Patch | UserError]):
    """Patches, or the error of the one that could not be made: raised, it would arrive as a traceback in words."""

    def __init__(self, patches: Dataset[Patch]) -> None:
        self.patches = patches

    def __getitem__(self, index: int) -> Patch | UserError:
        try:
            return self.patches[index]
        except UserError as error:
            return error
        except MemoryError as error:
            return MemoryShortageError(f"a patch needs more memory than there is ({first_line(error)}); {FEWER}")


def _batch(items: list[Patch | UserError]) -> Patch | UserError:
    """Patches stacked, in shared memory where this is a loader's process; or the first error among them."""
    for item in items:
        if isinstance(item, UserError):
            return item
    try:
        return default_collate(items)
    except RuntimeError as error:
        if not any(text in str(error) for text in NO_SHARED_MEMORY):
            raise
        return out_of_shared_memory(first_line(error))


def _leave_it_to_training(_: int) -> None:
    """Signals reach every process of a terminal or a job; the one that trains ends the others when it needs no more."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    sys.excepthook = _told_unless_left


def _told_unless_left(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """An error of a thread that hands batches over, but for one that nobody takes any more."""
    if not issubclass(kind, ConnectionError):
        sys.__excepthook__(kind, error, trace)
