"""Downloads from a server on this machine: whole and right, resumed, or not there at all."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from maskmed_zoo.weights.download import check_url, fetch
from tests.weights.conftest import Server, one_line

BODY = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def target(server: Server, tmp_path: Path) -> Path:
    server.files["/w"] = BODY
    return tmp_path / "in" / "weights.safetensors"


def left(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir()) if target.parent.exists() else []


@pytest.mark.parametrize("length", [True, False])
def test_whole(server: Server, target: Path, length: bool) -> None:
    server.length = length
    fetch(f"{server.url}/w", target, sha256=SHA256, size=len(BODY))
    assert target.read_bytes() == BODY
    assert left(target) == [target.name]
    fetch(f"{server.url}/w", target, sha256=SHA256)
    assert len(server.asked) == 1  # it is there already


@pytest.mark.parametrize("ranges", [True, False])
def test_interrupted_and_gone_on_with(server: Server, target: Path, ranges: bool) -> None:
    server.ranges, server.cut, server.cuts = ranges, 300_000, 2
    for _ in range(2):
        message = one_line(fetch, f"{server.url}/w", target, sha256=SHA256, size=len(BODY))
        assert "too early" in message
        assert "run it again to resume" in message
        assert left(target) == [f".{target.name}.partial"]
    fetch(f"{server.url}/w", target, sha256=SHA256, size=len(BODY))
    assert target.read_bytes() == BODY
    assert left(target) == [target.name]
    assert [wanted for _, wanted in server.asked] == (
        [None, "bytes=300000-", "bytes=600000-"] if ranges else [None, "bytes=300000-", "bytes=300000-"]
    )


def test_without_a_checksum_nothing_is_gone_on_with(server: Server, target: Path) -> None:
    server.cut, server.cuts = 300_000, 1
    assert "try again" in one_line(fetch, f"{server.url}/w", target)
    assert left(target) == []
    fetch(f"{server.url}/w", target)
    assert server.asked[-1][1] is None
    assert target.read_bytes() == BODY


def test_killed_before_it_was_put_in_place(server: Server, target: Path) -> None:
    target.parent.mkdir()
    target.with_name(f".{target.name}.partial").write_bytes(BODY)
    fetch(f"{server.url}/w", target, sha256=SHA256, size=len(BODY))
    assert server.asked == []
    assert left(target) == [target.name]


def test_wrong_bytes_leave_nothing(server: Server, target: Path) -> None:
    url = f"{server.url}/w"
    assert "sha256 is not" in one_line(fetch, url, target, sha256="0" * 64)
    assert left(target) == []
    assert "more than the 5 expected" in one_line(fetch, url, target, sha256=SHA256, size=5)
    assert left(target) == []
    assert "expected" in one_line(fetch, url, target, sha256=SHA256, size=len(BODY) + 1)
    assert left(target) == []
    server.length = False
    assert "more than the 1000 bytes" in one_line(fetch, url, target, largest=1000)
    assert left(target) == []
    # The beginning of another file: the whole is wrong, and the next call starts anew.
    target.with_name(f".{target.name}.partial").write_bytes(b"x" * 1000)
    assert "sha256 is not" in one_line(fetch, url, target, sha256=SHA256, size=len(BODY))
    fetch(url, target, sha256=SHA256, size=len(BODY))
    assert target.read_bytes() == BODY


def test_an_old_file_stays_until_the_new_one_is_right(server: Server, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(b"old")
    one_line(fetch, f"{server.url}/w", target, sha256="0" * 64)
    assert target.read_bytes() == b"old"
    assert "HTTP 404" in one_line(fetch, f"{server.url}/none", target, sha256=SHA256)
    assert target.read_bytes() == b"old"


@pytest.mark.parametrize(
    "url",
    ["http://example.org/w", "ftp://127.0.0.1/w", "file:///etc/hostname", "https:///w", "w", "http://127.0.0.1.x/"],
)
def test_only_https(url: str, target: Path) -> None:
    assert "https://" in one_line(fetch, url, target)
    assert left(target) == []


@pytest.mark.parametrize(
    "url", ["https://[x/w", f"https://{'a' * 70}.org/w", "https://example.org/\u00fc", "https://h/a\nb"]
)
def test_addresses_that_are_none(url: str, target: Path) -> None:
    assert "not an address" in one_line(fetch, url, target)
    assert left(target) == []


def test_redirections_are_checked_too(server: Server, target: Path) -> None:
    check_url("https://example.org/w")
    server.redirects = {"/a": "/w", "/b": "http://example.org/w", "/c": "file:///etc/hostname"}
    fetch(f"{server.url}/a", target, sha256=SHA256)
    target.unlink()
    for path in ("/b", "/c"):
        assert "https://" in one_line(fetch, server.url + path, target)
        assert left(target) == []


def test_no_server(target: Path) -> None:
    assert "could not be downloaded" in one_line(fetch, "http://127.0.0.1:9/w", target, sha256=SHA256)
    assert left(target) == []
