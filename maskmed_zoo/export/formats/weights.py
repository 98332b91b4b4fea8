"""The weights as a safetensors file that says in its header which network they belong to."""

from __future__ import annotations

import shutil
from pathlib import Path

from maskmed_zoo.export.formats import ExportSource
from maskmed_zoo.runner.run_folder import save_model
from maskmed_zoo.weights.card import WEIGHTS
from maskmed_zoo.weights.files import read_safetensors


def write(source: ExportSource, folder: Path) -> None:
    """`weights.safetensors`: the run's own file, byte for byte, unless its header is of an earlier version."""
    file = source.run.weights_file(source.which)
    if read_safetensors(file).header.get("network", "").startswith("{"):
        shutil.copyfile(file, folder / WEIGHTS)
    else:
        save_model(folder / WEIGHTS, source.model, source.recipe)
