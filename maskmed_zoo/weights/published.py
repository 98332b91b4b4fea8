"""Published weights of a model: where its card says they are, kept in a cache of the user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from maskmed_zoo import registry
from maskmed_zoo.errors import RegistryError
from maskmed_zoo.files import cache_folder
from maskmed_zoo.weights.download import fetch


def published(name: str) -> Path:
    """The file of a model's published weights, downloaded on first use and checked on every one.

    Raises `RegistryError` if the model's card names none, or not with address, size and sha256; `CheckpointError` if
    they cannot be had.
    """
    facts: dict[str, Any] | None = registry.card(name, "model").facts.get("weights")
    if facts is None:
        raise RegistryError(f"no weights are published for '{name}'; give a file or folder: pretrained='…'")
    try:
        url, size, sha256 = str(facts["url"]), int(facts["size"]), str(facts["sha256"])
    except (TypeError, KeyError, ValueError) as error:
        raise RegistryError(f"card of '{name}': 'weights' needs url, size and sha256 ({error})") from error
    return fetch(url, cache_folder() / sha256[:16] / f"{name}.safetensors", size=size, sha256=sha256)
