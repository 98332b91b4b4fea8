"""What a run can be exported as, one file each.

A format is a module of this folder, named as `--format` names it, with one function: `write(source, folder)` puts its
files into a folder that is not in place yet, and lets `OSError` pass. Recipe, card and README are written for every
format; the names of further files are listed in `maskmed_zoo.weights.card`, which checks them on the way back.
Modules are found by looking into this folder, so a new format is one file and its file names.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from maskmed_zoo.errors import ArgumentError, nearest

if TYPE_CHECKING:
    from maskmed_zoo.inference.postprocessing import Step
    from maskmed_zoo.model import SegmentationModel
    from maskmed_zoo.recipe import Recipe
    from maskmed_zoo.runner.run_folder import RunFolder, Which

DEFAULT = "weights"
HALVED = ("onnx",)
"""Formats whose weights can be stored in 16 bits."""


@dataclass(frozen=True)
class ExportSource:
    """A trained network with its weights loaded, and where they come from."""

    run: RunFolder
    which: Which
    recipe: Recipe
    model: SegmentationModel
    steps: tuple[Step, ...] = ()
    """What post-processing was chosen for these weights."""
    fp16: bool = False
    """Store weights in 16 bits; only for formats in `HALVED`."""


class Format(Protocol):
    """What a module of this folder offers."""

    def write(self, source: ExportSource, folder: Path) -> None:
        """Put the format's files into `folder`."""
        ...


def names() -> tuple[str, ...]:
    """Names of the formats there are; imports none."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def find(name: str) -> Format:
    """The format of this name; raises `ArgumentError` if there is none."""
    if name not in names():
        raise ArgumentError(f"no export format '{name}'{nearest(name, names())} (formats: {', '.join(names())})")
    form: Any = importlib.import_module(f"{__name__}.{name}")
    return form
