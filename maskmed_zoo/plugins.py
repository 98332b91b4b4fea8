"""Packages that bring cards: found by the entry-point group `maskmed_zoo.components`, and located without an import.

The value of an entry point is the name of a package, whose folder holds `registry/`. Neither it nor a package around it
is imported, so nothing of a plug-in runs before a recipe names its component.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import NamedTuple

from maskmed_zoo.errors import RegistryError

ENTRY_POINT_GROUP = "maskmed_zoo.components"
_PACKAGE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class PlugIn(NamedTuple):
    """One entry point: whose it is, and the package that it names."""

    distribution: str
    package: str

    def registry(self) -> Path:
        """The folder of its cards; raises `RegistryError` where there is none."""
        for location in _locations(self.package):
            root = location / "registry"
            if root.is_dir():
                _check_inside(root, location)
                return root
        raise RegistryError(f"'{self.package}' is no package with a registry/ folder; reinstall or uninstall it")


def plug_ins() -> Iterator[PlugIn | RegistryError]:
    """Those installed, by name of their distribution; an error for one whose metadata cannot be read."""
    found: dict[str, Distribution] = {}
    for distribution in distributions():
        if _has_entry(distribution):  # the name stands in a far longer file
            found.setdefault(_name(distribution), distribution)  # the first one on the path is imported
    for name in sorted(found):
        try:
            points = found[name].entry_points.select(group=ENTRY_POINT_GROUP)
            packages = sorted({point.value.strip() for point in points})
        except Exception as error:  # whatever somebody else's metadata is made of
            yield RegistryError(f"{name}: its entry points cannot be read ({type(error).__name__})")
        else:
            yield from (PlugIn(name, package) for package in packages)


def check_folder(folder: Path, root: Path) -> None:
    """Raise `RegistryError` if a folder of cards is a link that leads out of the plug-in; files may be links."""
    if folder.is_symlink():
        _check_inside(folder, root)


def _check_inside(folder: Path, around: Path) -> None:
    if not folder.resolve().is_relative_to(around.resolve()):
        raise RegistryError(f"{folder}: is a link out of its package")


def _has_entry(distribution: Distribution) -> bool:
    """Whether a distribution may hold plug-ins, as one does whose entry points cannot be read."""
    try:
        return ENTRY_POINT_GROUP in (distribution.read_text("entry_points.txt") or "")
    except Exception:
        return True


def _name(distribution: Distribution) -> str:
    try:
        return str(distribution.name or "a distribution without a name").lower()
    except Exception:  # no metadata, or none that can be read
        return "a distribution without a name"


def _locations(package: str) -> list[Path]:
    """The folders of a package. Finders look for the outermost one, those inside it are folders."""
    if not _PACKAGE.fullmatch(package):
        return []
    top, *inner = package.split(".")
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        spec = find(top, None) if find is not None else None
        if spec is not None:
            return [Path(location, *inner) for location in spec.submodule_search_locations or ()]
    return []
