"""Weight files that lie about what they are, how much they hold, or how deep: one line, soon, in bounded memory."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import maskmed_zoo as zoo
from maskmed_zoo.errors import CheckpointError, ZooError
from maskmed_zoo.weights import pickle_scan
from maskmed_zoo.weights.files import LARGEST_HEADER, MOST_TENSORS, read_state
from maskmed_zoo.weights.pickle_scan import LARGEST_PICKLE, scan
from tests.weights.test_files import TENSORS, refusal

ENTRY = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}


def safetensors(path: Path, header: Any, body: bytes = bytes(16)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


def torch_zip(path: Path, content: bytes, *more: tuple[str, bytes]) -> Path:
    """A torch checkpoint whose pickle is `content`."""
    with zipfile.ZipFile(path, "w") as file:
        for name, value in (("w/data.pkl", content), ("w/version", b"3\n"), ("w/byteorder", b"little"), *more):
            file.writestr(name, value)
    return path


def quickly(path: Path) -> str:
    began = time.process_time()
    message = refusal(path)
    assert time.process_time() - began < 4
    return message


@pytest.mark.parametrize("name", ["w.pth.tar", "w", "w.safetensors", "w.pt", "w.bin", "w.txt"])
def test_the_content_says_what_a_file_is(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    for write in (
        lambda: torch.save({"state_dict": TENSORS}, path),
        lambda: torch.save(TENSORS, path, _use_new_zipfile_serialization=False),
        lambda: save_file(TENSORS, path),
    ):
        write()
        state = read_state(path)
        assert {n: t.tolist() for n, t in state.tensors.items()} == {n: t.tolist() for n, t in TENSORS.items()}


OTHERS: dict[str, tuple[bytes, str]] = {
    "text": (b"hello, this is no file of weights\n", "begins like neither"),
    "page": (b"<!DOCTYPE html><title>404</title>", "is a page of HTML"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", "only says where Git LFS keeps"),
    "NIfTI": (struct.pack("<i", 348) + bytes(344) + b"n+1\0", "begins like neither"),
    "NIfTI, packed": (gzip.compress(bytes(348)), "is compressed by gzip"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(50), "is HDF5"),
    "nothing": (b"", "begins like"),
    "JSON": (b'{"a": 1}', "begins like neither"),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "w"])
def test_other_files(kind: str, name: str, tmp_path: Path) -> None:
    content, message = OTHERS[kind]
    (tmp_path / name).write_bytes(content)
    said = refusal(tmp_path / name)
    assert message in said or "does not begin like one" in said


def test_a_zip_that_is_no_checkpoint(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as file:
        file.writestr("card.json", "{}")
    assert "'maskmed-zoo pull' unpacks" in refusal(tmp_path / "w.pt")


HEADERS: dict[str, tuple[Any, bytes]] = {
    "too many": ({f"t{i}": EMPTY for i in range(MOST_TENSORS + 1)}, b""),
    "too large": (b"{" + b" " * LARGEST_HEADER + b"}", b""),
    "nested": (b'{"a":' + b"[" * 10**5 + b"]" * 10**5 + b"}", b""),
    "twice": (b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"a":{"dtype":"F32","shape":[4],'
              b'"data_offsets":[0,16]}}', bytes(16)),
    "huge number": (b'{"a":{"dtype":"F32","shape":[' + b"9" * 10**4 + b'],"data_offsets":[0,16]}}', bytes(16)),
    "shape lies": ({"a": ENTRY | {"shape": [10**9, 10**9]}}, bytes(16)),
    "offsets lie": ({"a": ENTRY | {"data_offsets": [0, 2**63]}}, bytes(16)),
    "overlap": ({"a": ENTRY, "b": ENTRY}, bytes(16)),
    "reversed": ({"a": ENTRY | {"data_offsets": [16, 0]}}, bytes(16)),
    "gap": ({"a": ENTRY, "b": ENTRY | {"data_offsets": [32, 48]}}, bytes(48)),
    "no dtype": ({"a": ENTRY | {"dtype": "F1"}}, bytes(16)),
    "list": ([ENTRY], bytes(16)),
    "not UTF-8": (b'{"\xff\xfe":1}', b""),
    "NaN": (b'{"a": NaN}', b""),
    "metadata": ({"__metadata__": {"class_names": ["a"]}, "a": ENTRY}, bytes(16)),
    "name": ({"a" * 2000: ENTRY}, bytes(16)),
    "name of two lines": ({"a\nb": ENTRY}, bytes(16)),
}  # fmt: skip


@pytest.mark.parametrize("kind", HEADERS)
def test_headers_of_safetensors(kind: str, tmp_path: Path) -> None:
    quickly(safetensors(tmp_path / "w.safetensors", *HEADERS[kind]))


@pytest.mark.parametrize(
    "text", ["{}", "[", "[" * 10**5, "[1, 2]", '"a"', "9" * 5000, '["a\\nb", "c"]', "null", '{"a": "b"}']
)
def test_class_names_that_are_none(text: str, tiny_recipe: Path, tmp_path: Path) -> None:
    model = zoo.create(tiny_recipe)
    save_file(model.state_dict(), tmp_path / "w", {"class_names": text})
    assert read_state(tmp_path / "w").class_names is None
    assert zoo.load_weights(model, tmp_path / "w").share == 1


TUPLES = b"\x80\x02}(" + b")" + b"\x85" * 10**6 + b"K\x01u."
PICKLES: dict[str, bytes] = {
    "a key of tuples in one another": TUPLES,  # hashing it ends the process
    "lists in one another": b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
    "a byte array of 64 GiB": b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x10\x85R.",
    "an integer that has no text": b"\x80\x02}\x8b"
    + (2 * 10**4).to_bytes(4, "little")
    + b"\x7f" * (2 * 10**4)
    + b"K\x01s.",
    "a length beyond the file": b"\x80\x02\x8b\xff\xff\xff\x7f\x01.",
    "a string of 2^62": b"\x80\x04\x8d" + (2**62).to_bytes(8, "little") + b"x.",
    "protocol 0": b"(" + b"(" * 10**5 + b"t" * 10**5 + b"t.",
    "nothing on the stack": b"\x80\x02" + b"0" * 50 + b".",
    "no end": b"\x80\x02}",
    "empty": b"",
    "a name that is a number": pickle.dumps({1: 2}),
}


@pytest.mark.parametrize("kind", PICKLES)
def test_pickles(kind: str, tmp_path: Path) -> None:
    quickly(torch_zip(tmp_path / "w.pt", PICKLES[kind]))
    (tmp_path / "w").write_bytes(PICKLES[kind])
    quickly(tmp_path / "w")


def test_pickles_of_many_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these bytes makes a list, of 56 bytes."""
    monkeypatch.setattr(pickle_scan, "MOST_OPERATIONS", 1000)
    for content in (b"\x80\x02(" + b"]" * 2000 + b"l.", b"\x80\x02(" + b"]" * 900 + b"l." + b"\x80\x02]" + b"0]" * 900):
        with pytest.raises(ValueError, match="more than 1000 steps"):
            scan(content, pickles=2)
    assert "more than 1000 steps" in refusal(torch_zip(tmp_path / "w.pt", b"\x80\x02(" + b"]" * 2000 + b"l."))


