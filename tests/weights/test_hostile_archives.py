"""Zip files and cards that promise little and hold much, or are not what they say: nothing of it is written."""

from __future__ import annotations

import json
import shutil
import stat
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import maskmed_zoo as zoo
from maskmed_zoo.errors import CheckpointError, OutputError
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.weights import archive
from maskmed_zoo.weights.card import CARD, LARGEST_CARD, check_exported, read_card
from maskmed_zoo.weights.hub import pull
from tests.weights.conftest import one_line

Entries = list[tuple[str | zipfile.ZipInfo, bytes]]


def contents(exported: Path) -> Entries:
    return [(path.name, path.read_bytes()) for path in sorted(exported.iterdir())]


def write(path: Path, entries: Entries, kind: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as file:
        for name, content in entries:
            file.writestr(name, content)
    return path


def with_entry(name: str, content: bytes = b"x", **attributes: Any) -> Callable[[Entries, Path], None]:
    def change(entries: Entries, path: Path) -> None:
        info = zipfile.ZipInfo(name)
        for key, value in attributes.items():
            setattr(info, key, value)
        write(path, [*entries, (info, content)])

    return change


def bomb(entries: Entries, path: Path) -> None:
    """300 MB in 292 kB, of which the card knows nothing."""
    write(path, [*entries, ("other.bin", bytes(300 * 10**6))])


def bomb_by_card(entries: Entries, path: Path) -> None:
    """The card knows."""
    card = json.loads(dict((str(n), c) for n, c in entries)[CARD])  # noqa: C402
    card["files"]["README.md"]["size"] = 5 * 10**7
    kept = [(n, c) for n, c in entries if n not in (CARD, "README.md")]
    write(path, [*kept, (CARD, json.dumps(card).encode()), ("README.md", bytes(5 * 10**7))])


def overlapping(entries: Entries, path: Path) -> None:
    """The directory has an entry a thousand times."""
    write(path, entries)
    content = path.read_bytes()
    at = content.rfind(b"PK\5\6")
    start = struct.unpack("<I", content[at + 16 : at + 20])[0]
    directory = content[start:at] * 1000
    count = len(entries) * 1000
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, len(directory), start, 0)
    path.write_bytes(content[:start] + directory + end)


def million_entries(entries: Entries, path: Path) -> None:
    del entries
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 47 * 10**6, 0, 0)
    path.write_bytes(entry * 10**6 + end)


def lying_zip64(entries: Entries, path: Path) -> None:
    write(path, entries)
    content = path.read_bytes()
    at = content.rfind(b"PK\5\6")
    record = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 4, 4, 2**62, 0)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, at, 1)
    path.write_bytes(content[:at] + record + locator + content[at:])


