"""An https connection whose server decides neither how long an answer takes nor how much memory it needs.

A time limit for each read does not end a server that sends a byte now and then, and headers, the bodies of redirections
and the ends of chunked answers have no size at all. So both are counted where bytes come from the socket: `SLOWEST`
bytes have to arrive in every `WINDOW`, and no more than the answer may have.
"""

from __future__ import annotations

import http.client
import io
import string
import time
import urllib.parse
import urllib.request
from typing import Any

from maskmed_zoo.errors import CheckpointError

TIMEOUT = 30.0
"""Seconds without a byte after which a connection is given up."""
WINDOW, SLOWEST = 60.0, 16 * 2**10
"""Seconds in which at least so many bytes must arrive: 273 bytes/s, a tenth of the slowest mobile lines."""
LARGEST_HEAD = 2**18
"""Bytes of status, headers and, of redirections and errors, the body."""
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def check_url(url: str) -> None:
    """Raise `CheckpointError` unless the address is https, or http on this machine."""
    try:
        parts = urllib.parse.urlsplit(url)
        url.encode("ascii")
        (parts.hostname or "").encode("idna")
        _ = parts.port  # raises for one that is no number
        if not url.isprintable() or " " in url:
            raise ValueError("blanks or control characters")
    except ValueError as error:
        raise CheckpointError(f"{url[:160]!r}: not an address ({error}); encode what is not ASCII") from error
    if not (parts.scheme == "https" and parts.hostname) and not (
        parts.scheme == "http" and parts.hostname in _LOOPBACK
    ):
        raise CheckpointError(f"{url}: expected an address that begins with https://")


class _Counted(io.RawIOBase):
    """What comes from a socket, counted; raises `OSError` where it is too slow or too much."""

    def __init__(self, raw: io.RawIOBase) -> None:
        super().__init__()
        self._raw, self.left = raw, LARGEST_HEAD
        self._since, self._got = time.monotonic(), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        count = self._raw.readinto(buffer)
        self.left -= count or 0
        self._got += count or 0
        if self.left < 0:
            raise OSError("the server sends more than the answer may have")
        if count and (now := time.monotonic()) - self._since > WINDOW:
            if self._got < SLOWEST:
                raise TimeoutError(f"only {self._got} bytes in {now - self._since:.0f} s, so it stalls")
            self._since, self._got = now, 0
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class Response(http.client.HTTPResponse):
    """An answer of at most `LARGEST_HEAD` bytes, until `allow` says that its body may have more."""

    def __init__(self, *words: Any, **options: Any) -> None:
        super().__init__(*words, **options)
        self._counted = _Counted(self.fp.detach())
        self.fp = io.BufferedReader(self._counted)

    def allow(self, body: int) -> None:
        """Let the body have so many bytes, and in chunks what those need."""
        self._counted.left = 2 * body + LARGEST_HEAD


class _Connection(http.client.HTTPConnection):
    response_class = Response


class _SecureConnection(http.client.HTTPSConnection):
    response_class = Response


class _Handler(urllib.request.HTTPHandler):
    def http_open(self, req: Any) -> Any:
        return self.do_open(_Connection, req)


class _SecureHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: Any) -> Any:
        return self.do_open(_SecureConnection, req)


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    def http_error_302(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any) -> Any:
        where = headers.get("Location") or headers.get("URI") or ""
        try:
            there = urllib.parse.urljoin(req.full_url, where)
            check_url(urllib.parse.quote(there, safe=string.punctuation))  # as urllib asks for it
            return super().http_error_302(req, fp, code, msg, headers)
        except ValueError as error:
            raise CheckpointError(f"{req.full_url}: leads to {where[:160]!r}, which is no address ({error})") from error
        finally:
            fp.close()

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def ask(url: str, headers: dict[str, str]) -> Response:
    """The server's answer, redirections followed; raises what `urllib` and `http.client` do, and `CheckpointError`."""
    opener = urllib.request.build_opener(_Handler, _SecureHandler, _CheckedRedirects)
    request = urllib.request.Request(url, headers={"User-Agent": "maskmed-zoo", "Accept-Encoding": "identity"})
    for name, value in headers.items():
        request.add_header(name, value)
    return opener.open(request, timeout=TIMEOUT)
