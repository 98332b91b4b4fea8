"""Folders that are being put together: killed, in a race, without room. What is there is whole, and nothing blocks."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import resource
import signal
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from maskmed_zoo.cli.main import main
from maskmed_zoo.errors import OutputError, UserError
from maskmed_zoo.weights import published as published_module
from maskmed_zoo.weights.arriving import arriving
from maskmed_zoo.weights.card import CARD, check_exported
from maskmed_zoo.weights.download import partial_of
from maskmed_zoo.weights.hub import pull
from tests.weights.conftest import Server, one_line
from tests.weights.test_hub import served, zipped


@dataclass
class Child:
    """`maskmed-zoo pull` or `export` in a process of its own, forked: importing torch anew would take seconds."""

    pid: int
    said: Path

    def end(self) -> tuple[int, str]:
        """Exit code, and what it wrote to standard error."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), self.said.read_text()


def process(source: object, out: Path, *, verb: str = "pull", largest: int | None = None) -> Child:
    """With `largest`, no file gets more bytes than that; the error is 'File too large' instead of 'No space left'."""
    said = out.parent.parent / f"said-{uuid.uuid4().hex}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a server's thread runs, which the child does without
        pid = os.fork()
    if pid:
        return Child(pid, said)
    code = 70
    try:
        sys.stderr = said.open("w")
        if largest is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
        code = main([verb, str(source), "--out", str(out), *(["--license", "MIT"] if verb == "export" else [])])
        sys.stderr.flush()
    finally:
        os._exit(code)


def hidden(out: Path) -> Path:
    return out.with_name(f".{out.name}.arriving")


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """As another process holds it."""
    folder.mkdir()
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
    os.close(descriptor)


def sources(server: Server, exported: Path, tmp_path: Path) -> list[str]:
    address = served(server, exported)
    archive = zipped(exported, tmp_path / "m.zip")
    server.files["/m.zip"] = archive.read_bytes()
    return [address, f"{server.url}/m.zip", str(archive)]


