"""Read tensors from files of others without running anything in them.

Idea: safetensors holds numbers only. A file of torch is a pickle, which can hold a program; torch's restricted
unpickler reads it, with plain numpy numbers allowed beside tensors, because nnU-Net's checkpoints log with them. What
needs more is refused: convert it to safetensors where it is trusted. Which of the two a file is, is seen from how it
begins and not from its name, and what it says of itself is checked before anything is made of it.
"""

from __future__ import annotations

import argparse
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from maskmed_zoo.errors import CheckpointError, first_line
from maskmed_zoo.files import is_file, parse_json
from maskmed_zoo.labels import is_visible
from maskmed_zoo.weights.pickle_scan import LARGEST_PICKLE, scan
from maskmed_zoo.weights.zip_directory import opened

LARGEST = 20 * 2**30
"""Bytes that a file of weights, or all files of an archive together, may have, whatever their card says."""
LARGEST_HEADER = 8 * 2**20
"""Bytes of a safetensors header: some two hundred for each tensor."""
MOST_TENSORS = 50_000
"""Tensors of a file; networks have some thousands."""
MOST_SHARED = 8
"""How many times the numbers of a file its tensors may have together; nnU-Net stores every layer four times."""
LONGEST_NAME = 1000
"""Characters of a tensor's name."""
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".tar")
"""How names of torch's files end, by which one is told that is too short to begin like one."""
CONTAINERS = ("network_weights", "state_dict", "model_state_dict", "model", "network", "net", "module")
"""Keys under which training frameworks keep the weights in a checkpoint."""
OTHERS = {
    b"\x1f\x8b": "is compressed by gzip, as images (.nii.gz) are",
    b"\x89HDF": "is HDF5, as Keras has it",
    b"version https://git-lfs": "only says where Git LFS keeps the weights; get the file itself",
    b"<": "is a page of HTML or XML; get the file itself",
}
"""How files begin that are taken for weights, and what they are."""
_ZIP = b"PK"
_TORCH = (_ZIP, b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_PLAIN: list[Any] = [
    np.float64(0).__reduce__()[0],
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),  # its name before numpy 2
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "?")),
    argparse.Namespace,  # in which timm keeps the arguments of a training
]