def encrypted(entries: Entries, path: Path) -> None:
    write(path, entries)
    content = bytearray(path.read_bytes())
    content[content.find(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)


def another_size(entries: Entries, path: Path) -> None:
    write(path, [(name, content + b" " if name == "README.md" else content) for name, content in entries])


def no_card(entries: Entries, path: Path) -> None:
    write(path, [(name, content) for name, content in entries if name != CARD])


def large_card(entries: Entries, path: Path) -> None:
    large = [(name, content + b" " * LARGEST_CARD if name == CARD else content) for name, content in entries]
    write(path, large, zipfile.ZIP_STORED)


def lzma(entries: Entries, path: Path) -> None:
    write(path, entries, zipfile.ZIP_LZMA)


ARCHIVES: dict[str, tuple[Callable[[Entries, Path], None], str]] = {
    "bomb": (bomb, "becomes 300000000 bytes"),
    "bomb by its card": (bomb_by_card, "becomes 50000000 bytes"),
    "overlapping": (overlapping, "more than 16"),
    "a million entries": (million_entries, "its directory has 47000000 bytes"),
    "lying zip64": (lying_zip64, "its directory has 4611686018427387904 bytes"),
    "encrypted": (encrypted, "is encrypted"),
    "another size": (another_size, "card.json says"),
    "no card": (no_card, "holds no card.json"),
    "large card": (large_card, "unpacks to more than 1048576 bytes"),
    "packed otherwise": (lzma, "packed in an unusual way"),
    "one file more": (with_entry("run.py"), "holds README.md, recipe.yaml, run.py"),
    "case": (with_entry("CARD.JSON"), "a name twice"),
    "unicode": (with_entry("card\uff0ejson"), "a name twice"),
    "long name": (with_entry("n" * 60000), "is no plain name"),
    "absolute": (with_entry("/card.json"), "is no plain name"),
    "link": (with_entry("x", external_attr=(stat.S_IFLNK | 0o777) << 16), "is a link"),
    "device": (with_entry("x", external_attr=(stat.S_IFCHR | 0o777) << 16), "no plain file"),
    "folder": (with_entry("recipe.yaml/x"), "holds README.md"),
    "many": (lambda e, p: write(p, [*e, *((f"f{i}", b"") for i in range(20))]) and None, "24 entries, more than 16"),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_archives(kind: str, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change, message = ARCHIVES[kind]
    path, out = tmp_path / "m.zip", tmp_path / "in" / "out"
    change(contents(exported), path)
    written: list[str] = []
    extract = archive._extract  # pyright: ignore[reportPrivateUsage]

    def watched(file: Any, entry: Any, *words: Any) -> int:
        written.append(entry.filename)
        return extract(file, entry, *words)

    monkeypatch.setattr(archive, "_extract", watched)
    began = time.process_time()
    assert message in one_line(pull, str(path), out)
    assert time.process_time() - began < 2
    assert set(written) <= {CARD}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["exported", "m.zip", "tiny.yaml"]


def test_a_name_cut_off_by_a_zero(exported: Path, tmp_path: Path) -> None:
    """zipfile shows 'x' for 'x\\0y'."""
    path = write(tmp_path / "m.zip", [*contents(exported), ("xQy", b"")])
    path.write_bytes(path.read_bytes().replace(b"xQy", b"x\0y"))
    assert r"the name 'x\x00y'" in one_line(pull, str(path), tmp_path / "out")


def test_a_whole_archive_is_unpacked(exported: Path, tmp_path: Path) -> None:
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        pull(str(write(tmp_path / "m.zip", contents(exported), kind)), tmp_path / "out")
        assert check_exported(tmp_path / "out")["name"] == "tiny"


CARDS: dict[str, Any] = {
    "null": b"null", "list": b"[]", "text": b'"x"', "number": b"1", "nothing": b"", "half": b'{"format": 1, "na',
    "not UTF-8": b'{"format": 1, "name": "\xff"}', "twice": b'{"format": 1, "format": 1}', "NaN": b'{"format": NaN}',
    "nested": b'{"format": 1, "x": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", "huge": b'{"format": ' + b"9" * 5000 + b"}",
    "deep": b'{"format": 1, "x": ' + b"[" * 70 + b"]" * 70 + b"}",
}  # fmt: skip
VALUES: list[Any] = [None, True, -1, 1.5, 10**300, "", "x", "a\nb", "\0", [], {}, [[]], {"a": 1}, "../x", 2**70]
KEYS = ("format", "name", "license", "files")


@pytest.mark.parametrize("kind", CARDS)
def test_cards_that_are_none(kind: str, tmp_path: Path) -> None:
    (tmp_path / CARD).write_bytes(CARDS[kind])
    assert "not a card of exported weights" in one_line(read_card, tmp_path / CARD)
    assert "not a card of exported weights" in one_line(zoo.load, tmp_path) or "no run here" in one_line(
        zoo.load, tmp_path
    )


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_values_of_other_kinds(value: Any, exported: Path) -> None:
    """Whatever stands where something else should: refused in one line, or of no consequence."""
    card = json.loads((exported / CARD).read_text())
    for change in (
        *(lambda c, key=key: c.update({key: value}) for key in KEYS),
        lambda c: c["files"].update({"recipe.yaml": value}),
        lambda c: c["files"]["recipe.yaml"].update(size=value),
        lambda c: c["files"]["recipe.yaml"].update(sha256=value),
    ):
        changed = json.loads(json.dumps(card))
        change(changed)
        (exported / CARD).write_text(json.dumps(changed))
        harmless = isinstance(value, str) and changed["files"] == card["files"] and changed["format"] == 1
        harmless = (
            (harmless and value.isprintable()) or changed == card or (value is True and changed["format"] is True)
        )
        if harmless:
            check_exported(exported)
        else:
            one_line(check_exported, exported)


@pytest.mark.parametrize("value", [*VALUES, [1], ["x"], [{"mean": 1}], [{"mean": 10**400} | dict.fromkeys(
    ("std", "percentile_00_5", "percentile_99_5"), 1)], [dict.fromkeys(
    ("mean", "std", "percentile_00_5", "percentile_99_5"), "inf")]], ids=lambda v: repr(v)[:20])  # fmt: skip
def test_fingerprints_of_other_kinds(value: Any, exported: Path) -> None:
    card = json.loads((exported / CARD).read_text()) | {"fingerprint": value}
    (exported / CARD).write_text(json.dumps(card))
    if value in (None, "", [], {}):
        assert RunFolder(exported).fingerprint() == ()
    else:
        assert "fingerprint" in one_line(RunFolder(exported).fingerprint)


@pytest.mark.parametrize("name", ["nul\0byte", "n" * 255, "x/" * 3000])
def test_names_that_nothing_can_have(name: str, exported: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "m.zip", contents(exported))
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(OutputError):
        pull(str(path), tmp_path / name)
    with pytest.raises(CheckpointError):
        pull(f"{name}.zip", tmp_path / "out")
    for source in (name, f"{tmp_path}/{name}"):
        one_line(check_exported, Path(source))
    assert sorted(p.name for p in tmp_path.iterdir()) == before