def test_what_a_killed_process_left_blocks_nothing(exported: Path, server: Server, tmp_path: Path) -> None:
    """Files of other weights, a half one, folders, a link out of it: all of it goes, and nothing behind the link."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    for index, source in enumerate(sources(server, exported, tmp_path)):
        out = tmp_path / f"out{index}"
        left = hidden(out)
        (left / "recipe.yaml.d").mkdir(parents=True)
        (left / "link").symlink_to(tmp_path / "precious")
        (left / CARD).write_text("{}")
        (left / "README.md").write_text("other")
        partial_of(left / "weights.safetensors").write_bytes(b"x" * 100)
        (left / ".0123.zip.partial").write_bytes(b"x" * 100)
        assert pull(source, out)["name"] == "tiny"
        check_exported(out)
        assert len(list(out.iterdir())) == 4
        assert not list(tmp_path.glob(".*"))
    assert (tmp_path / "precious" / "file").read_text() == "x"


def test_a_folder_that_another_process_fills(exported: Path, server: Server, tmp_path: Path) -> None:
    for index, source in enumerate(sources(server, exported, tmp_path)):
        out = tmp_path / f"out{index}"
        with locked(hidden(out)):
            (hidden(out) / "theirs").write_text("x")
            assert "another process is putting weights there" in one_line(pull, source, out)
            assert (hidden(out) / "theirs").read_text() == "x"
        assert pull(source, out)["name"] == "tiny"


def test_finished_by_another_process_meanwhile(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OutputError), arriving(out) as folder:  # noqa: PT012
        (folder / "ours").write_text("x")
        out.mkdir()
        (out / "theirs").write_text("x")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["out", "theirs"]


def test_two_processes_into_one_folder(exported: Path, server: Server, tmp_path: Path) -> None:
    """One does it; the other is refused in one line, or finds it done."""
    address = served(server, exported)
    for index in range(5):
        out = tmp_path / "in" / f"out{index}"
        ends = sorted(each.end() for each in [process(address, out) for _ in range(3)])
        assert [code for code, _ in ends] == [0, 2, 2]
        for _, line in ends[1:]:
            assert line.count("\n") == 1
            assert "another process is putting weights there" in line or "exists already" in line
        assert check_exported(out)["name"] == "tiny"
        assert not list(out.parent.glob(".*"))


def test_killed_and_gone_on_with(exported: Path, server: Server, tmp_path: Path) -> None:
    """SIGKILL in the middle of the weights: the next call asks for the rest alone."""
    address, out = served(server, exported), tmp_path / "in" / "out"
    whole, half = server.answer, threading.Event()

    def slow(request: object) -> None:
        if getattr(request, "path", "").endswith(".safetensors") and not half.is_set():
            body = server.files["/m/weights.safetensors"]
            request.send_response(200)  # type: ignore[attr-defined]
            request.send_header("Content-Length", str(len(body)))  # type: ignore[attr-defined]
            request.end_headers()  # type: ignore[attr-defined]
            request.wfile.write(body[:1000])  # type: ignore[attr-defined]
            request.wfile.flush()  # type: ignore[attr-defined]
            half.wait(20)
        else:
            whole(request)  # type: ignore[arg-type]

    server.answer = slow  # type: ignore[method-assign, assignment]
    killed = process(address, out)
    part = partial_of(hidden(out) / "weights.safetensors")
    until = time.monotonic() + 20
    while time.monotonic() < until and not (part.exists() and part.stat().st_size == 1000):
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.end()[0] == -signal.SIGKILL
    half.set()
    assert part.stat().st_size == 1000
    assert not out.exists()
    server.asked.clear()
    pull(address, out)
    asked = [(f"/m/{CARD}", None), ("/m/weights.safetensors", "bytes=1000-"), ("/m/README.md", None)]
    assert server.asked == asked
    check_exported(out)
    assert not list(out.parent.glob(".*"))


@pytest.mark.parametrize("source", [0, 1, 2])
def test_a_full_disk(source: int, exported: Path, server: Server, tmp_path: Path) -> None:
    assert (exported / "weights.safetensors").stat().st_size > 20000
    out = tmp_path / "in" / "out"
    code, said = process(sources(server, exported, tmp_path)[source], out, largest=20000).end()
    assert code == 2
    assert said.count("\n") == 1
    assert "cannot be written (File too large; " in said
    assert not out.parent.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(exported: Path, tmp_path: Path) -> None:
    archive = zipped(exported, tmp_path / "m.zip")
    (tmp_path / "in").mkdir(mode=0o500)
    assert "cannot be made a folder" in one_line(pull, str(archive), tmp_path / "in" / "out")


def test_a_file_where_a_folder_is_wanted(exported: Path, tmp_path: Path) -> None:
    archive = zipped(exported, tmp_path / "m.zip")
    assert "cannot be made a folder" in one_line(pull, str(archive), archive / "out")
    hidden(tmp_path / "out").write_text("x")
    assert "cannot be made a folder" in one_line(pull, str(archive), tmp_path / "out")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert "exists already" in one_line(pull, str(archive), tmp_path / "dangling")


def test_two_processes_and_one_cache(
    exported: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second waits for the first, and downloads nothing."""
    served(server, exported)
    facts = json.loads((exported / CARD).read_text())["files"]["weights.safetensors"]
    card = published_module.registry.card("maskmed_phantom", "model")
    monkeypatch.setitem(card.facts, "weights", facts | {"url": f"{server.url}/m/weights.safetensors"})
    monkeypatch.setattr(published_module, "cache_folder", lambda: tmp_path / "cache")
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(published_module.published("maskmed_phantom"))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(server.asked) == 1
    assert [p.name for p in (tmp_path / "cache").rglob("*") if p.is_file()] == ["maskmed_phantom.safetensors"]


@pytest.mark.parametrize(
    "facts",
    [
        [], "x", 1, {"url": 1, "size": 1, "sha256": "0" * 64}, {"url": "https://x/y", "size": True, "sha256": "0" * 64},
        {"url": "https://x/y", "size": 1e300, "sha256": "0" * 64},
        {"url": "https://x/y", "size": 2**70, "sha256": "0" * 64},
        {"url": "https://x/y", "size": 1, "sha256": "../../../../x"},
        {"url": "https://[::1", "size": 1, "sha256": "0" * 64},
        {"url": "file:///etc/passwd", "size": 1, "sha256": "0" * 64},
    ],
    ids=repr,
)  # fmt: skip
def test_published_facts_of_other_kinds(facts: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = published_module.registry.card("maskmed_phantom", "model")
    monkeypatch.setitem(card.facts, "weights", facts)
    monkeypatch.setattr(published_module, "cache_folder", lambda: tmp_path / "cache")
    with pytest.raises(UserError) as caught:
        published_module.published("maskmed_phantom")
    assert "\n" not in str(caught.value)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.name != "tiny.yaml"]


def test_an_archive_of_another_archive(exported: Path, server: Server, tmp_path: Path) -> None:
    """A known checksum: what is left of another archive is not gone on with."""
    archive, out = zipped(exported, tmp_path / "m.zip"), tmp_path / "out"
    server.files["/m.zip"] = archive.read_bytes()
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    hidden(out).mkdir()
    (hidden(out) / f".{'0' * 64}.zip.partial").write_bytes(b"x" * 50)
    server.cut, server.cuts = 700, 1
    assert "run it again to resume" in one_line(pull, f"{server.url}/m.zip", out, sha256=sha256)
    assert [p.stat().st_size for p in hidden(out).iterdir()] == [700]
    pull(f"{server.url}/m.zip", out, sha256=sha256)
    assert server.asked == [("/m.zip", None), ("/m.zip", "bytes=700-")]
    check_exported(out)
