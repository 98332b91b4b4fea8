"""Exported weights to and from elsewhere: an address, a zip file, or a repository of the Hugging Face hub.

A folder is put together under a hidden name, checked against its card, and put in place in one step. The hub is reached
through `huggingface_hub` (extra `hub`), which also holds the login; nothing here reads one.
"""

from __future__ import annotations

import importlib
import re
import shutil
import urllib.parse
from pathlib import Path
from typing import Any

from maskmed_zoo.errors import CheckpointError, UserError, first_line
from maskmed_zoo.files import is_file, is_folder, sha256_of
from maskmed_zoo.weights.archive import unpack
from maskmed_zoo.weights.arriving import arriving, clear
from maskmed_zoo.weights.card import CARD, FILES, LARGEST_CARD, SHA256, check_exported, read_card
from maskmed_zoo.weights.connection import check_url
from maskmed_zoo.weights.download import InterruptedDownloadError, fetch, partial_of

HUB = "hf:"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def pull(source: str, folder: Path, *, revision: str | None = None, sha256: str | None = None) -> dict[str, Any]:
    """Exported weights into `folder`, which must be new; returns their card.

    Args:
        source: `https://…/card.json` with the files beside it, `https://….zip`, a local `.zip`, or `hf:OWNER/NAME`.
        folder: made new.
        revision: of a hub repository: a branch, tag or commit.
        sha256: of a zip file; an interrupted download is resumed.

    Raises `CheckpointError`, with nothing left behind but what an interrupted download can be resumed from, and
    `OutputError` if the folder is there, cannot be written, or another process is at work on it.
    """
    if sha256 is not None and not source.endswith(".zip"):
        raise CheckpointError(f"{source}: only a zip file takes a sha256; a card holds those of its files")
    if revision is not None and not source.startswith(HUB):
        raise CheckpointError(f"{source}: only a hub repository has revisions")
    sha256 = None if sha256 is None else sha256.lower()
    if sha256 is not None and not SHA256.fullmatch(sha256):
        raise CheckpointError(f"'{sha256}': no sha256; expected 64 hexadecimal digits")
    with arriving(folder, kept=(InterruptedDownloadError, KeyboardInterrupt)) as hidden:
        return _receive(source, hidden, revision, sha256)


def push(folder: Path, repository: str, *, public: bool = False) -> str:
    """Upload an exported folder, checked before, to a hub repository, made private if new; returns its address."""
    check_exported(folder)
    api = _hub().HfApi()
    try:
        address = api.create_repo(_repository(repository), private=not public, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=str(folder), allow_patterns=[CARD, *FILES])
    except Exception as error:  # whatever the library, the network or the server says
        raise CheckpointError(f"{HUB}{repository}: could not be uploaded ({first_line(error)})") from error
    return str(address)


def _receive(source: str, hidden: Path, revision: str | None, sha256: str | None) -> dict[str, Any]:
    if source.startswith(HUB):
        _from_hub(_repository(source.removeprefix(HUB)), hidden, revision)
    elif source.endswith(".zip"):
        _from_zip(source, hidden, sha256)
    else:
        _from_address(source, hidden)
    for path in hidden.iterdir():
        if path.name not in (CARD, *FILES):
            raise CheckpointError(f"{source}: holds '{path.name}', expected {CARD}, {', '.join(FILES)}")
    return check_exported(hidden)


def _from_address(source: str, hidden: Path) -> None:
    if is_folder(Path(source)):
        raise CheckpointError(f"{source}: is a folder here, which needs no pull: zoo.load('{source}') reads it")
    check_url(source)
    if not urllib.parse.urlsplit(source).path.endswith(f"/{CARD}"):
        raise CheckpointError(f"{source}: expected an address that ends in /{CARD} or .zip, or {HUB}OWNER/NAME")
    card = hidden / CARD
    before = sha256_of(card) if is_file(card) else None
    fetch(source, card, largest=LARGEST_CARD)
    if sha256_of(card) != before:
        clear(hidden, but=[CARD])  # what is there is of other weights
    _, facts = read_card(card)
    for name, fact in facts.items():
        fetch(urllib.parse.urljoin(source, name), hidden / name, sha256=fact.sha256, size=fact.size)


def _from_zip(source: str, hidden: Path, sha256: str | None) -> None:
    if "://" not in source:
        clear(hidden)
        if sha256 is not None and is_file(Path(source)) and sha256_of(Path(source)) != sha256:
            raise CheckpointError(f"{source}: its sha256 is not {sha256[:12]}…: altered or damaged; refused")
        unpack(Path(source), hidden, sizes=_sizes)
        return
    archive = hidden / f".{sha256}.zip"
    clear(hidden, but=[archive.name, partial_of(archive).name])
    fetch(source, archive, sha256=sha256)
    unpack(archive, hidden, sizes=_sizes)
    archive.unlink()


def _sizes(folder: Path) -> dict[str, int]:
    return {name: fact.size for name, fact in read_card(folder / CARD)[1].items()}


def _from_hub(repository: str, hidden: Path, revision: str | None) -> None:
    clear(hidden)
    try:
        _hub().snapshot_download(repository, revision=revision, local_dir=str(hidden), allow_patterns=[CARD, *FILES])
    except UserError:
        raise
    except Exception as error:  # whatever the library, the network or the server says
        raise CheckpointError(f"{HUB}{repository}: could not be downloaded ({first_line(error)})") from error
    shutil.rmtree(hidden / ".cache", ignore_errors=True)  # the library's own notes


def _repository(name: str) -> str:
    if not _REPOSITORY.fullmatch(name) or ".." in name:
        raise CheckpointError(f"'{name}': no name of a hub repository; expected OWNER/NAME")
    return name


def _hub() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise UserError("the hub needs the package huggingface_hub: pip install 'maskmed-zoo[hub]'") from error
