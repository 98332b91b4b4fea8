"""Peak memory of the exported runner on a large CT, beside what all probabilities would take.

    python docs/benchmarks/export_memory.py --work runs/export

A made-up CT of 300 x 512 x 512 voxels of .8 mm goes through `predict_onnx.py` with a network of one point-wise
convolution to 17 labels and windows of 64 x 64 x 64 voxels, so what is measured are the steps before and after the
network. Windows do not overlap, which saves minutes and no memory. Writes `export_memory.csv`, a row for each spacing
that the network works at. Needs the extra `onnx`, pip's index and 3 GB.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import measure
import nibabel as nib
import numpy as np
import onnx
from export import bare_python, installed, used
from onnx import TensorProto, helper, numpy_helper

from maskmed_zoo.data.fingerprint import IntensityStats
from maskmed_zoo.export import predict_onnx
from maskmed_zoo.export.pipeline import Network, Pipeline, Resampling, Windows, normalization

HERE = Path(__file__).resolve().parent
LABELS, SHAPE, SPACING = 17, (512, 512, 300), 0.8
"""Shape (x, y, z), and mm."""


def main() -> None:
    """Make a CT and a network, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, metavar="DIR")
    work = parser.parse_args().work.resolve()
    bare, folder = bare_python(work / "bare"), work / "memory"
    folder.mkdir(exist_ok=True)
    slices = np.random.default_rng(0).normal(0, 300, (*SHAPE[:2], 10)).astype(np.int16)
    affine = np.diag([-SPACING, -SPACING, SPACING, 1])
    image = nib.Nifti1Image(np.tile(slices, (1, 1, SHAPE[2] // 10)), affine)
    image.to_filename(folder / "ct_0000.nii.gz")
    onnx.save_model(network(), str(folder / "network.onnx"))
    shutil.copy(predict_onnx.__file__, folder)
    rows: list[measure.Row] = []
    for spacing in (SPACING, 1.5):
        pipeline(spacing).write(folder / "pipeline.json")
        out = folder / "labels.nii.gz"
        out.unlink(missing_ok=True)
        seconds, peak = used(bare, "-I", folder / "predict_onnx.py", folder / "ct_0000.nii.gz", out, "--threads", 1)
        made = np.prod([round(n * SPACING / spacing) for n in SHAPE])
        row = {"voxels": int(np.prod(SHAPE)), "labels": LABELS, "spacing_mm": spacing, "peak_mb": peak}
        row |= {"all_probabilities_mb": round(4 * LABELS * made / 1e6), "cpu_seconds": seconds}
        rows.append(row | measure.machine() | installed(bare))
    measure.write(HERE / "export_memory.csv", rows)


def network() -> Any:
    """A point-wise convolution and the logarithms of its softmax."""
    weights = np.linspace(-1, 1, LABELS, dtype=np.float32).reshape(LABELS, 1, 1, 1, 1)
    shapes = (("image", ["b", 1, "d", "h", "w"]), ("log_probabilities", ["b", LABELS, "d", "h", "w"]))
    given, found = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes)
    nodes = [
        helper.make_node("Conv", ["image", "weights"], ["logits"]),
        helper.make_node("LogSoftmax", ["logits"], ["log_probabilities"], axis=1),
    ]
    graph = helper.make_graph(nodes, "one", [given], [found], [numpy_helper.from_array(weights, "weights")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def pipeline(spacing: float) -> Pipeline:
    """Of a CT at a spacing of so many mm."""
    return Pipeline(
        name="memory",
        channels=("CT",),
        normalization=(normalization("ct", IntensityStats(0, 300, -900, 900), in_mask=False),),
        resampling=Resampling(spacing=(spacing, spacing, spacing)),
        windows=Windows(patch_size=(64, 64, 64), overlap=0, batch_size=2),
        network=Network(file="network.onnx", stored="float32"),
        labels={"background": 0} | {f"label_{n}": n for n in range(1, LABELS)},
    )


if __name__ == "__main__":
    main()
