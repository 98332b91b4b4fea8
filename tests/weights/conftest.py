"""An exported folder, and a server on this machine that can misbehave."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from safetensors.torch import save_file

import maskmed_zoo as zoo
from maskmed_zoo.errors import ZooError
from maskmed_zoo.weights.card import CARD, FileFacts


@dataclass
class Server:
    """Files by path; `cut` bytes of an answer are sent before the connection ends, for the next `cuts` requests."""

    files: dict[str, bytes] = field(default_factory=dict[str, bytes])
    redirects: dict[str, str] = field(default_factory=dict[str, str])
    ranges: bool = True
    cut: int = 0
    cuts: int = 0
    length: bool = True
    asked: list[tuple[str, str | None]] = field(default_factory=list[tuple[str, str | None]])
    url: str = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path, wanted = request.path, request.headers.get("Range")
        self.asked.append((path, wanted))
        if path in self.redirects:
            request.send_response(302)
            request.send_header("Location", self.redirects[path])
            request.end_headers()
            return
        if path not in self.files:
            request.send_error(404)
            return
        body, start = self.files[path], 0
        if wanted and self.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                request.send_error(416)
                return
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if self.length:
            request.send_header("Content-Length", str(len(body) - start))
        request.end_headers()
        rest = body[start:]
        if self.cuts:
            self.cuts -= 1
            rest = rest[: self.cut]
        with suppress(BrokenPipeError, ConnectionResetError):  # a client that has seen enough
            request.wfile.write(rest)


@pytest.fixture
def server() -> Iterator[Server]:
    """Listens while the test runs."""
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.answer(self)

        def log_message(self, format: str, *words: object) -> None:
            del format, words

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        state.url = f"http://127.0.0.1:{running.server_address[1]}"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        running.shutdown()
        thread.join()


@pytest.fixture
def exported(tiny_recipe: Path, tmp_path: Path) -> Path:
    """A folder as `export` writes it."""
    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / "recipe.yaml").write_bytes(tiny_recipe.read_bytes())
    save_file(zoo.create(tiny_recipe).state_dict(), folder / "weights.safetensors")
    (folder / "README.md").write_text("# tiny\n", encoding="utf-8")
    facts = {name: FileFacts.of(folder / name) for name in ("recipe.yaml", "weights.safetensors", "README.md")}
    card = {"format": 1, "name": "tiny", "license": "CC0-1.0"}
    card["files"] = {name: {"size": fact.size, "sha256": fact.sha256} for name, fact in facts.items()}
    (folder / CARD).write_text(json.dumps(card), encoding="utf-8")
    return folder


def one_line(call: Callable[..., object], *words: object, **options: object) -> str:
    """The message, of one line, of the error that a call raises."""
    with pytest.raises(ZooError) as caught:
        call(*words, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
