"""Read tensors from files of others without running anything in them.

Idea: safetensors holds numbers only. A `.pt`, `.pth` or `.bin` file is a pickle, which can hold a program; torch's
restricted unpickler reads it, with plain numpy numbers allowed beside tensors, because nnU-Net's checkpoints log with
them. What needs more is refused: convert it to safetensors where it is trusted.
"""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from maskmed_zoo.errors import CheckpointError, first_line

LARGEST = 20 * 2**30
"""Bytes that a file of weights, or all files of an archive together, may have, whatever their card says."""
PICKLES = (".pt", ".pth", ".bin", ".ckpt")
CONTAINERS = ("network_weights", "state_dict", "model_state_dict", "model")
"""Keys under which training frameworks keep the weights in a checkpoint."""
_NUMPY: list[Any] = [
    np.float64(0).__reduce__()[0],
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),  # its name before numpy 2
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "?")),
]


@dataclass(frozen=True)
class State:
    """Tensors by name, and the text that a safetensors header holds beside them."""

    tensors: dict[str, Tensor]
    header: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Labels that the weights were trained for, where the file says so."""
        try:
            names = json.loads(self.header.get("class_names", "null"))
        except ValueError:
            return None
        return tuple(map(str, cast(list[Any], names))) if isinstance(names, list) else None


def read_state(path: Path) -> State:
    """The tensors of a `.safetensors` file, or of a torch checkpoint that holds nothing but data.

    Raises `CheckpointError` for a file that is missing, broken, of another kind, or that would run code.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give a .safetensors, .pt or .pth file, or an exported folder")
    state = _read_pickle(path) if path.suffix in PICKLES else _read_safetensors(path)
    for name, tensor in state.tensors.items():
        if not _is_plain(tensor):
            raise CheckpointError(
                f"{path}: '{name}' is no plain dense tensor with all its numbers in the file; refused"
            )
        if tensor.is_floating_point() and not (tensor if tensor.itemsize > 1 else tensor.float()).isfinite().all():
            raise CheckpointError(f"{path}: '{name}' holds NaN or infinity; these weights cannot be used")
    return state


def _is_plain(tensor: Tensor) -> bool:
    """Dense, on the CPU, not quantised, and not a few stored numbers spread over a shape that fills the memory."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        return False
    return tensor.numel() * tensor.itemsize <= tensor.untyped_storage().nbytes()


def _read_safetensors(path: Path) -> State:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
            return State(tensors, file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({first_line(error)}); copy it again") from error


def _read_pickle(path: Path) -> State:
    _check_stored(path)
    try:
        with torch.serialization.safe_globals(_NUMPY), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on the pickle protocol
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever a hostile file makes it raise
        if "GLOBAL" in str(error) or "nsupported" in str(error):
            raise CheckpointError(
                f"{path}: holds more than tensors and would run code when read; if you trust its source, save its "
                f"state dict with safetensors there"
            ) from error
        raise CheckpointError(f"{path}: not a whole torch checkpoint ({first_line(error)}); copy it again") from error
    for key in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, expected a state dict")
    tensors = {str(name): value for name, value in cast(Mapping[Any, Any], content).items() if torch.is_tensor(value)}
    if not tensors:
        raise CheckpointError(f"{path}: no tensors; expected a state dict, alone or under {', '.join(CONTAINERS)}")
    return State(tensors)


def _check_stored(path: Path) -> None:
    """torch stores numbers as they are; a compressed entry could unpack to any size."""
    try:
        with zipfile.ZipFile(path) as file:
            is_packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in file.infolist())
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return  # no zip file, or a broken one: torch's to tell
    if is_packed:
        raise CheckpointError(f"{path}: is compressed, which torch's checkpoints are not; refused")
