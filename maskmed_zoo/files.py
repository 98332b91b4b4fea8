"""Files and folders, as every part of the package reads and writes them: within limits, and whole or not at all.

No file decides how much memory or time it costs: `read_text` and `read_json` bound size, depth and digits, and never
wait for a pipe. `write_atomically` leaves the old file or the new one, on the disk and not only in its cache.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import math
import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from maskmed_zoo.errors import DataError, OutputError, UserError, first_line, reason_of

ABANDONED = 24 * 3600.0
"""Age, s, from which something unfinished belongs to nobody any more."""
LARGEST_TEXT = 32 * 2**20
"""Bytes that a text file may have: Python's objects for it take up to forty times as much."""
DEEPEST = 64
"""Levels of lists and mappings, one in the other."""
UNFINISHED = ".partial-"
"""Before the name of a file that is being written."""
_ENDING = 20
"""Characters of a file's name that stand at the end of its unfinished one."""
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MASK = os.umask(0)  # asked for by setting it, which other threads would see: so once, here
os.umask(_MASK)
_MODE = 0o666 & ~_MASK


def sha256_of(path: Path) -> str:
    """The checksum of a file, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_there(path: Path) -> bool:
    """Whether something is at `path`; False, as below, for a name that nothing can have, or that may not be looked at.

    `Path.exists` and its kin raise `OSError` there.
    """
    return os.path.lexists(path)


def is_file(path: Path) -> bool:
    """Whether a plain file is at `path`."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: Path) -> bool:
    """Whether a folder is at `path`."""
    return os.path.isdir(path)  # noqa: PTH112


def write_atomically(path: Path, write: Callable[[Path], Any], *, keep: Path | None = None) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one step; raises `OutputError`.

    Whatever `write` raises, a link at `path` is replaced and not followed, and what was there before stays until the
    new file is on the disk; then it is moved to `keep`, if that is given. The temporary name ends as `path` does, for
    writers that go by the ending.
    """
    try:
        if path.exists() and not path.is_file():
            raise OutputError(f"{path}: is no plain file, so it is not replaced; give another name, or move it away")
        temporary = path.with_name(f"{UNFINISHED}{uuid.uuid4().hex}-{path.name[-_ENDING:]}")
        try:
            write(temporary)
            temporary.chmod(_MODE)  # safetensors makes files that only their owner may read
            _sync(temporary)
            if keep is not None and path.exists():
                path.replace(keep)
            temporary.replace(path)
            _sync(path.parent)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
    except (UserError, MemoryError, LookupError, TypeError, AttributeError):  # the last ones: mistakes in `write`
        raise
    except Exception as error:  # torch and safetensors have errors of their own for a full disk
        raise unwritable(path, error) from error


def unwritable(path: Path, error: BaseException) -> OutputError:
    """The error for something at `path` that could not be written, with the space there is if that may be the cause."""
    error = _cause(error)
    space = "" if isinstance(error, OSError) and error.errno not in _NO_SPACE else _space(path)
    return OutputError(
        f"{path}: cannot be written ({reason_of(error)}{space}); check the name, the rights and the free space"
    )


def _cause(error: BaseException) -> BaseException:
    """The error of the operating system that led to another one, if there was one: it says why."""
    earlier: BaseException | None = error
    while earlier is not None and not isinstance(earlier, OSError):
        earlier = earlier.__context__
    return earlier or error


def _space(path: Path) -> str:
    """What is free on the disk of a file, and what the file needed before, as far as that is known."""
    try:
        free = f"; {shutil.disk_usage(path.parent).free / 2**20:.1f} MiB are free there"
    except OSError:
        return ""
    return f"{free}, the file before has {path.stat().st_size / 2**20:.1f}" if is_file(path) else free


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk; some disks have no such thing for folders."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def usable(path: Path, error: type[UserError] = OutputError) -> Path:
    """A path at which there may be something; raises `error` for one too long, in a circle of links, or with a NUL."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, ValueError) as problem:
        raise error(f"{path}: is no usable path ({reason_of(problem)}); give another one") from problem
    return path