@dataclass(frozen=True)
class State:
    """Tensors by name, and the text that a safetensors header holds beside them, or that stood beside the file."""

    tensors: dict[str, Tensor]
    header: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Labels that the weights were trained for, where the file says so."""
        return _names(self._said("class_names"))

    @property
    def channel_names(self) -> tuple[str, ...] | None:
        """Channels that they were trained on, likewise: by themselves, or with the network that they are of."""
        network: Any = self._said("network")
        data: Any = network.get("data") if isinstance(network, dict) else None
        said: Any = data.get("channels") if isinstance(data, dict) else None
        return _names(said) or _names(self._said("channel_names"))

    def _said(self, key: str) -> Any:
        try:
            return parse_json(self.header.get(key, "null"), key, error=CheckpointError)
        except CheckpointError:
            return None


def _names(content: Any) -> tuple[str, ...] | None:
    """Names that can be read; None for anything else."""
    is_known = isinstance(content, list) and all(
        isinstance(name, str) and is_visible(name) for name in cast(list[Any], content)
    )
    return tuple(cast(list[str], content)) if is_known else None


def read_state(path: Path) -> State:
    """The tensors of a safetensors file, or of a torch checkpoint that holds nothing but data.

    Raises `CheckpointError` for a file that is missing, broken, of another kind, or that would run code.
    """
    begin = _beginning(path)
    if begin[8:9] == b"{" and int.from_bytes(begin[:8], "little") <= path.stat().st_size:
        state = read_safetensors(path)
    elif begin[:2] in _TORCH:
        state = state_of(read_torch(path), str(path))
    elif other := next((what for sign, what in OTHERS.items() if begin.startswith(sign)), None):
        raise CheckpointError(f"{path}: no file of weights: it {other}; give a safetensors file or a torch checkpoint")
    elif path.suffix in PICKLES:
        raise CheckpointError(f"{path}: not a whole torch checkpoint: it does not begin like one; copy it again")
    else:
        raise CheckpointError(
            f"{path}: not a whole safetensors file, nor a torch checkpoint: it begins like neither; copy it again"
        )
    check_tensors(state.tensors, path)
    return state


def state_of(content: Any, place: str) -> State:
    """The tensors of a state dict, or of what training frameworks save with one in it; raises `CheckpointError`."""
    for _ in range(3):
        held = [content.get(key) for key in CONTAINERS] if isinstance(content, Mapping) else []
        content = next((each for each in held if isinstance(each, Mapping)), content)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{place}: holds a {type(content).__name__}, expected a state dict")
    tensors = {name: v for name, v in cast(Mapping[Any, Any], content).items() if isinstance(v, Tensor)}
    if not tensors:
        raise CheckpointError(f"{place}: no tensors; expected a state dict, alone or under {', '.join(CONTAINERS)}")
    if not all(isinstance(name, str) for name in tensors):
        raise CheckpointError(f"{place}: tensors have numbers for names, expected a state dict")
    return State(tensors)


def read_safetensors(path: Path) -> State:
    """The tensors of a safetensors file and the text in its header; raises `CheckpointError`."""
    try:
        _check_header(path)
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
            return State(tensors, file.metadata() or {})
    except Exception as error:  # whatever the library makes of a hostile file
        raise CheckpointError(f"{path}: not a whole safetensors file ({first_line(error)}); copy it again") from error


def read_torch(path: Path) -> Any:
    """All that a torch checkpoint holds, tensors and plain values, which are yet to be checked; `CheckpointError`."""
    is_zip = _beginning(path)[:2] == _ZIP
    try:
        if is_zip:
            _check_zip(path)
        with path.open("rb") as file, torch.serialization.safe_globals(_PLAIN), warnings.catch_warnings():
            if not is_zip:
                scan(file.read(LARGEST_PICKLE), pickles=5)
                file.seek(0)
            warnings.simplefilter("ignore")  # on the pickle protocol
            return torch.load(file, map_location="cpu", weights_only=True)  # of a path, it would go by the ending
    except CheckpointError:
        raise
    except Exception as error:  # the unpickler raises whatever a hostile file makes it raise
        if any(word in str(error) for word in ("GLOBAL", "nsupported", "TorchScript")):
            raise CheckpointError(
                f"{path}: holds more than tensors and would run code when read; if you trust its source, save its "
                f"state dict with safetensors there"
            ) from error
        raise CheckpointError(f"{path}: not a whole torch checkpoint ({first_line(error)}); copy it again") from error


def check_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise `CheckpointError` for tensors that are not plain, not finite, or more than the file can hold."""
    if len(tensors) > MOST_TENSORS:
        raise CheckpointError(f"{path}: has {len(tensors)} tensors, more than {MOST_TENSORS}; refused")
    if any(len(name) > LONGEST_NAME or not name.isprintable() for name in tensors):
        raise CheckpointError(f"{path}: has tensors whose names are no names, or too long for one; refused")
    for name, tensor in tensors.items():
        if not _is_plain(tensor):
            raise CheckpointError(
                f"{path}: '{name}' is no plain dense tensor with all its numbers in the file; refused"
            )
    if sum(t.numel() * t.itemsize for t in tensors.values()) > MOST_SHARED * path.stat().st_size:
        raise CheckpointError(f"{path}: its tensors share their numbers more than {MOST_SHARED} times; refused")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not (tensor if tensor.itemsize > 1 else tensor.float()).isfinite().all():
            raise CheckpointError(f"{path}: '{name}' holds NaN or infinity; these weights cannot be used")


def _beginning(path: Path) -> bytes:
    if not is_file(path):
        raise CheckpointError(f"{path}: no such file; give a .safetensors, .pt or .pth file, or an exported folder")
    try:
        with path.open("rb") as file:
            return file.read(32)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check the rights") from error


def _is_plain(tensor: Tensor) -> bool:
    """Dense, on the CPU, not quantised, and not a few stored numbers spread over a shape that fills the memory."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        return False
    return tensor.numel() * tensor.itemsize <= tensor.untyped_storage().nbytes()


def _check_header(path: Path) -> None:
    """Size and JSON of the header; that its offsets are those of the shapes, and in the file, is the library's."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > min(LARGEST_HEADER, path.stat().st_size):
            raise ValueError(f"a header of {size} bytes, more than the file or {LARGEST_HEADER}")
        header = parse_json(file.read(size).decode("utf-8"), "its header", error=CheckpointError)
    if not isinstance(header, dict) or len(cast(dict[str, Any], header)) > MOST_TENSORS:
        raise ValueError(f"its header is no mapping of at most {MOST_TENSORS} tensors")


def _check_zip(path: Path) -> None:
    """torch stores numbers as they are, each entry once; its pickle is small."""
    with opened(path, most=MOST_TENSORS) as file:
        entries = file.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise CheckpointError(f"{path}: is compressed, which torch's checkpoints are not; refused")
        pickles = [entry for entry in entries if entry.filename.rsplit("/", 1)[-1] == "data.pkl"]
        if not pickles:
            raise CheckpointError(f"{path}: a zip file, but no torch checkpoint; 'maskmed-zoo pull' unpacks weights")
        if sum(entry.file_size for entry in entries) > path.stat().st_size or len(pickles) > 1:
            raise CheckpointError(f"{path}: its entries lie in one another, or twice in it; refused")
        if pickles[0].file_size > LARGEST_PICKLE:
            raise ValueError(f"its pickle has {pickles[0].file_size} bytes, more than {LARGEST_PICKLE}")
        scan(file.read(pickles[0]))
