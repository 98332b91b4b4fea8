"""Weights from outside: cards, zip files, tensors, and what a server may answer."""

from __future__ import annotations

import io
import json
import socket
import threading
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save

import maskmed_zoo as zoo
from maskmed_zoo.export.export import export
from maskmed_zoo.registry import Card
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.weights.card import CARD, check_exported
from maskmed_zoo.weights.download import fetch
from maskmed_zoo.weights.hub import pull
from tests.conftest import TINY
from tests.fuzz.harness import GIVEN, Target
from tests.fuzz.mutate import json_bytes, mutated_bytes


def _exported(folder: Path) -> dict[str, bytes]:
    """The files of an exported folder, by name."""
    run = RunFolder(Path(__file__).parents[1] / "runner" / "earlier_run")
    export(run, folder / "exported", license="mit")
    return {path.name: path.read_bytes() for path in (folder / "exported").iterdir()}


def _read_card(original: dict[str, bytes], random: Random, folder: Path) -> None:
    given = folder / GIVEN / "exported"
    given.mkdir()
    for name, content in original.items():
        is_card = name == CARD
        (given / name).write_bytes(json_bytes(random, json.loads(content)) if is_card else content)
    check_exported(given)
    RunFolder(given).fingerprint()
    zoo.load(given, device="cpu")


def _read_zip(original: dict[str, bytes], random: Random, folder: Path) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, held in original.items():
            entry = _entry(random, name) if random.random() < 0.15 else zipfile.ZipInfo(name)
            entry.compress_type = archive.compression
            if random.random() < 0.05:
                entry.external_attr = random.choice((0o120777, 0o040755, 0o010644, 0o060644)) << 16
            archive.writestr(entry, bytes(random.choice((10**6, 50 * 10**6))) if random.random() < 0.02 else held)
        for _ in range(random.choice((0, 0, 0, 1, 500))):
            archive.writestr(_entry(random, f"extra{random.random()}"), b"x")
    path = folder / GIVEN / "a.zip"
    data = content.getvalue()
    path.write_bytes(mutated_bytes(random, data) if random.random() < 0.7 else data)
    pull(str(path), folder / "pulled")


def _entry(random: Random, name: str) -> zipfile.ZipInfo:
    """An entry of another name, as `ZipInfo` itself would not let through."""
    outside = (
        "../x",
        "/etc/x",
        "a/../../x",
        "C:\\x",
        "a\\b",
        "CON",
        "x" * 3000,
        "\x1b[31m",
        "é",
        "./x",
        "a//b",
        " ",
        ".",
    )
    entry = zipfile.ZipInfo("x")
    entry.filename = random.choice((*outside, name.upper(), f"{name} ", f"sub/{name}", name))
    return entry


def _tensors(folder: Path) -> dict[str, Any]:
    recipe = folder / "tiny.yaml"
    recipe.write_text(TINY, encoding="utf-8")
    model = zoo.create(recipe)
    packed = io.BytesIO()
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, packed)
    old = io.BytesIO()
    torch.save(model.state_dict(), old, _use_new_zipfile_serialization=False)
    header = {"class_names": '["background", "left", "right"]', "network": "{}", "recipe": "tiny"}
    return {
        "model": model,
        "safetensors": save(model.state_dict(), header),
        "pt": packed.getvalue(),
        "old": old.getvalue(),
    }


def _read_safetensors(original: dict[str, Any], random: Random, folder: Path) -> None:
    content = original["safetensors"]
    if random.random() < 0.6:  # the header is JSON, and its length stands before it
        length = int.from_bytes(content[:8], "little")
        header = json_bytes(random, json.loads(content[8 : 8 + length]))
        told = len(header) if random.random() < 0.9 else random.choice((0, 1, 2**31, 2**63, 2**64 - 1))
        content = told.to_bytes(8, "little") + header + content[8 + length :]
    else:
        content = mutated_bytes(random, content)
    path = folder / GIVEN / "a.safetensors"
    path.write_bytes(content)
    zoo.load_weights(original["model"], path, strict=random.random() < 0.5)