def make_folder(path: Path) -> None:
    """Make a folder and its parents; raises `OutputError` if that cannot be done."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise OutputError(f"{path}: cannot be made a folder ({reason_of(error)}); give another one") from error


def remove_unfinished(paths: Iterable[Path]) -> None:
    """Remove what killed processes left of files that nobody else writes now."""
    for path in paths:
        remove_abandoned(path.parent, f"{UNFINISHED}*-{glob.escape(path.name[-_ENDING:])}", age=-math.inf)


def remove_abandoned(folder: Path, pattern: str, *, age: float = ABANDONED) -> None:
    """Remove what a killed process left unfinished in a folder; at something younger another process may be at work."""
    for path in folder.glob(pattern):
        with suppress(OSError):
            if time.time() - path.lstat().st_mtime <= age:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def read_text(path: Path, *, largest: int = LARGEST_TEXT, error: type[UserError] = DataError) -> str:
    """The UTF-8 text of a plain file of at most `largest` bytes, without a byte-order mark; raises `error`."""
    try:
        if path.exists() and not path.is_file():
            raise error(f"{path}: is no plain file; give another one")
        with path.open("rb") as file:
            content = file.read(largest + 1)
        if len(content) > largest:
            raise error(f"{path}: more than {largest} bytes, which no file of this kind has; give another one")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"{path}: is no UTF-8 text (byte {problem.start}); save it again as such") from problem
    except (OSError, ValueError) as problem:
        raise error(f"{path}: cannot be read ({reason_of(problem)}); check the path and the rights") from problem


def read_json(path: Path, *, largest: int = LARGEST_TEXT, error: type[UserError] = DataError) -> Any:
    """The content of a JSON file, whoever wrote it; raises `error` that says where it is wrong.

    A key that stands twice is refused: which of the two was meant? So are NaN and infinity, which are no JSON.
    """
    return parse_json(read_text(path, largest=largest, error=error), str(path), error=error)


def parse_json(text: str, place: str, *, error: type[UserError] = DataError) -> Any:
    """The content of JSON text that stands at `place`; raises `error` as `read_json` does."""
    try:
        content = json.loads(text, object_pairs_hook=_object, parse_constant=_no_number)
    except json.JSONDecodeError as problem:
        where = f"{place}:{problem.lineno}:{problem.colno}"
        raise error(f"{where}: invalid JSON ({problem.msg}); correct it there") from problem
    except RecursionError as problem:
        raise error(f"{place}: nested more than {DEEPEST} levels deep; refused") from problem
    except ValueError as problem:  # of the two functions below, or an integer of thousands of digits
        raise error(f"{place}: invalid JSON ({first_line(problem)}); correct it there") from problem
    check_depth(content, place, error=error)
    return content


def check_depth(content: Any, place: str, *, error: type[UserError]) -> None:
    """Raise `error` for lists and mappings nested more than `DEEPEST` levels deep."""
    level, depth = [content], 0
    while level := [x for c in level if isinstance(c, dict | list) for x in (c.values() if isinstance(c, dict) else c)]:
        depth += 1
        if depth > DEEPEST:
            raise error(f"{place}: nested more than {DEEPEST} levels deep; refused")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {name!r} stands twice")
    return found


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON document; raises `OutputError` if that cannot be done."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file, UTF-8; raises `OutputError` if that cannot be done."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def cache_folder() -> Path:
    """Where downloads and compiled code of this package are kept, safe to delete; `RuntimeError` without a home."""
    return Path.home() / ".cache" / "maskmed_zoo"


def reading_threads() -> int:
    """Threads that read files side by side where nothing else is at work: one for each core, up to eight."""
    return min(8, os.cpu_count() or 1)
