"""A network's program as an ONNX graph of standard operators (opset 20, the first with GridSample in 3-D)."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from maskmed_zoo.errors import ArgumentError, UserError
from maskmed_zoo.export.program import IMAGE, OUTPUT, refused

OPSET = 20
LARGEST_FLOAT16 = 65504.0
SMALL = 64
"""Numbers of a tensor below which storing them in 16 bits saves nothing."""
LARGEST_GRAPH = 2**31 - 2**20
"""Bytes that one ONNX file can have."""
MISSING = "'onnx' needs onnx, onnxscript and onnxruntime; pip install 'maskmed-zoo[onnx]'"


def needed(name: str) -> Any:
    """A module of the extra `onnx`; raises `UserError` where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{MISSING} ({name} is missing)") from error


def write_graph(program: ExportedProgram, path: Path, *, fp16: bool) -> None:
    """Write a program of one image as one ONNX file; with `fp16` its weights are stored in 16 bits.

    They are widened again when the graph is loaded, and what is computed is computed in float32, so the file alone is
    half as large. Raises `UserError` without the packages, `ArgumentError` for a network that ONNX cannot express.
    """
    opset: Any = needed("onnxscript").opset20
    onnx: Any = needed("onnx")

    def grid_sample(
        input: Any, grid: Any, interpolation_mode: int, padding_mode: int, align_corners: bool
    ) -> Any:  # of `reference.sample_levels`: trilinear, zeros around
        if (interpolation_mode, padding_mode) != (0, 0):
            raise NotImplementedError(f"grid_sample of mode {interpolation_mode}, padding {padding_mode}")
        return opset.GridSample(input, grid, align_corners=int(align_corners), mode="linear", padding_mode="zeros")

    with refused("onnx"):
        made = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=[IMAGE],
            output_names=[OUTPUT],
            custom_translation_table={torch.ops.aten.grid_sampler_3d.default: grid_sample},
            verbose=False,
        )
        graph: Any = None if made is None else made.model_proto
    strip(graph.graph)
    if fp16:
        halve(graph, onnx)
    if graph.ByteSize() > LARGEST_GRAPH:
        raise ArgumentError(f"the network has {graph.ByteSize()} bytes, an ONNX file at most 2 GiB; take 'torch'")
    onnx.checker.check_model(graph)
    onnx.save_model(graph, str(path))


def halve(graph: Any, onnx: Any) -> None:
    """Store float32 constants in 16 bits, each with a Cast back to float32 after it; those it cannot hold stay."""
    casts: list[Any] = []
    for tensor in graph.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or np.prod(tensor.dims) < SMALL:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        if np.abs(values).max() > LARGEST_FLOAT16:
            continue
        name = tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), f"{name}_float16"))
        casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.graph.node]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)


def strip(graph: Any) -> None:
    """Take out what the exporter notes of its work: it names the folders of this machine, and is most of the file."""
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]


class Session:
    """A graph in onnxruntime, on the CPU."""

    def __init__(self, path: Path) -> None:
        runtime = needed("onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, image: Tensor) -> Tensor:
        (output,) = self._session.run([OUTPUT], {IMAGE: image.numpy()})
        return torch.from_numpy(output)
