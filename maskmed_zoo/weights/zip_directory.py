"""Open a zip file whose directory is known to be small: Python's `zipfile` reads it whole, whatever its size."""

from __future__ import annotations

import zipfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

LARGEST_DIRECTORY = 8 * 2**20
"""Bytes of a zip file's directory: some eighty for each entry."""
_END, _END_SIZE = b"PK\x05\x06", 22
_END_64, _END_64_SIZE = b"PK\x06\x06", 56
_LOCATOR, _LOCATOR_SIZE = b"PK\x06\x07", 20
_LONGEST_COMMENT = 2**16


@contextmanager
def opened(path: Path, *, most: int) -> Generator[zipfile.ZipFile]:
    """A zip file of at most `most` entries; raises `zipfile.BadZipFile` for another, and what `zipfile` raises."""
    with path.open("rb") as file:
        if (size := _directory_size(file)) > LARGEST_DIRECTORY:
            raise zipfile.BadZipFile(f"its directory has {size} bytes, more than {LARGEST_DIRECTORY}")
        with zipfile.ZipFile(file) as found:
            if len(found.infolist()) > most:
                raise zipfile.BadZipFile(f"it has {len(found.infolist())} entries, more than {most}")
            yield found


def _directory_size(file: IO[bytes]) -> int:
    """Bytes of the directory, as the record at the end of the file says; the largest where two records say it."""
    whole = file.seek(0, 2)
    begin = file.seek(max(0, whole - _LONGEST_COMMENT - _END_SIZE))
    tail = file.read()
    at = len(tail) - _END_SIZE
    if at < 0 or tail[at : at + 4] != _END or tail[-2:] != b"\0\0":
        at = tail.rfind(_END)
    if at < 0 or len(tail) - at < _END_SIZE:
        raise zipfile.BadZipFile("it has no directory at its end")
    locator = _at(file, begin + at - _LOCATOR_SIZE, _LOCATOR_SIZE)
    if locator[:4] == _LOCATOR:  # beyond 4 GiB the sizes are in another record, in front of this one
        places = (begin + at - _LOCATOR_SIZE - _END_64_SIZE, _number(locator[8:16]))
        records = [record for place in places if (record := _at(file, place, _END_64_SIZE))[:4] == _END_64]
        if records:
            return max(_number(record[40:48]) for record in records)
    return _number(tail[at + 12 : at + 16])


def _at(file: IO[bytes], place: int, size: int) -> bytes:
    if not 0 <= place < 2**63:
        return b""
    file.seek(place)
    return file.read(size)


def _number(content: bytes) -> int:
    return int.from_bytes(content, "little")
