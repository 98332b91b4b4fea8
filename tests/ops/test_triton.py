"""The Triton backend without a GPU: its interpreter against float64, PTX for three generations, a GPU if there."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from maskmed_zoo.ops.deformable import deformable_attention

ROOT = Path(__file__).resolve().parents[2]
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton")


def cases(tmp_path: Path, *words: str):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("triton_cases.py")), *words],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@needs_triton
def test_the_interpreter_agrees_with_float64(tmp_path):
    errors = cases(tmp_path, "interpret")
    bounds = {"torch.float64": 1e-13, "torch.float32": 5e-6, "torch.float16": 1e-3, "torch.bfloat16": 5e-3}
    assert set(errors) == set(bounds)
    for dtype, found in errors.items():
        assert set(found) == {"forward", "atomics", "deterministic"}
        assert max(found.values()) <= bounds[dtype], (dtype, found)


@needs_triton
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_compiles_to_wide_loads_and_relaxed_atomics(capability, tmp_path):
    """16 bytes per load of values, and from sm_90 on per atomic; without registers spilled to memory."""
    found = cases(tmp_path, "compile", str(capability))
    for kernel, seen in found.items():
        assert f".target sm_{capability}" in seen, kernel
        assert [line for line in seen if "spill" in line] == ["0 bytes spill stores"], kernel
    for kernel in ("forward_kernel", "backward_kernel"):
        assert "ld.global.v4.b32" in found[kernel]
    atomics = [x for x in found["backward_kernel"] if x.startswith(("red", "atom"))]
    assert len(atomics) == 1
    assert ".relaxed.add." in atomics[0]
    assert atomics[0].endswith(".v4.f32" if capability >= 90 else ".f32")
    assert not [x for x in found["collect_kernel"] + found["forward_kernel"] if x.startswith(("red", "atom"))]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 5e-6), (torch.bfloat16, 5e-3)])
@pytest.mark.parametrize("width", [16, 24, 32, 64])
def test_on_a_gpu_as_in_plain_pytorch(width, dtype, bound):
    torch.manual_seed(0)
    shapes, heads = [(6, 7, 8), (3, 3, 4)], 4
    values = torch.randn(2, 6 * 7 * 8 + 36, heads, width, device="cuda").to(dtype).requires_grad_()
    locations = (torch.rand(2, 50, heads, 2, 4, 3, device="cuda") * 1.5 - 0.25).requires_grad_()
    weights = torch.rand(2, 50, heads, 2, 4, device="cuda", requires_grad=True)
    leaves = [values, locations, weights]

    def gradients(tensors, backend):
        output = deformable_attention(tensors[0], shapes, tensors[1], tensors[2], backend=backend)
        return [output, *torch.autograd.grad(output.double().sum(), tensors)]

    expected = gradients([x.detach().double().requires_grad_() for x in leaves], "torch")
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        found = gradients(leaves, "triton")
        torch.use_deterministic_algorithms(False)
        for actual, wanted in zip(found, expected, strict=True):
            assert (actual.double() - wanted).norm() <= bound * wanted.norm()
