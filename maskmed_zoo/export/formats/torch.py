"""A program of `torch.export` that runs where PyTorch is and this package is not, beside the weights."""

from __future__ import annotations

from pathlib import Path

import torch

from maskmed_zoo.export.formats import ExportSource, weights
from maskmed_zoo.export.pipeline import Pipeline
from maskmed_zoo.export.program import check, program_of
from maskmed_zoo.weights.card import PIPELINE, PROGRAM


def write(source: ExportSource, folder: Path) -> None:
    """`network.pt2` and `pipeline.json`; what was saved is loaded again and has to say what the network says."""
    patch = source.recipe.data.patch_size
    pipeline = Pipeline.of(source.recipe, source.run.fingerprint(), source.steps, file=PROGRAM, stored="float32")
    torch.export.save(program_of(source.model, patch), folder / PROGRAM)
    check(torch.export.load(folder / PROGRAM).module(), source.model, patch, PROGRAM)
    pipeline.write(folder / PIPELINE)
    weights.write(source, folder)
