"""Unpack a zip file from outside: plain names and files alone, a bounded size, nothing left behind on refusal."""

from __future__ import annotations

import shutil
import stat
import unicodedata
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from maskmed_zoo.errors import CheckpointError, UserError, first_line
from maskmed_zoo.files import make_folder, unwritable
from maskmed_zoo.weights.card import CARD, LARGEST_CARD, safe_name
from maskmed_zoo.weights.files import LARGEST
from maskmed_zoo.weights.zip_directory import opened

MOST_ENTRIES = 16
"""Files and folders in an archive; exported weights are four files."""
MOST_PACKED = 200
"""How many times larger than it is an entry may become; weights pack to a half at best."""
_CHUNK = 2**20


def unpack(
    archive: Path,
    folder: Path,
    *,
    largest: int = LARGEST,
    sizes: Callable[[Path], Mapping[str, int]] | None = None,
) -> None:
    """Unpack into `folder`, which is made if missing.

    Args:
        archive: a zip file.
        folder: empty.
        largest: bytes of all files together.
        sizes: given the folder when its `card.json` alone has been unpacked, the other files and their bytes.

    Raises `CheckpointError` for names that lead out, links, encrypted or repeated entries, too many or too large ones,
    and other files than `sizes` tells, before any of those is written, whatever the archive says of its size; what was
    unpacked is then removed. `OutputError` where it cannot be written.
    """
    try:
        with opened(archive, most=MOST_ENTRIES) as file:
            entries = [entry for entry in file.infolist() if not entry.is_dir()]
            _check(entries, archive, largest)
            make_folder(folder)
            if sizes is None:
                limits = {entry.filename: largest for entry in entries}
            else:
                _extract(file, _card(entries, archive), folder, LARGEST_CARD, archive)
                limits = dict(sizes(folder))
                entries = [entry for entry in entries if entry.filename != CARD]
                _check_sizes(entries, limits, archive)
            for entry in entries:
                largest -= _extract(file, entry, folder, min(limits[entry.filename], largest), archive)
    except UserError:
        _remove(archive, folder)
        raise
    except Exception as error:  # whatever zipfile makes of a hostile file
        _remove(archive, folder)
        raise CheckpointError(f"{archive}: not a whole zip file ({first_line(error)}); get it again") from error


def _card(entries: list[zipfile.ZipInfo], archive: Path) -> zipfile.ZipInfo:
    for entry in entries:
        if entry.filename == CARD:
            return entry
    if any(entry.filename.endswith(f"/{CARD}") for entry in entries):
        raise CheckpointError(f"{archive}: holds {CARD} in a folder; make a zip of the files themselves")
    raise CheckpointError(f"{archive}: holds no {CARD}, so no exported weights; refused")


def _extract(file: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path, limit: int, archive: Path) -> int:
    """Write one file of at most `limit` bytes; returns how many it has."""
    target, size = folder / entry.filename, 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        out = target.open("xb")
    except OSError as error:
        raise unwritable(target, error) from error
    with out, file.open(entry) as source:
        while chunk := source.read(_CHUNK):
            size += len(chunk)
            if size > limit:
                raise CheckpointError(f"{archive}: unpacks to more than {limit} bytes; refused")
            try:
                out.write(chunk)
                out.flush()
            except OSError as error:
                raise unwritable(target, error) from error
    return size


def _check(entries: list[zipfile.ZipInfo], archive: Path, largest: int) -> None:
    names = [safe_name(entry.orig_filename, str(archive)) for entry in entries]
    if len({unicodedata.normalize("NFKC", name).casefold() for name in names}) != len(names):
        raise CheckpointError(f"{archive}: holds a name twice; refused")
    for entry in entries:
        mode = entry.external_attr >> 16
        if mode and not stat.S_ISREG(mode) and stat.S_IFMT(mode):
            raise CheckpointError(f"{archive}: '{entry.filename}' is a link or no plain file; refused")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise CheckpointError(f"{archive}: '{entry.filename}' is packed in an unusual way; pack it by 'deflate'")
        if entry.flag_bits & 1:
            raise CheckpointError(f"{archive}: '{entry.filename}' is encrypted; refused")
    if sum(entry.file_size for entry in entries) > largest:
        raise CheckpointError(f"{archive}: unpacks to more than {largest} bytes; refused")
    for entry in entries:
        if entry.file_size > MOST_PACKED * max(entry.compress_size, _CHUNK // MOST_PACKED):
            raise CheckpointError(
                f"{archive}: '{entry.filename}' becomes {entry.file_size} bytes of {entry.compress_size}; refused"
            )
    if sum(entry.compress_size for entry in entries) > archive.stat().st_size:
        raise CheckpointError(f"{archive}: its entries lie in one another; refused")


def _check_sizes(entries: list[zipfile.ZipInfo], sizes: Mapping[str, int], archive: Path) -> None:
    names = {entry.filename for entry in entries}
    if names != set(sizes):
        found, wanted = (", ".join(sorted(each)) or "nothing" for each in (names, sizes))
        raise CheckpointError(f"{archive}: holds {found} beside {CARD}, which names {wanted}; refused")
    for entry in entries:
        if entry.file_size != sizes[entry.filename]:
            raise CheckpointError(
                f"{archive}: '{entry.filename}' has {entry.file_size} bytes, {CARD} says {sizes[entry.filename]}"
            )


def _remove(archive: Path, folder: Path) -> None:
    """What was unpacked; the archive itself may lie in the folder."""
    with suppress(OSError):
        for path in folder.iterdir():
            if path != archive:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        folder.rmdir()
