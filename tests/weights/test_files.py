"""Weight files that would run code, are broken, or are no weights: one line, and nothing happens."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from maskmed_zoo.errors import CheckpointError
from maskmed_zoo.weights.files import read_state

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.zeros(2)}


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_state(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert len(message) < 600
    return message


def as_torch(path: Path, target: Path) -> None:
    torch.save(TENSORS | {"extra": Bomb(target)}, path)


def as_old_torch(path: Path, target: Path) -> None:
    torch.save(TENSORS | {"extra": Bomb(target)}, path, _use_new_zipfile_serialization=False)


def as_pickle(path: Path, target: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb(target)))


@pytest.mark.parametrize("write", [as_torch, as_old_torch, as_pickle])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".dat"])
def test_pickle_bombs_do_not_go_off(write: Callable[[Path, Path], None], suffix: str, tmp_path: Path) -> None:
    path, target = tmp_path / f"weights{suffix}", tmp_path / "gone_off"
    write(path, target)
    message = refusal(path)
    assert not target.exists()
    if suffix == ".pt":
        assert "would run code when read" in message
    with path.open("rb") as file:  # it is a bomb: where it is unpickled freely it goes off
        torch.load(file, weights_only=False) if write is not as_pickle else pickle.load(file)
    assert target.exists()


@pytest.mark.parametrize("key", [None, "network_weights", "state_dict", "model_state_dict", "model"])
def test_checkpoints_of_training_frameworks(key: str | None, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    content = TENSORS if key is None else {key: TENSORS, "best": np.float64(0.5), "log": [np.float32(1)], "epoch": 3}
    torch.save(content, path)
    state = read_state(path)
    assert {n: t.tolist() for n, t in state.tensors.items()} == {n: t.tolist() for n, t in TENSORS.items()}


@pytest.mark.parametrize("keep", [0, 7, 60, -3])
def test_truncated_files(keep: int, tmp_path: Path) -> None:
    safe, zipped = tmp_path / "weights.safetensors", tmp_path / "weights.pt"
    save_file(TENSORS, safe)
    torch.save(TENSORS, zipped)
    for path in (safe, zipped):
        path.write_bytes(path.read_bytes()[:keep])
    assert "not a whole safetensors file" in refusal(safe)
    assert "not a whole torch checkpoint" in refusal(zipped)


def test_a_header_that_lies(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    header = b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,9999999999]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    assert "not a whole safetensors file" in refusal(path)
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    assert "not a whole safetensors file" in refusal(path)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(10**12),
        torch.zeros(2, 1).expand(2, 3),
        torch.eye(3).to_sparse(),
        torch.empty(3, device="meta"),
    ],
    ids=["4 TB in 4 bytes", "expanded", "sparse", "meta"],
)
def test_tensors_that_are_not_what_they_seem(tensor: torch.Tensor, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"w": tensor}, path)
    assert "'w' is no plain dense tensor" in refusal(path)


def test_views_of_one_storage_are_plain(tmp_path: Path) -> None:
    path, whole = tmp_path / "weights.pt", torch.arange(6.0).view(2, 3)
    torch.save({"a": whole, "b": whole[1], "c": whole.T, "d": torch.empty(0, 3), "e": torch.tensor(1.0)}, path)
    state = read_state(path)
    assert [t.tolist() for t in state.tensors.values()] == [whole.tolist(), [3, 4, 5], whole.T.tolist(), [], 1.0]


def test_a_compressed_checkpoint(tmp_path: Path) -> None:
    stored, path = tmp_path / "stored.pt", tmp_path / "weights.pt"
    torch.save({"w": torch.zeros(10**6)}, stored)
    with zipfile.ZipFile(stored) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert path.stat().st_size < 10**5
    assert "is compressed" in refusal(path)


def test_what_is_no_weights(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "none.pt")
    path = tmp_path / "weights.pt"
    torch.save([1, 2], path)
    assert "holds a list" in refusal(path)
    torch.save({"epoch": 1}, path)
    assert "no tensors" in refusal(path)
    torch.save({"w": torch.tensor([1.0, float("nan")])}, path)
    assert "'w' holds NaN" in refusal(path)
