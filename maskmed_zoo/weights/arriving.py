"""A folder of exported weights that is being put together: under a hidden name, by one process, and then in place.

The hidden folder stands beside the one to be, and its lock says whether somebody is at work on it; what a killed
process left has none, and is taken over.
"""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path

from maskmed_zoo.errors import OutputError
from maskmed_zoo.files import is_there, make_folder, unwritable
from maskmed_zoo.lock import alone_in


@contextmanager
def arriving(folder: Path, *, kept: tuple[type[BaseException], ...] = ()) -> Generator[Path]:
    """The hidden folder to fill; put in place as `folder` when the block ends, removed if it raises.

    What one of `kept` leaves stays, as what a killed process leaves does: for the next call, which finds it there.
    Raises `OutputError` if `folder` is there, cannot be made, or another process is at work on it.
    """
    _check_new(folder)
    hidden = folder.with_name(f".{folder.name}.arriving")
    new = [parent for parent in hidden.parents if not is_there(parent)]
    make_folder(hidden)
    with _held(hidden, folder):
        try:
            _check_new(folder)  # another process may have finished it meanwhile
            yield hidden
            hidden.replace(folder)
        except kept:
            raise
        except OSError as error:
            _remove(hidden, new)
            raise unwritable(folder, error) from error
        except BaseException:
            _remove(hidden, new)
            raise


def clear(folder: Path, *, but: Iterable[str] = ()) -> None:
    """Remove what is in a folder, but some names."""
    kept = set(but)
    for path in folder.iterdir():
        if path.name in kept:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _remove(hidden: Path, new: Iterable[Path]) -> None:
    """The hidden folder, and those around it that were made for it, unless something else is there by now."""
    shutil.rmtree(hidden, ignore_errors=True)
    with suppress(OSError):
        for parent in new:
            parent.rmdir()


@contextmanager
def _held(hidden: Path, folder: Path) -> Generator[None]:
    try:
        with alone_in(hidden, wait=False) as is_ours:
            if not is_ours:
                _check_new(folder)  # which the other has finished
                raise OutputError(f"{folder}: another process is putting weights there; wait for it, or give another")
            yield
    except OSError as error:
        _check_new(folder)  # another process may have put the hidden folder in place before its lock was opened here
        raise unwritable(folder, error) from error


def _check_new(folder: Path) -> None:
    if is_there(folder):
        raise OutputError(f"{folder}: exists already; give a new folder")
