"""A lock file between processes: the operating system's lock, so what a dead process held is free by itself.

A child that inherits the open file keeps the lock when its parent is killed. What stands in the file, pid and host, is
for people to read. A link or somebody's file in its place is refused, not followed or emptied.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from maskmed_zoo.errors import OutputError, UserError, reason_of

LONGEST = 1000
"""Bytes of a lock file."""


class NoLocksError(UserError):
    """A system or a disk without file locks."""


@contextmanager
def locked(path: Path, *, wait: bool = False, keep: bool = True) -> Generator[IO[str] | None]:
    """Hold the lock of file `path`, which is made if missing; None if another process has it and `wait` is false.

    The file stays afterwards unless `keep` is false. Raises `OutputError` where it cannot be made, or something else is
    in its place, and `NoLocksError` where files cannot be locked.
    """
    with _locked(path, wait) as file:
        if file is not None:
            file.truncate(0)
            file.write(f"pid {os.getpid()} on {socket.gethostname()}")
            file.flush()
        try:
            yield file
        finally:
            if file is not None and not keep:
                with suppress(OSError):
                    path.unlink()


@contextmanager
def _locked(path: Path, wait: bool) -> Generator[IO[str] | None]:
    try:
        import fcntl
    except ImportError as error:
        raise NoLocksError("this system has no file locks (flock); use Linux or macOS") from error
    while True:
        with _opened(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
                return
            except OSError as error:
                raise NoLocksError(
                    f"{path}: cannot be locked ({reason_of(error)}); give a folder on another disk"
                ) from error
            if _is_at(path, file.fileno()):  # else the holder before removed it in the meantime
                yield file
                return


def _opened(path: Path, make: int = os.O_CREAT) -> IO[str]:
    try:
        flags = os.O_RDWR | make | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.fdopen(os.open(path, flags, 0o666), "r+", encoding="utf-8", errors="replace")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = "a link" if path.is_symlink() else reason_of(error)
        raise OutputError(f"{path}: cannot be written ({reason}); give another folder") from error
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1 or not _is_lock(file.read(LONGEST)):
        file.close()
        raise OutputError(f"{path}: is no lock file, so it is left alone; move it away, or give another folder")
    file.seek(0)
    return file


def _is_lock(text: str) -> bool:
    return not text or text.startswith("pid ")


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
    if not os.path.lexists(path):
        return None
    with locked(path) as lock:
        return None if lock is not None else worker(path)


def worker(path: Path) -> str:
    """What stands in a lock file, as far as it can be read."""
    try:
        with _opened(path, make=0) as file:
            return file.read(LONGEST) or "another process"
    except OutputError:  # by now it is something else
        return "another process"


def wait_for_the_dead(path: Path, patience: float = 10.0) -> None:
    """Wait while a lock is held for a process of this machine that is gone: its children have not noticed yet."""
    end = time.monotonic() + patience
    while time.monotonic() < end and (who := holder(path)) and _is_gone(who):
        time.sleep(0.2)


def _is_gone(who: str) -> bool:
    found = re.fullmatch(r"pid (\d{1,9}) on (.+)", who)
    if found is None or found[2] != socket.gethostname():
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
