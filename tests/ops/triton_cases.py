"""What `test_triton.py` runs in a process of its own: `interpret` computes, `compile` makes PTX; both print JSON.

Triton decides between its interpreter and a GPU when kernels are defined, so the variable is set before the import.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def interpret() -> dict[str, dict[str, float]]:
    """Relative errors against float64, by type of the values."""
    os.environ["TRITON_INTERPRET"] = "1"
    import torch

    from maskmed_zoo.ops import reference, triton_backend

    shapes, errors = [3, 4, 5, 0, 2, 2, 2, 2, 3], {}
    types = ((torch.float32, 12, 2), (torch.float64, 1, 1), (torch.bfloat16, 8, 1), (torch.float16, 4, 1))
    for dtype, width, points in types:
        torch.manual_seed(0)
        precise = torch.promote_types(dtype, torch.float32)
        values = torch.randn(2, 72, 2, width).to(dtype)
        locations = torch.rand(2, 5, 2, 3, points, 3, dtype=precise) * 1.5 - 0.25
        locations[0, 0, 0, 0, 0, 1], locations[1, 0, 0, 2, 0, 0], locations[1, 1, 0, 0, 0, 2] = (
            torch.nan, 1e30, -torch.inf,
        )  # fmt: skip
        weights, grad = torch.randn(2, 5, 2, 3, points, dtype=precise), torch.randn(2, 5, 2, width).to(dtype)
        exact = [x.double() for x in (values, locations, weights)]
        expected = [
            reference.sample_levels(exact[0], shapes, *exact[1:]),
            *reference.backward(grad.double(), exact[0], shapes, *exact[1:]),
        ]
        found: dict[str, list[Any]] = {"forward": [triton_backend.forward(values, shapes, locations, weights)]}
        for deterministic in (False, True):
            torch.use_deterministic_algorithms(deterministic)
            name = "deterministic" if deterministic else "atomics"
            found[name] = [*triton_backend.backward(grad, values, shapes, locations, weights, wants_values=True)]
        torch.use_deterministic_algorithms(False)
        alone = triton_backend.backward(grad, values, shapes, locations, weights, wants_values=False)
        assert alone[0] is None
        assert all(torch.equal(a, b) for a, b in zip(alone[1:], found["atomics"][1:], strict=True))
        assert found["forward"][0].dtype == found["atomics"][0].dtype == dtype
        errors[str(dtype)] = {
            name: max(
                float((a.double() - b).norm() / b.norm())
                for a, b in zip(tensors, expected[:1] if name == "forward" else expected[1:], strict=True)
            )
            for name, tensors in found.items()
        }
    none = torch.zeros(1, 0, 2, 3, 1)
    nowhere = none[..., None].expand(*none.shape, 3)
    values = torch.zeros(1, 72, 2, 4, dtype=torch.float16)
    assert triton_backend.forward(values, shapes, nowhere, none).shape == (1, 0, 2, 4)
    return errors


POINTERS = {"levels_at": "i64", "order": "i64", "ends": "i64"}
CONSTANTS = ("BQ", "BC", "ACC", "SCATTER")
MULTIPLES = ("channels", "stride_b", "stride_s", "stride_h")


def ptx(name: str, capability: int, value: str, queries: int) -> str:
    """A kernel for values of type `value`, 32 channels and one warp."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from maskmed_zoo.ops import triton_kernels

    kernel = getattr(triton_kernels, name)
    signature, constants, hints = {}, {}, {}
    for index, argument in enumerate(kernel.arg_names):
        if argument in CONSTANTS:
            signature[argument] = "constexpr"
            constants[(index,)] = {"BQ": queries, "BC": 32, "ACC": tl.float32, "SCATTER": True}[argument]
            continue
        tensor = argument in POINTERS or argument in ("values", "grad", "output", "locations", "weights", "scales")
        if tensor or argument.startswith("grad_"):
            own = value if argument in ("values", "grad", "output") else POINTERS.get(argument, "fp32")
            signature[argument] = f"*{own}"
            hints[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[argument] = "i32"
            if argument in MULTIPLES:
                hints[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, hints)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 1}).asm["ptx"]


def spilled(text: str) -> list[str]:
    """What Triton's assembler says of registers kept in memory, which the PTX does not show."""
    import triton

    target = re.search(r"\.target (sm_\w+)", text)[1]
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    newer = tool.with_name("ptxas-blackwell")  # where the other does not know the newest generation
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(text, encoding="utf-8")
        done = subprocess.run(
            [newer if newer.exists() else tool, "-v", "--gpu-name", target, source, "-o", Path(folder) / "kernel"],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
    return re.findall(r"\d+ bytes spill stores", done.stderr)


def compile_for(capability: int) -> dict[str, list[str]]:
    """The loads and atomics of each kernel."""
    jobs = [("forward_kernel", "bf16", 8), ("backward_kernel", "bf16", 8), ("collect_kernel", "fp32", 1)]
    found: dict[str, list[str]] = {}
    for name, value, queries in jobs:
        text = ptx(name, capability, value, queries)
        found[name] = sorted(set(re.findall(r"(?:ld\.global|(?:red|atom)\.global)[\w.:]*", text)))
        found[name] += spilled(text)
        found[name] += re.findall(r"\.target sm_\d+", text)
    return found


if __name__ == "__main__":
    print(json.dumps(interpret() if sys.argv[1] == "interpret" else compile_for(int(sys.argv[2]))))
