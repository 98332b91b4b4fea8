"""The processes that train one run, started by `torchrun`: who this one is, and the few things they do together.

In one process everything here is the identity. Gradients and counts are summed where they are, over gloo on the CPU
and NCCL on GPUs, and what is asked after every step is over gloo, in the usual time limits. Words, and waiting for
another process, go over gloo and may take as long as they take: rank 0 prepares cases for hours, if need be. A
process that dies is noticed by its connections, and by `torchrun`, which ends the others.
"""

# What is used of torch.distributed is documented there, and by its own list not exported.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import atexit
import logging
import warnings
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from maskmed_zoo.errors import INTERRUPTED, TERMINATED, PeerError, StoppedError, UserError

_T = TypeVar("_T")
_AS_LONG_AS_IT_TAKES = timedelta(days=30)
_SPOKEN = "spoken"
"""Key of the store that all processes share: how many of them had something to say of the end."""


class _Group:
    """What this process has of the others: a group for words, and the store through which they found each other."""

    words: Any = None
    store: dist.Store | None = None


def join() -> None:
    """Meet the other processes, where `torchrun` has started some; they part when the process ends."""
    if not dist.is_available():
        return
    if dist.is_torchelastic_launched() and not dist.is_initialized() and _Group.store is None:
        _Group.store, rank_, size_ = next(iter(dist.rendezvous("env://")))
        if size_ > 1:
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            store = dist.PrefixStore("run", _Group.store)
            dist.init_process_group(backend, store=store, rank=rank_, world_size=size_)
            atexit.register(dist.destroy_process_group)
    if size() > 1:
        _words()  # now, while nobody is busy with something else


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if size() > 1 else 0


def size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that writes, and says things: rank 0."""
    return rank() == 0


def local_device() -> int:
    """The number of the GPU that is this process's; raises `UserError` where there are fewer GPUs than processes."""
    place, devices = dist.get_node_local_rank(fallback_rank=0), torch.cuda.device_count()
    if place >= devices:
        raise UserError(
            f"process {place} of this machine has no GPU, there are {devices}; start torchrun with "
            f"--nproc-per-node {devices}, or train with --device cpu"
        )
    return place


def add_up(tensor: Tensor) -> Tensor:
    """The sum over the processes, in place."""
    if size() > 1:
        with _together():
            dist.all_reduce(tensor)
    return tensor


def add_up_gradients(parameters: Sequence[Tensor], *, failed: bool = False) -> bool:
    """Put the sum over the processes into the gradients; returns whether any process has `failed`.

    A parameter has a gradient afterwards if it had one in any process. Everything travels in one piece.
    """
    if size() == 1:
        return failed
    kind = torch.promote_types(parameters[0].dtype, torch.float32)
    rows = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    facts = [*(p.grad is not None for p in parameters), failed]
    flat = torch.cat([*(row.flatten().to(kind) for row in rows), rows[0].new_tensor(facts, dtype=kind)])
    *sums, facts = add_up(flat).split([*(p.numel() for p in parameters), len(facts)])
    *used, failures = facts.tolist()
    for parameter, row, total, is_used in zip(parameters, rows, sums, used, strict=True):
        parameter.grad = row.copy_(total.view_as(row)) if is_used else None
    return failures > 0


def same_as_first(tensors: Iterable[Tensor]) -> None:
    """Give tensors the values that they have in rank 0."""
    if size() > 1:
        with _together(), torch.no_grad():
            for tensor in tensors:
                dist.broadcast(tensor, src=0)


def gathered(thing: _T) -> list[_T]:
    """What every process has, in their order; anything that can be pickled."""
    if size() == 1:
        return [thing]
    things: list[Any] = [None] * size()
    with _together():
        dist.all_gather_object(things, thing, group=_words())
    return things


def largest(number: int) -> int:
    """The largest of the numbers that the processes have."""
    if size() == 1:
        return number
    found = torch.tensor(number)
    with _together():
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def from_first(thing: _T) -> _T:
    """What rank 0 has."""
    if size() == 1:
        return thing
    things: list[Any] = [thing]
    with _together():
        dist.broadcast_object_list(things, src=0, group=_words())
    return things[0]


def wait() -> None:
    """Go on when all processes have come here."""
    if size() > 1:
        with _together():
            dist.barrier(group=_words())


@contextmanager
def first_alone() -> Generator[None]:
    """Rank 0 does what is inside before the others do; what it has written is there for them."""
    if not is_first():
        wait()
    yield
    if is_first():
        wait()


@contextmanager
def one_voice() -> Generator[None]:
    """Meet the others, and let one process alone say what ended them: the first to fail; the others leave in silence.

    For a command, which prints what is raised: the others raise `SystemExit` with the exit code that is due.
    """
    join()
    if not is_first():
        logging.disable()
        warnings.simplefilter("ignore")
    if size() == 1:
        yield
        return
    try:
        yield
    except BaseException as error:
        atexit.unregister(dist.destroy_process_group)  # which would wait for the others
        if _speaks():
            raise
        raise SystemExit(_code(error)) from None


def _speaks() -> bool:
    """Whether nobody has spoken before; a store that is gone was that of a process that failed earlier."""
    if _Group.store is None:
        return True
    try:
        return _Group.store.add(_SPOKEN, 1) == 1
    except RuntimeError:
        return False


def _code(error: BaseException) -> int:
    """The exit code that the command line has for an error."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, StoppedError) or not isinstance(error, Exception):
        return TERMINATED
    return 2 if isinstance(error, UserError) else 1


def _words() -> Any:
    """The group for words and for waiting; made by all processes together, at the first use."""
    if _Group.words is None:
        _Group.words = dist.new_group(backend="gloo", timeout=_AS_LONG_AS_IT_TAKES)
    return _Group.words


@contextmanager
def _together() -> Generator[None]:
    """Raise `PeerError` where another process is not there any more."""
    try:
        yield
    except RuntimeError as error:  # of gloo, NCCL and the store alike
        raise PeerError(
            "another process of this training has ended, or does not answer; torchrun says which, go on with --resume"
        ) from error