def test_real_pickles_are_far_within_the_limits() -> None:
    """One of nnU-Net's size: two thousand tensors, their optimizer, a log and a plan."""
    tensors = {f"encoder.stages.{i}.0.convs.0.conv.weight": torch.zeros(1) for i in range(2000)}
    plan: dict[str, Any] = {"a": {"b": [{"c": (1, [2, {"d": ["x"] * 1000}])}]}}
    buffer = io.BytesIO()
    torch.save({"network_weights": tensors, "optimizer": {"state": tensors}, "init_args": plan}, buffer)
    with zipfile.ZipFile(buffer) as file:
        content = file.read("archive/data.pkl")
    assert len(content) < LARGEST_PICKLE / 8
    scan(content)


def spread(path: Path) -> None:
    """A megabyte, a thousand times."""
    whole = torch.zeros(2**18)
    torch.save({f"t{i}": whole.view(2**18) for i in range(1000)}, path)


def numbers_for_names(path: Path) -> None:
    torch.save({1: torch.zeros(2), 2: torch.zeros(2)}, path)


def too_many_entries(path: Path) -> None:
    """A directory alone: every entry lies in the same place."""
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    directory = entry * 10**6
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, len(directory), 0, 0)
    path.write_bytes(b"PK\3\4" + bytes(26) + directory + end)


def in_one_another(path: Path) -> None:
    """Every entry has the whole file."""
    torch_zip(path, pickle.dumps({}), *((f"w/data/{i}", bytes(1000)) for i in range(50)))
    content = path.read_bytes()
    size = struct.pack("<2I", 1000, 1000)
    path.write_bytes(content.replace(size, struct.pack("<2I", 10**6, 10**6)))


def script(path: Path) -> None:
    torch_zip(path, pickle.dumps({}), ("w/constants.pkl", b"x"))


def two_pickles(path: Path) -> None:
    torch_zip(path, pickle.dumps({}), ("v/data.pkl", TUPLES))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (spread, "share their numbers more than 8 times"),
        (numbers_for_names, "tensors have numbers for names"),
        (too_many_entries, "its directory has 47000000 bytes"),
        (in_one_another, "lie in one another"),
        (script, "would run code when read"),
        (two_pickles, "or twice in it"),
    ],
)
def test_torch_files(write: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    write(tmp_path / "w.pt")
    assert message in quickly(tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["nul\0byte", "n" * 300, "x/" * 3000, "x.pt/y", "."])
def test_paths_that_nothing_can_have(name: str, tiny_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"")
    model = zoo.create(tiny_recipe)
    for path in (name, f"{tmp_path}/{name}"):
        for call in (
            lambda path=path: zoo.load_weights(model, path),
            lambda path=path: zoo.create(tiny_recipe, pretrained=path),
            lambda path=path: zoo.load(path),
            lambda path=path: zoo.load(path, weights="best"),
        ):
            with pytest.raises(ZooError) as caught:
                call()
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("state", [{}, {"a": 1}, {"a": [torch.zeros(1)]}, {1: torch.zeros(1)}, {"model": {}}])
def test_state_dicts_that_are_none(state: dict[Any, Any], tiny_recipe: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^the state dict: "):
        zoo.load_weights(zoo.create(tiny_recipe), state)