def _read_torch(original: dict[str, Any], random: Random, folder: Path) -> None:
    path = folder / GIVEN / random.choice(("a.pt", "a.pth", "a.pth.tar", "a.bin"))
    path.write_bytes(mutated_bytes(random, original[random.choice(("pt", "pt", "old"))]))
    zoo.load_weights(original["model"], path, strict=random.random() < 0.5)


class _Server:
    """Answers every connection with the same bytes, whatever is asked."""

    def __init__(self) -> None:
        self.answer = b""
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self.socket.accept()
            try:
                with connection:
                    connection.settimeout(2)
                    connection.recv(65_536)
                    connection.sendall(self.answer)
            except OSError:
                continue


HEADERS = (
    *(b"Content-Length: 5", b"Content-Length: -5", "Content-Length: ²".encode(), b"Content-Length: " + b"9" * 5000),
    *(
        b"Content-Length: 5, 5",
        b"Content-Length: 5\r\nContent-Length: 7",
        b"Content-Range: bytes 0-4/5",
        b"X: " + b"y" * 70_000,
    ),
    *(
        b"Content-Range: bytes " + b"9" * 5000 + b"-1/2",
        b"Transfer-Encoding: chunked",
        b"Location: https://[::1",
        b"Location:",
    ),
    *(
        b"Location: http://[::1",
        b"Location: file:///etc/passwd",
        b"Location: \x1b[31m",
        b"Location: /again",
        b"Location: //",
    ),
    *(
        b"Location: http://example.org:99999/",
        b"Location: " + b"a" * 50_000,
        "Location: https://ü/".encode(),
        b"Content-Encoding: gzip",
    ),
    *(
        b"\r\n".join(b"A%d: b" % n for n in range(200)),
        b"no colon",
        b": nothing",
        b"\x00: \x00",
        b"Content-Type: text/html",
    ),
)
STATUS = (
    b"200 OK",
    b"206 Partial",
    b"302 Found",
    b"301 Moved",
    b"308 x",
    b"404 Not",
    b"416 x",
    b"500 \x1b[31mx",
    b"999",
    b"",
    b"-1 x",
    b"200" * 30_000,
)


def _read_http(original: _Server, random: Random, folder: Path) -> None:
    body = b"hello"
    lines = [b"HTTP/1.1 " + random.choice((STATUS[0],) * 12 + STATUS)]
    lines += [random.choice(HEADERS) for _ in range(random.choice((0, 1, 1, 2, 3)))]
    if any(b"chunked" in line for line in lines):
        body = random.choice(
            (b"5\r\nhello\r\n0\r\n\r\n", b"FFFFFFFFFFFF\r\nhello", b"-5\r\nhello", b"zz\r\n", b"5\r\nhel")
        )
    answer = b"\r\n".join(lines) + b"\r\n\r\n" + body
    original.answer = mutated_bytes(random, answer) if random.random() < 0.3 else answer
    size = random.choice((None, 5, 6))
    fetch(f"http://127.0.0.1:{original.port}/card.json", folder / "card.json", size=size, largest=1000)


def _published(folder: Path) -> Any:
    del folder
    return {"url": "ftp://x", "size": 5, "sha256": "0" * 64}


def _read_published(original: Any, random: Random, folder: Path) -> None:
    """The facts on a model's card about its weights; the address is none that is asked."""
    from maskmed_zoo import registry
    from maskmed_zoo.weights.published import published
    from tests.fuzz.mutate import mutated_tree

    facts = {"recipe": "x.yaml", "weights": mutated_tree(random, original)}
    card = Card("fuzzed", "model", "x", folder / GIVEN / "registry" / "models" / "fuzzed.yaml", facts)
    known = registry._REGISTRY.cards  # the one place where a card can be put without a package around it
    known["fuzzed"] = card
    try:
        published("fuzzed")
    finally:
        del known["fuzzed"]


WEIGHTS = (
    Target("card.json", 2000, _exported, _read_card),
    Target("zip", 2000, _exported, _read_zip),
    Target("safetensors", 2000, _tensors, _read_safetensors),
    Target("torch", 2000, _tensors, _read_torch),
    Target("http", 2000, lambda folder: _Server(), _read_http),
    Target("published", 2000, _published, _read_published),
)
