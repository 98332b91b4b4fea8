"""Download a file by https: whole and the right one, or not at all.

Bytes go to a hidden file beside the target, which is put in place in one step once size and checksum are right. If the
checksum is known, an interrupted download leaves that file, and the next call resumes from its end (HTTP `Range`);
the wrong bytes leave nothing. Plain http is taken from this machine alone; that holds for redirections too.
"""

from __future__ import annotations

import http.client
import re
import urllib.error
from contextlib import suppress
from pathlib import Path
from typing import IO

from maskmed_zoo.errors import CheckpointError, UserError, first_line
from maskmed_zoo.files import is_file, make_folder, sha256_of, unwritable
from maskmed_zoo.weights.connection import Response, ask, check_url
from maskmed_zoo.weights.files import LARGEST

_CHUNK = 2**18
_NUMBER = re.compile(r"[0-9]{1,18}")
_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)")


class InterruptedDownloadError(CheckpointError):
    """The connection failed, or stalled; what has arrived is kept, and the next call resumes from there."""


def partial_of(target: Path) -> Path:
    """Where what has arrived of a file is kept."""
    return target.with_name(f".{target.name}.partial")


def fetch(
    url: str, target: Path, *, sha256: str | None = None, size: int | None = None, largest: int = LARGEST
) -> Path:
    """Download `url` to `target`, unless it is there and right; returns `target`.

    Args:
        url: https.
        target: replaced as a whole; one process at a time.
        sha256: of the file; without it nothing is resumed.
        size: bytes of the file.
        largest: bytes at most, where `size` is not known.

    Raises `InterruptedDownloadError` where the next call resumes, `CheckpointError` where it cannot be had, or is not
    what it should be, and `OutputError` where it cannot be written.
    """
    check_url(url)
    partial = partial_of(target)
    make_folder(target.parent)
    try:
        if sha256 is not None and is_file(target) and sha256_of(target) == sha256:
            return target
        if sha256 is None:
            partial.unlink(missing_ok=True)
        have = partial.stat().st_size if is_file(partial) else 0
    except OSError as error:
        raise unwritable(target, error) from error
    try:
        if not have or have != size:  # else whole, killed before it was put in place
            _receive(url, partial, have, largest if size is None else size)
        _check(url, partial, sha256, size)
        _put(partial, target)
    except UserError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        if sha256 is None:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
        reason = f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else first_line(error)
        if is_file(partial):
            raise InterruptedDownloadError(f"{url}: interrupted ({reason}); run it again to resume") from error
        raise CheckpointError(f"{url}: could not be downloaded ({reason}); try again") from error
    return target


def _receive(url: str, partial: Path, have: int, largest: int) -> None:
    """Write what the server sends behind the `have` bytes of `partial`, or anew."""
    try:
        response = ask(url, {"Range": f"bytes={have}-"} if have else {})
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:  # the rest is not there: another file, or all of it is here
            partial.unlink()
            raise urllib.error.URLError("the server has no more of it") from error
        raise
    with response:
        found = _RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
        goes_on = response.status == 206 and found is not None and int(found[1]) == have
        if response.status != 200 and not goes_on:
            raise CheckpointError(f"{url}: the server answers with another part than was asked for; refused")
        have = have if goes_on else 0
        announced = _NUMBER.fullmatch(response.headers.get("Content-Length", "").strip())
        left = int(announced[0]) if announced else None
        if left is not None and have + left > largest:
            raise CheckpointError(f"{url}: {have + left} bytes, more than the {largest} expected; refused")
        response.allow(largest - have)
        with _opened(partial, goes_on) as file:
            arrived = _copy(response, file, url, have, largest)
        if left is not None and arrived < left:
            raise urllib.error.URLError(f"the connection ended {left - arrived} bytes too early")


def _copy(response: Response, file: IO[bytes], url: str, have: int, largest: int) -> int:
    """What is left of an answer, into a file that has `have` bytes; returns how many came."""
    arrived = 0
    while chunk := response.read1(_CHUNK):
        arrived += len(chunk)
        if have + arrived > largest:
            raise CheckpointError(f"{url}: more than the {largest} bytes expected; refused")
        try:
            file.write(chunk)
            file.flush()
        except OSError as error:
            raise unwritable(Path(file.name), error) from error
    return arrived


def _opened(partial: Path, goes_on: bool) -> IO[bytes]:
    try:
        return partial.open("ab" if goes_on else "wb")
    except OSError as error:
        raise unwritable(partial, error) from error


def _put(partial: Path, target: Path) -> None:
    try:
        partial.replace(target)
    except OSError as error:
        raise unwritable(target, error) from error


def _check(url: str, partial: Path, sha256: str | None, size: int | None) -> None:
    have = partial.stat().st_size
    if size is not None and have != size:
        raise CheckpointError(f"{url}: {have} bytes, expected {size}; refused")
    if sha256 is not None and sha256_of(partial) != sha256:
        raise CheckpointError(f"{url}: its sha256 is not {sha256[:12]}…: altered or damaged; refused")
