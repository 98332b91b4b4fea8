"""An ONNX graph, and a program that predicts with it where neither PyTorch nor this package is, beside the weights."""

from __future__ import annotations

import shutil
from pathlib import Path

from maskmed_zoo.export.formats import ExportSource, weights
from maskmed_zoo.export.onnx_graph import Session, needed, write_graph
from maskmed_zoo.export.pipeline import Pipeline
from maskmed_zoo.export.program import check, program_of
from maskmed_zoo.weights.card import GRAPH, PIPELINE, RUNNER

SOURCE = Path(__file__).resolve().parents[1] / RUNNER


def write(source: ExportSource, folder: Path) -> None:
    """`network.onnx`, `pipeline.json` and `predict_onnx.py`; the graph has to say what the network says."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        needed(name)
    patch = source.recipe.data.patch_size
    stored = "float16" if source.fp16 else "float32"
    pipeline = Pipeline.of(source.recipe, source.run.fingerprint(), source.steps, file=GRAPH, stored=stored)
    write_graph(program_of(source.model, patch), folder / GRAPH, fp16=source.fp16)
    check(Session(folder / GRAPH), source.model, patch, GRAPH, is_rounded=source.fp16)
    pipeline.write(folder / PIPELINE)
    shutil.copyfile(SOURCE, folder / RUNNER)
    weights.write(source, folder)
