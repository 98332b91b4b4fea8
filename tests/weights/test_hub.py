"""Exported folders from addresses, zip files and a stand-in for the hub: checked, or refused with nothing left."""

from __future__ import annotations

import inspect
import json
import shutil
import stat
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import maskmed_zoo as zoo
from maskmed_zoo.weights import archive
from maskmed_zoo.weights.archive import unpack
from maskmed_zoo.weights.card import CARD, FileFacts, check_exported, safe_name
from maskmed_zoo.weights.hub import pull, push
from tests.weights.conftest import Server, one_line

EVIL = ["../x", "/etc/x", "a/../../x", "a\\..\\x", "C:x", "", ".", "a//b", "./a", "a\0b", "a\nb", "~/../x", "a/./b"]


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    card = json.loads((folder / CARD).read_text())
    change(card)
    (folder / CARD).write_text(json.dumps(card))


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def link(folder: Path) -> None:
    shutil.move(folder / "recipe.yaml", folder.parent / "elsewhere.yaml")
    (folder / "recipe.yaml").symlink_to(folder.parent / "elsewhere.yaml")


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "wrong hash": (lambda f: damage(f / "weights.safetensors"), "sha256 is not"),
    "wrong size": (lambda f: (f / "weights.safetensors").write_bytes(b"x"), "bytes"),
    "file missing": (lambda f: (f / "recipe.yaml").unlink(), "recipe.yaml"),
    "name leads out": (lambda f: edit(f, lambda c: c["files"].update({"../x": {"size": 1, "sha256": ""}})), "'../x'"),
    "another name": (lambda f: edit(f, lambda c: c["files"].update({"run.py": {"size": 1, "sha256": ""}})), "run.py"),
    "no weights": (lambda f: edit(f, lambda c: c["files"].pop("weights.safetensors")), "expected"),
    "another format": (lambda f: edit(f, lambda c: c.update(format=2)), "'format' is not 1"),
    "no JSON": (lambda f: (f / CARD).write_text("{"), "not a card"),
    "files no mapping": (lambda f: edit(f, lambda c: c.update(files=["x"])), "not a card"),
    "size no number": (lambda f: edit(f, lambda c: c["files"]["recipe.yaml"].update(size="x")), "not a card"),
    "size without end": (lambda f: edit(f, lambda c: c["files"]["recipe.yaml"].update(size=10**15)), "a size is not"),
    "infinite size": (lambda f: edit(f, lambda c: c["files"]["recipe.yaml"].update(size=float("inf"))), "not a card"),
    "nested too deep": (lambda f: (f / CARD).write_text("[" * 10**6), "not a card"),
    "no license": (lambda f: edit(f, lambda c: c.pop("license")), "'license' is no line"),
    "name of control characters": (lambda f: edit(f, lambda c: c.update(name="a\x1b[2Jb")), "'name' is no line"),
    "huge card": (lambda f: (f / CARD).write_text(" " * (2**20 + 1)), "1"),
}


def served(server: Server, folder: Path) -> str:
    server.files = {f"/m/{path.name}": path.read_bytes() for path in folder.iterdir() if path.is_file()}
    return f"{server.url}/m/{CARD}"


