"""Networks are counted before memory is taken for them: a recipe of a few lines can ask for more than any machine has.

`made` makes a network and watches its layers come; one that grows large is first counted on the meta device, where
nothing is allocated, and compared with the machine. What cannot be allocated is said in one line.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from maskmed_zoo.errors import JointError, MemoryShortageError, first_line
from maskmed_zoo.memory import GIB, available, is_exhausted

MOST_PARTS = 30_000
"""Layers and tensors that are made for one network; the largest ones of timm have some thousand."""
LARGE = GIB
"""Bytes of parameters from which a network is counted before it is made: counting costs seconds at first."""
_REMEDY = "give fewer channels or layers"
_ModuleT = TypeVar("_ModuleT", bound=nn.Module)


class _Large(BaseException):
    """A network that has to be counted first."""


def made(make: Callable[[], _ModuleT]) -> _ModuleT:
    """The network of `make`, on the default device.

    Raises `JointError` where it has more than `MOST_PARTS`, `MemoryShortageError` where the device lacks the memory.
    """
    device, state = torch.get_default_device(), torch.get_rng_state()
    if device.type == "meta":
        with counting():
            return make()
    with suppress(_Large, MemoryShortageError), _watched(LARGE), reported():
        return make()
    gc.collect()  # what was made of it so far
    with counting():
        counted = make()
    size = sum(tensor.nbytes for tensor in (*counted.parameters(), *counted.buffers()))
    check_bytes(size, device, "the network's weights", "channels or layers")
    torch.set_rng_state(state)
    with reported():
        return make()


@contextmanager
def counting() -> Generator[None]:
    """Make or run a network on the meta device; raises as `made` does, and `JointError` for impossible sizes.

    Layers that are made on the CPU all the same, as MONAI's can be, take what memory is left, and no more.
    """
    most = available()
    try:
        with torch.device("meta"), _watched(most), reported():
            yield
    except _Large as error:
        raise MemoryShortageError(
            f"the network's weights take more than the {(most or 0) / GIB:,.1f} GiB that are left; {_REMEDY}"
        ) from error


def moved(network: _ModuleT, device: torch.device) -> _ModuleT:
    """The network on a device; raises `MemoryShortageError` where there is no memory left for it."""
    with reported():
        return network.to(device)


def check_bytes(size: int, device: torch.device, what: str, remedy: str) -> None:
    """Raise `MemoryShortageError` if something of so many bytes does not fit into what a device has left."""
    memory = _memory(device)
    if memory is not None and size > memory:
        raise MemoryShortageError(
            f"{what} take {size / GIB:,.1f} GiB, {device} has {memory / GIB:,.1f} GiB left; give fewer {remedy}"
        )


@contextmanager
def reported() -> Generator[None]:
    """What PyTorch and Python say of impossible sizes as a `JointError`, of memory as a `MemoryShortageError`."""
    try:
        yield
    except (RuntimeError, MemoryError, ArithmeticError, ValueError) as error:
        if is_exhausted(error):
            raise MemoryShortageError(f"there is no memory left for the network; {_REMEDY}") from error
        what = f"{type(error).__name__}: {first_line(error)}"
        raise JointError(f"the network cannot be made ({what}); change the settings of its parts") from error


@contextmanager
def _watched(most: int | None) -> Generator[None]:
    """End the making of a network that has too many parts or, not on the meta device, takes more than `most` bytes."""
    here, parts, taken = threading.get_ident(), 0, 0

    def count(_owner: nn.Module, _name: str, part: Any) -> None:
        nonlocal parts, taken
        if threading.get_ident() != here:
            return
        parts += 1
        taken += part.nbytes if isinstance(part, Tensor) and part.device.type != "meta" else 0
        if parts > MOST_PARTS:
            raise JointError(f"the network has more than {MOST_PARTS} layers and tensors; give fewer blocks or layers")
        if most is not None and taken > most:
            raise _Large

    handles = (
        hooks.register_module_module_registration_hook(count),
        hooks.register_module_parameter_registration_hook(count),
        hooks.register_module_buffer_registration_hook(count),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _memory(device: torch.device) -> int | None:
    """Bytes of memory that a device has left; None where nobody tells."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available() if device.type == "cpu" else None
