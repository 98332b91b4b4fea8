"""Files and folders, as every part of the package writes them: whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from maskmed_zoo.errors import DataError, OutputError

ABANDONED = 24 * 3600.0
"""Age, s, from which an unfinished folder belongs to nobody any more."""


def sha256_of(path: Path) -> str:
    """The checksum of a file, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one step; raises `OutputError`."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        write(temporary)
        temporary.chmod(0o666 & ~_umask())  # safetensors makes files that only their owner may read
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error}); free space or rights") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def make_folder(path: Path) -> None:
    """Make a folder and its parents; raises `OutputError` if that cannot be done."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be made a folder ({error.strerror}); give another one") from error


def remove_abandoned(folder: Path, pattern: str) -> None:
    """Remove folders that a killed process left unfinished; in younger ones another process may be at work."""
    for path in folder.glob(pattern):
        if time.time() - path.stat().st_mtime > ABANDONED:
            shutil.rmtree(path, ignore_errors=True)


def read_json(path: Path) -> Any:
    """The content of a JSON file of the user's; raises `DataError` that says where it is wrong."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}:{error.colno}: invalid JSON ({error.msg}); correct it there") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error}); save it again") from error


def write_json(path: Path, content: Any) -> None:
    """Write a JSON document; raises `OutputError` if that cannot be done."""
    text = json.dumps(content, indent=1, allow_nan=False)
    write_atomically(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))


def cache_folder() -> Path:
    """Where downloads and compiled code of this package are kept, safe to delete; `RuntimeError` without a home."""
    return Path.home() / ".cache" / "maskmed_zoo"
