"""A lock file between processes: the operating system's lock, so what a dead process held is free by itself.

A child that inherits the open file keeps the lock when its parent is killed. What stands in the file, pid and host, is
for people to read.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from maskmed_zoo.errors import OutputError, UserError


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Generator[IO[str] | None]:
    """Hold the lock of file `path`, which is made if missing; None if another process has it and `wait` is false.

    Raises `UserError` where files cannot be locked.
    """
    try:
        import fcntl
    except ImportError as error:
        raise UserError("this system has no file locks (flock); use Linux or macOS") from error
    try:
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); give another folder") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        except OSError as error:
            raise UserError(f"{path}: cannot be locked ({error.strerror}); give a folder on another disk") from error
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield file


@contextmanager
def alone_in(folder: Path, *, wait: bool = True) -> Generator[bool]:
    """Hold the lock of a folder, which needs no file in it; wait for it, or give False if another process has it.

    A folder that was moved or removed meanwhile gives False too. Where the system or the disk has no such locks,
    nothing is held: then one process at a time is up to the caller.
    """
    try:
        import fcntl
    except ImportError:
        yield True
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        is_free = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            is_free = False
        except OSError:
            pass
        yield is_free and _is_at(folder, descriptor)
    finally:
        os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


def holder(path: Path) -> str | None:
    """Pid and host of the process that has the lock of `path` now, None if it is free."""
    if not path.exists():
        return None
    with path.open(encoding="utf-8") as file:
        text = file.read()
    with locked(path) as lock:
        return None if lock is not None else text
