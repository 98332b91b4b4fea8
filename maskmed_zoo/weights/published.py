"""Published weights of a model: where its card says they are, kept in a cache of the user."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from maskmed_zoo import registry
from maskmed_zoo.errors import OutputError, RegistryError
from maskmed_zoo.files import cache_folder, make_folder, unwritable
from maskmed_zoo.lock import alone_in
from maskmed_zoo.weights.card import SHA256
from maskmed_zoo.weights.download import fetch
from maskmed_zoo.weights.files import LARGEST


def published(name: str) -> Path:
    """The file of a model's published weights, downloaded on first use and checked on every one.

    Processes that want the same file at once wait for one another. Raises `RegistryError` if the model's card names
    none, or not with address, size and sha256; `CheckpointError` if they cannot be had; `OutputError` if the cache
    cannot be written.
    """
    facts: Any = registry.card(name, "model").facts.get("weights")
    if facts is None:
        raise RegistryError(f"no weights are published for '{name}'; give a file or folder: pretrained='…'")
    given = cast(dict[str, Any], facts) if isinstance(facts, dict) else {}
    url, size, sha256 = given.get("url"), given.get("size"), given.get("sha256")
    if (
        not isinstance(url, str)
        or type(size) is not int
        or not 0 < size <= LARGEST
        or not SHA256.fullmatch(str(sha256))
    ):
        raise RegistryError(
            f"card of '{name}': 'weights' needs url, size and sha256: an address, bytes up to {LARGEST}, and 64 "
            f"hexadecimal digits"
        )
    try:
        folder = cache_folder() / str(sha256)[:16]
    except RuntimeError as error:
        raise OutputError(f"no home folder to keep downloads in ({error}); give a file: pretrained='…'") from error
    make_folder(folder)
    try:
        with alone_in(folder):
            return fetch(url, folder / f"{name}.safetensors", size=size, sha256=str(sha256))
    except OSError as error:
        raise unwritable(folder, error) from error
