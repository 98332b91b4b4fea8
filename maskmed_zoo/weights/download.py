"""Download a file by https: whole and the right one, or not at all.

Bytes go to a hidden file beside the target, which is put in place in one step once size and checksum are right. If the
checksum is known, an interrupted download leaves that file, and the next call resumes from its end (HTTP `Range`);
the wrong bytes leave nothing. Plain http is taken from this machine alone; that holds for redirections too.
"""

from __future__ import annotations

import http.client
import re
import string
import urllib.error
import urllib.parse
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

from maskmed_zoo.errors import CheckpointError
from maskmed_zoo.files import sha256_of
from maskmed_zoo.weights.files import LARGEST

TIMEOUT = 30.0
_CHUNK = 2**18
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)$")


class InterruptedDownloadError(CheckpointError):
    """The connection failed; what has arrived is kept, and the next call resumes from there."""


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    def http_error_302(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any) -> Any:
        where = headers.get("Location") or headers.get("URI") or ""
        there = urllib.parse.urljoin(req.full_url, where)
        try:
            check_url(urllib.parse.quote(there, safe=string.punctuation))  # as urllib asks for it
        except CheckpointError:
            fp.close()
            raise
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def check_url(url: str) -> None:
    """Raise `CheckpointError` unless the address is https, or http on this machine."""
    try:
        parts = urllib.parse.urlsplit(url)
        url.encode("ascii")
        (parts.hostname or "").encode("idna")
        if not url.isprintable():
            raise ValueError("control characters")
    except ValueError as error:
        raise CheckpointError(f"{url[:160]!r}: not an address ({error}); encode what is not ASCII") from error
    if not (parts.scheme == "https" and parts.hostname) and not (
        parts.scheme == "http" and parts.hostname in _LOOPBACK
    ):
        raise CheckpointError(f"{url}: expected an address that begins with https://")


def fetch(
    url: str, target: Path, *, sha256: str | None = None, size: int | None = None, largest: int = LARGEST
) -> Path:
    """Download `url` to `target`, unless it is there and right; returns `target`.

    Args:
        url: https.
        target: replaced as a whole.
        sha256: of the file; without it nothing is resumed.
        size: bytes of the file.
        largest: bytes at most, where `size` is not known.

    Raises `InterruptedDownloadError` where the next call resumes, and `CheckpointError` where it cannot be had, or is
    not what it should be.
    """
    check_url(url)
    if sha256 is not None and target.is_file() and sha256_of(target) == sha256:
        return target
    partial = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if sha256 is None:
            partial.unlink(missing_ok=True)
        _receive(url, partial, size, largest if size is None else size)
        _check(url, partial, sha256, size)
        partial.replace(target)
    except (OSError, http.client.HTTPException) as error:
        if sha256 is None:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
        reason = f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else str(error) or repr(error)
        if partial.exists():
            raise InterruptedDownloadError(f"{url}: interrupted ({reason}); run it again to resume") from error
        raise CheckpointError(f"{url}: could not be downloaded ({reason}); try again") from error
    except CheckpointError:
        partial.unlink(missing_ok=True)
        raise
    return target


def _receive(url: str, partial: Path, size: int | None, largest: int) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    if have and have == size:
        return  # whole, killed before it was put in place
    opener = urllib.request.build_opener(_CheckedRedirects)
    request = urllib.request.Request(url, headers={"User-Agent": "maskmed-zoo", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = opener.open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:  # the rest is not there: another file, or all of it is here
            partial.unlink()
            raise urllib.error.URLError("the server has no more of it") from error
        raise
    with response:
        found = _RANGE.match(response.headers.get("Content-Range", ""))
        goes_on = response.status == 206 and found is not None and int(found[1]) == have
        have = have if goes_on else 0
        announced = response.headers.get("Content-Length")
        left = int(announced) if announced and announced.isdigit() else None
        if left is not None and have + left > largest:
            raise CheckpointError(f"{url}: {have + left} bytes, more than the {largest} expected; refused")
        with partial.open("ab" if goes_on else "wb") as file:
            while chunk := response.read(_CHUNK):
                have += len(chunk)
                if have > largest:
                    raise CheckpointError(f"{url}: more than the {largest} bytes expected; refused")
                file.write(chunk)
                left = None if left is None else left - len(chunk)
        if left:
            raise urllib.error.URLError(f"the connection ended {left} bytes too early")


def _check(url: str, partial: Path, sha256: str | None, size: int | None) -> None:
    have = partial.stat().st_size
    if size is not None and have != size:
        raise CheckpointError(f"{url}: {have} bytes, expected {size}; refused")
    if sha256 is not None and sha256_of(partial) != sha256:
        raise CheckpointError(f"{url}: its sha256 is not {sha256[:12]}…: altered or damaged; refused")
