"""Servers that lie, stall or flood: one line, nothing left behind, bounded time and memory."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from maskmed_zoo.errors import CheckpointError
from maskmed_zoo.weights import connection
from maskmed_zoo.weights.download import InterruptedDownloadError, fetch, partial_of

BODY = bytes(range(256)) * 40
SHA256 = hashlib.sha256(BODY).hexdigest()
Answer = bytes | Callable[[socket.socket], None]


class Raw:
    """Answers every connection with the same bytes, whatever was asked."""

    def __init__(self) -> None:
        self.answer: Answer = b""
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/w"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                connected, _ = self._listening.accept()
            except OSError:
                return
            with connected, suppress(OSError):
                connected.settimeout(5)
                connected.recv(2**16)
                if callable(self.answer):
                    self.answer(connected)
                else:
                    connected.sendall(self.answer)
                connected.shutdown(socket.SHUT_WR)
                connected.recv(2**16)


@pytest.fixture(scope="module")
def raw() -> Iterator[Raw]:
    server = Raw()
    yield server
    server.close()


def head(status: str = "200 OK", **headers: object) -> bytes:
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items()]
    return f"HTTP/1.1 {status}\r\n{''.join(lines)}\r\n".encode("latin-1")


def flood(begin: bytes, line: bytes) -> Answer:
    """For ever, or as long as somebody listens."""

    def send(connected: socket.socket) -> None:
        connected.sendall(begin)
        while True:
            connected.sendall(line * 500)

    return send


def drip(begin: bytes, rest: bytes, gap: float) -> Answer:
    """A byte every `gap` seconds."""

    def send(connected: socket.socket) -> None:
        connected.sendall(begin)
        for byte in rest:
            time.sleep(gap)
            connected.sendall(bytes([byte]))

    return send


def to(place: str) -> bytes:
    return head("302 Found", Location=place)


CHUNKED = head(Transfer_Encoding="chunked")
REFUSED: dict[str, Answer] = {
    "length of 5000 digits": head(Content_Length="9" * 5000) + BODY[:9],
    "superscript length": head(Content_Length="\xb2") + BODY[:9],
    "negative length": head(Content_Length="-5") + BODY[:9],
    "underscored length": head(Content_Length="1_0") + BODY,
    "another part": head("206 Partial", Content_Range="bytes 5-9/10") + BODY,
    "part of 5000 digits": head("206 Partial", Content_Range=f"bytes {'9' * 5000}-1/1") + BODY,
    "superscript part": head("206 Partial", Content_Range="bytes \xb2-1/1") + BODY,
    "part without range": head("206 Partial") + BODY,
    "no content": head("204 No"),
    "no such range": head("416 No"),
    "status 999": head("999 X"),
    "status of 20 digits": b"HTTP/1.1 99999999999999999999 X\r\n\r\n",
    "nothing": b"",
    "garbage": b"\x00\xffgarbage\r\n\r\n",
    "another protocol": b"SSH-2.0-OpenSSH\r\n",
    "endless status": b"HTTP/1.1 200 " + b"x" * 70000,
    "header too long": b"HTTP/1.1 200 OK\r\nA: " + b"x" * 70000 + b"\r\n\r\n",
    "5000 headers": b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 5000 + b"\r\n",
    "endless redirection": flood(to("/w"), b"x" * 1000),
    "endless continuation": flood(b"", head("100 Continue")),
    "endless header": flood(b"HTTP/1.1 200 OK\r\nA: ", b"x" * 1000),
    "endless trailer": flood(CHUNKED + b"0\r\n", b"X: y\r\n"),
    "endless body": flood(head(), b"x" * 1000),
    "endless error": flood(head("404 No"), b"x" * 1000),
    "no chunk": CHUNKED + b"zz\r\n",
    "negative chunk": CHUNKED + b"-5\r\nhello\r\n",
    "chunk too short": CHUNKED + b"5\r\nhel",
    "huge chunk": CHUNKED + b"f" * 100 + b"\r\nx",
    "long extension": CHUNKED + b"5;" + b"e" * 70000,
    "loop": to("/w"),
    "no location": head("302 Found"),
    "location of 60000": to("x" * 60000),
    "location of 70000": to("x" * 70000),
    **{f"to {place}": to(place) for place in (
        "http://[::1", "https://[::1", "file:///etc/passwd", "http://example.org/w", "https://", "https://h:99999/",
        "https://h:abc/", "https://\xff/", "https://a b/", "\x01", "mailto:x", "data:,x",
        "https://" + "a." * 200 + "org/",
        "https://u:p@[::1]x/", "//[",
    )},
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("known", [True, False])
def test_answers(kind: str, known: bool, raw: Raw, tmp_path: Path) -> None:
    raw.answer, target = REFUSED[kind], tmp_path / "w"
    facts = {"sha256": SHA256, "size": len(BODY)} if known else {"largest": 5 * 10**6, "sha256": "0" * 64}
    began = time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        fetch(raw.url, target, **facts)  # type: ignore[arg-type]
    assert time.monotonic() - began < 5
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2100
    left = [path.name for path in tmp_path.iterdir()]
    assert left == ([partial_of(target).name] if isinstance(caught.value, InterruptedDownloadError) else [])


@pytest.mark.parametrize("where", ["body", "head", "redirection"])
def test_a_byte_now_and_then_is_a_stall(where: str, raw: Raw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No read of it lasts as long as the time limit."""
    monkeypatch.setattr(connection, "WINDOW", 0.4)
    ok = head(Content_Length=len(BODY))
    begin, rest = {"body": (ok, BODY), "head": (b"", ok), "redirection": (to("/w"), BODY)}[where]
    raw.answer, target = drip(begin, rest[:30], 0.1), tmp_path / "w"
    with pytest.raises(CheckpointError, match=r"only \d+ bytes in 0 s, so it stalls") as caught:
        fetch(raw.url, target, sha256=SHA256, size=len(BODY))
    assert isinstance(caught.value, InterruptedDownloadError) == (where == "body")
    raw.answer = ok + BODY
    fetch(raw.url, target, sha256=SHA256, size=len(BODY))
    assert target.read_bytes() == BODY


def test_a_slow_line_goes_on(raw: Raw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "WINDOW", 0.2)
    monkeypatch.setattr(connection, "SLOWEST", 2)
    raw.answer = drip(head(Content_Length=30), BODY[:30], 0.03)
    assert fetch(raw.url, tmp_path / "w").read_bytes() == BODY[:30]


def test_nothing_at_all_is_a_stall(raw: Raw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "TIMEOUT", 0.2)
    raw.answer = drip(head(Content_Length=len(BODY)) + BODY[:500], b"x", 1)
    with pytest.raises(InterruptedDownloadError, match="timed out"):
        fetch(raw.url, tmp_path / "w", sha256=SHA256, size=len(BODY))
    assert partial_of(tmp_path / "w").read_bytes() == BODY[:500]


@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_chunks(chunk: int, raw: Raw, tmp_path: Path) -> None:
    parts = [BODY[i : i + chunk] for i in range(0, len(BODY), chunk)]
    body = b"".join(b"%x;a=b\r\n%s\r\n" % (len(part), part) for part in parts)
    raw.answer = CHUNKED + body + b"0\r\nTrailer: x\r\n\r\n"
    assert fetch(raw.url, tmp_path / "w", sha256=SHA256, size=len(BODY)).read_bytes() == BODY
