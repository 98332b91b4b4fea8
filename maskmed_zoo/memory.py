"""Memory: how much there is, and one line instead of a traceback where it does not suffice."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from maskmed_zoo.errors import MemoryShortageError, first_line

GIB = 2**30
REMEDY = "free some, crop the image, or take a larger spacing, smaller patches or fewer at a time"
_CGROUP = Path("/sys/fs/cgroup")
_TEXTS = (
    *("can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory"),
    *("insufficient shared memory", "killed by signal: killed"),
)
"""What torch says in a `RuntimeError`."""


def available() -> int | None:
    """Bytes that can be had without swapping: the machine's, or what its container leaves; None where nobody tells."""
    found: list[int] = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found.append(int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024)
    with suppress(OSError, ValueError):
        used = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
        statistics = (_CGROUP / "memory.stat").read_text(encoding="ascii").split()
        cached = int(statistics[statistics.index("inactive_file") + 1])  # of files, given back when it is wanted
        found.append(int((_CGROUP / "memory.max").read_text(encoding="ascii")) - used + cached)
    if not found and hasattr(os, "sysconf"):
        with suppress(OSError, ValueError):
            found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(found) if found else None


def check_available(needed: int, what: str) -> None:
    """Raise `MemoryShortageError` if there are less than `needed` bytes for `what`."""
    there = available()
    if there is not None and needed > there:
        raise MemoryShortageError(
            f"{what} needs {needed / GIB:.1f} GiB of memory, there are {there / GIB:.1f}; {REMEDY}"
        )


def is_exhausted(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory, on the CPU or on a GPU."""
    is_torchs = isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _TEXTS)
    return isinstance(error, MemoryError) or is_torchs


def give_back() -> None:
    """Return what was freed to the system, where the C library is glibc, which keeps small blocks for later.

    Large arrays made and freed between small ones leave hundreds of megabytes of such blocks.
    """
    with suppress(AttributeError, OSError, TypeError):  # TypeError: there is no such name on Windows
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def within_memory(what: str, remedy: str | None = None) -> Generator[None]:
    """Raise `MemoryShortageError` where something inside needs more memory than there is; also a decorator."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_exhausted(error):
            raise
        raise MemoryShortageError(
            f"{what} needs more memory than there is ({first_line(error)}); {remedy or REMEDY}"
        ) from error
