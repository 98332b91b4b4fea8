"""A loader process that died: noticed where its patches are asked for, and told by its cause.

PyTorch tells of it by an error out of the handler of a signal, wherever the program is at that moment: in the middle of
a step, while a checkpoint is written, or where Python swallows errors. Here its handler is not told of the processes,
and exit codes are looked at instead.
"""

from __future__ import annotations

import signal

from torch._C import _remove_worker_pids  # pyright: ignore[reportPrivateUsage]

from maskmed_zoo.errors import MemoryShortageError, UserError, WorkerError

_IS_WATCHED = "_worker_pids_set"
"""What an iterator of PyTorch's remembers by that the handler knows its processes."""
FEWER = "use fewer --workers, or 0"
NO_SHARED_MEMORY = ("unable to allocate shared memory", "unable to write to file </torch", "insufficient shared memory")
"""What PyTorch says where /dev/shm is full and it noticed before the processor did (SIGBUS)."""


def unannounced(iterator: object) -> None:
    """Deaths of the processes of one of PyTorch's iterators raise nothing from now on, wherever the program is.

    The handler of SIGCHLD, which PyTorch sets once in a program, stays for other loaders: it is only made to forget
    these processes. An iterator without processes has none to forget.
    """
    if getattr(iterator, _IS_WATCHED, False):
        _remove_worker_pids(id(iterator))
        setattr(iterator, _IS_WATCHED, False)  # else it would do the same at its end


def out_of_shared_memory(reason: str) -> MemoryShortageError:
    """The error for batches that could not be handed over."""
    return MemoryShortageError(
        f"loader processes ran out of shared memory ({reason}), in which batches are handed over; raise the limit of "
        f"/dev/shm (in Docker --shm-size=8g or --ipc=host), or {FEWER}"
    )


def cause_of(code: int, workers: int) -> UserError | WorkerError:
    """The error for one of so many processes that ended with an exit code, below 0 a signal's number."""
    name = _signal_name(-code)
    if name == "SIGBUS":
        return out_of_shared_memory("bus error, SIGBUS")
    if name == "SIGKILL":
        return MemoryShortageError(
            f"a loader process was killed (SIGKILL), as systems do when memory runs out; {FEWER} (now {workers}), or "
            f"give the job more memory"
        )
    how = "crashed (segmentation fault, SIGSEGV)" if name == "SIGSEGV" else f"crashed ({name})"
    return WorkerError(
        f"a loader process {how if name else f'ended with exit code {code}'}, which no data should cause; --workers 0 "
        f"shows where, and what it wrote stands above"
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return ""
