"""Unpack a zip file from outside: plain names and files alone, a bounded size, nothing left behind on refusal."""

from __future__ import annotations

import shutil
import stat
import zipfile
from pathlib import Path

from maskmed_zoo.errors import CheckpointError, OutputError
from maskmed_zoo.weights.card import safe_name
from maskmed_zoo.weights.files import LARGEST

_CHUNK = 2**20


def unpack(archive: Path, folder: Path, *, largest: int = LARGEST) -> None:
    """Unpack into `folder`, which must not be there yet.

    Raises `CheckpointError` for names that lead out, links, encrypted or repeated entries, and more than `largest`
    bytes, whatever the archive says of its size; the folder is then not there.
    """
    if folder.exists():
        raise OutputError(f"{folder}: exists already; give a new folder")
    try:
        with zipfile.ZipFile(archive) as file:
            entries = [entry for entry in file.infolist() if not entry.is_dir()]
            _check(entries, archive, largest)
            folder.mkdir(parents=True)
            left = largest
            for entry in entries:
                target = folder / entry.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                with file.open(entry) as source, target.open("xb") as out:
                    while chunk := source.read(_CHUNK):
                        left -= len(chunk)
                        if left < 0:
                            raise CheckpointError(f"{archive}: unpacks to more than {largest} bytes; refused")
                        out.write(chunk)
    except CheckpointError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise CheckpointError(f"{archive}: not a whole zip file ({error}); get it again") from error


def _check(entries: list[zipfile.ZipInfo], archive: Path, largest: int) -> None:
    names = [safe_name(entry.filename, str(archive)) for entry in entries]
    if len({name.lower() for name in names}) != len(names):
        raise CheckpointError(f"{archive}: holds a name twice; refused")
    for entry in entries:
        mode = entry.external_attr >> 16
        if mode and not stat.S_ISREG(mode) and stat.S_IFMT(mode):
            raise CheckpointError(f"{archive}: '{entry.filename}' is a link or no plain file; refused")
        if entry.flag_bits & 1:
            raise CheckpointError(f"{archive}: '{entry.filename}' is encrypted; refused")
    if sum(entry.file_size for entry in entries) > largest:
        raise CheckpointError(f"{archive}: unpacks to more than {largest} bytes; refused")