def zipped(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for item in sorted(folder.iterdir()):
            file.write(item, item.name)
    return path


def test_a_folder_is_checked_when_it_is_loaded(exported: Path) -> None:
    model = zoo.create(exported / "recipe.yaml", pretrained=exported)
    assert model.num_classes == 3
    damage(exported / "weights.safetensors")
    assert "sha256 is not the card's" in one_line(zoo.create, exported / "recipe.yaml", pretrained=exported)


def test_an_old_card_is_read_and_reported_in_one_line(exported: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(exported, lambda card: card.update(licence=card.pop("license")))
    caplog.set_level("WARNING", "maskmed_zoo")
    assert check_exported(exported)["license"] == "CC0-1.0"
    zoo.create(exported / "recipe.yaml", pretrained=exported)
    assert caplog.messages == [f"{exported / CARD}: 'licence' is now 'license'; both are read, the new one is written"]


def test_pull_from_an_address_and_a_zip(exported: Path, server: Server, tmp_path: Path) -> None:
    address = served(server, exported)
    server.files["/m.zip"] = zipped(exported, tmp_path / "m.zip").read_bytes()
    for index, source in enumerate((address, f"{server.url}/m.zip", str(tmp_path / "m.zip"))):
        out = tmp_path / f"out{index}"
        assert pull(source, out)["license"] == "CC0-1.0"
        assert {p.name: p.read_bytes() for p in out.iterdir()} == {p.name: p.read_bytes() for p in exported.iterdir()}
        assert "exists already" in one_line(pull, source, out)
    assert not list(tmp_path.glob(".*"))


def test_an_interrupted_pull_goes_on(exported: Path, server: Server, tmp_path: Path) -> None:
    address, out = served(server, exported), tmp_path / "out"
    edit(exported, lambda card: None)
    pull(address, tmp_path / "first")
    server.asked.clear()
    wanted = list(json.loads(server.files[f"/m/{CARD}"])["files"])
    server.files["/m/slow"] = b""
    server.cut, server.cuts = 50, 0

    whole = server.answer

    def cut_weights(request: Any) -> None:
        server.cuts = 1 if request.path.endswith(".safetensors") and not request.headers.get("Range") else 0
        whole(request)

    server.answer = cut_weights  # type: ignore[method-assign]
    assert "run it again to resume" in one_line(pull, address, out)
    assert not out.exists()
    pull(address, out)
    assert check_exported(out)["name"] == "tiny"
    assert ("/m/weights.safetensors", "bytes=50-") in server.asked
    assert [path for path, _ in server.asked].count("/m/recipe.yaml") == 1  # whole the first time
    assert len(wanted) == 3
    assert not list(tmp_path.glob(".*"))


def test_what_the_user_says_of_the_source_is_heeded(exported: Path, server: Server, tmp_path: Path) -> None:
    address, archive_file, out = served(server, exported), zipped(exported, tmp_path / "m.zip"), tmp_path / "out"
    assert "sha256 is not" in one_line(pull, str(archive_file), out, sha256="0" * 64)
    assert "only a zip file" in one_line(pull, address, out, sha256="0" * 64)
    assert "only a hub repository" in one_line(pull, address, out, revision="main")
    assert not out.exists()
    pull(str(archive_file), out, sha256=FileFacts.of(archive_file).sha256.upper())


@pytest.mark.parametrize("name", SPOILED)
def test_spoiled_folders(name: str, exported: Path, server: Server, tmp_path: Path) -> None:
    spoil, message = SPOILED[name]
    spoil(exported)
    sources = [served(server, exported), str(zipped(exported, tmp_path / "m.zip"))]
    before = sorted(p.name for p in tmp_path.iterdir())
    assert message in one_line(check_exported, exported)
    for source in sources:
        one_line(pull, source, tmp_path / "out")
        assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_links_are_no_files(exported: Path) -> None:
    link(exported)
    assert "is a link" in one_line(check_exported, exported)


@pytest.mark.parametrize("name", EVIL)
def test_names_that_lead_out(name: str) -> None:
    assert "refused" in one_line(safe_name, name, "here")
    assert safe_name("a/b.txt", "here") == "a/b.txt"


@pytest.mark.parametrize(
    "name", ["../xxxxx", "/etc/xxx", "a/../../x", "a\\..\\xxx", "C:xxxxxx", "a/./xxxx", "a//xxxxx"]
)
def test_zip_entries_that_lead_out(name: str, tmp_path: Path) -> None:
    """The name is put into the finished file, because zipfile would not write all of them."""
    path = tmp_path / "in" / "m.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("good.txt", "x")
        file.writestr("r" * len(name), "evil")
    path.write_bytes(path.read_bytes().replace(b"r" * len(name), name.encode()))
    assert "refused" in one_line(unpack, path, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["in", "m.zip"]


def test_zip_files_that_are_not_plain(tmp_path: Path) -> None:
    path, out = tmp_path / "m.zip", tmp_path / "out"

    def write(*entries: tuple[str | zipfile.ZipInfo, bytes]) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in entries:
                file.writestr(name, content)

    symlink = zipfile.ZipInfo("link")
    symlink.external_attr = (stat.S_IFLNK | 0o777) << 16
    write((symlink, b"/etc"), ("a", b""))
    assert "'link' is a link" in one_line(unpack, path, out)
    write(("a", b"1"), ("A", b"2"))
    assert "a name twice" in one_line(unpack, path, out)
    write(("a", b"1"), ("a/b", b"2"))
    one_line(unpack, path, out)
    write(("bomb", bytes(10**6)))
    assert path.stat().st_size < 10**4
    assert "more than 1000 bytes" in one_line(unpack, path, out, largest=1000)
    path.write_bytes(path.read_bytes()[:-30])
    assert "not a whole zip" in one_line(unpack, path, out)
    assert not out.exists()
    write(("a/b", b"1"), ("c", b"2"))
    unpack(path, out)
    assert (out / "a" / "b").read_bytes() == b"1"


def test_a_zip_that_lies_about_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = tmp_path / "m.zip", tmp_path / "out"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb", bytes(10**6))
    monkeypatch.setattr(archive, "_check", lambda *words: None)  # as if the directory said one byte
    assert "more than 1000 bytes" in one_line(unpack, path, out, largest=1000)
    assert not out.exists()


def test_the_hub_by_a_stand_in(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")  # the stand-in takes what the library takes
    inspect.signature(hub.snapshot_download).bind("me/x", revision=None, local_dir="x", allow_patterns=["x"])
    inspect.signature(hub.HfApi.create_repo).bind(None, "me/x", private=True, exist_ok=True)
    inspect.signature(hub.HfApi.upload_folder).bind(None, repo_id="me/x", folder_path="x", allow_patterns=["x"])
    store: dict[str, dict[str, bytes]] = {}
    private: list[bool] = []

    class Api:
        def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> str:
            assert exist_ok
            privately(private)
            return f"https://hub/{name}"

        def upload_folder(self, *, repo_id: str, folder_path: str, allow_patterns: list[str]) -> None:
            files = [Path(folder_path) / name for name in allow_patterns]
            store[repo_id] = {file.name: file.read_bytes() for file in files if file.exists()}

    def privately(value: bool) -> None:
        private.append(value)

    def snapshot_download(name: str, *, revision: str | None, local_dir: str, allow_patterns: list[str]) -> None:
        if name not in store:
            raise RuntimeError("404\nsecond line")
        for file, content in store[name].items():
            assert file in allow_patterns
            (Path(local_dir) / ".cache").mkdir(parents=True, exist_ok=True)
            (Path(local_dir) / file).write_bytes(content)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=Api, snapshot_download=snapshot_download))
    (exported / "secret.txt").write_text("x")
    assert push(exported, "me/tiny") == "https://hub/me/tiny"
    assert private == [True]
    assert "secret.txt" not in store["me/tiny"]
    assert pull("hf:me/tiny", tmp_path / "out")["name"] == "tiny"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(store["me/tiny"])
    assert "404" in one_line(pull, "hf:me/none", tmp_path / "none")
    assert "OWNER/NAME" in one_line(pull, "hf:../../etc", tmp_path / "none")
    store["me/tiny"]["weights.safetensors"] += b"x"
    assert "bytes" in one_line(pull, "hf:me/tiny", tmp_path / "none")
    damage(exported / "weights.safetensors")
    assert "sha256" in one_line(push, exported, "me/other")
    assert "me/other" not in store
    assert not (tmp_path / "none").exists()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "maskmed-zoo[hub]" in one_line(pull, "hf:me/tiny", tmp_path / "none")
