"""The CPU backend: `native.c`, called with raw pointers while other Python threads run.

It needs no header of PyTorch, so one library serves every version of it. Values in float32, bfloat16 or float64
(float16 is converted); sums in float32 or float64. The gradients are the same, bit by bit, for any number of threads.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import subprocess
from collections.abc import Sequence
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from maskmed_zoo.ops import native_build

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float64: 2}
SETS = ("plain C", "AVX2", "AVX-512")  # by their number in native.c
POINTERS = ("values", "locations", "weights", "grad_output", "output", "grad_values", "grad_locations", "grad_weights")
COUNTS = ("b", "s", "q", "h", "c", "l", "p", "stride_b", "stride_s", "stride_h", "threads", "fresh")
SMALL = 1 << 14  # rows read per thread, below which another thread costs more than it brings

FRESH = 1 << 20  # bytes, from which on memory of the system itself is asked for


class Problem(ctypes.Structure):
    """`problem` of native.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in (*POINTERS, "shapes")),
        *((name, ctypes.c_int64) for name in COUNTS),
    )


class Library:
    """The loaded library with the instruction set it is to use: by default the best of this processor."""

    def __init__(self, path: Path, instructions: int | None = None) -> None:
        loaded = ctypes.CDLL(str(path))
        self._passes = {name: loaded[f"msda_{name}"] for name in ("forward", "backward")}
        for function in self._passes.values():
            function.argtypes = (ctypes.POINTER(Problem), ctypes.c_int, ctypes.c_int)
            function.restype = ctypes.c_int
        best = int(loaded.msda_best())
        self.instructions = best if instructions is None else min(instructions, best)

    def forward(self, values: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
        """(b q h c) in the type of `values`; arguments as those of `deformable_attention`, shapes flat."""
        if values.dtype == torch.float16:
            return self.forward(values.float(), shapes, locations, weights).half()
        output = values.new_zeros((*locations.shape[:3], values.shape[-1]))
        if output.numel() and values.numel():
            self._run("forward", values, shapes, locations, weights, output=output)
        return output

    def backward(
        self,
        grad: Tensor,
        values: Tensor,
        shapes: Sequence[int],
        locations: Tensor,
        weights: Tensor,
        *,
        wants_values: bool,
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Gradients of values (None if not wanted), locations and weights, given the one (b q h c) of the output."""
        if values.dtype == torch.float16:
            of_values, *others = self.backward(
                grad.float(), values.float(), shapes, locations, weights, wants_values=wants_values
            )
            return None if of_values is None else of_values.half(), others[0], others[1]
        of_locations = torch.empty(locations.shape, dtype=locations.dtype)
        of_weights = torch.empty(weights.shape, dtype=weights.dtype)
        of_values = zeros(values.shape, locations.dtype) if wants_values else None
        if grad.numel() and values.numel():
            self._run(
                "backward", values, shapes, locations, weights, grad_output=grad.contiguous(),
                grad_values=of_values, grad_locations=of_locations, grad_weights=of_weights,
            )  # fmt: skip
        else:
            of_locations.zero_()
            of_weights.zero_()
        return None if of_values is None else of_values.to(values.dtype), of_locations, of_weights

    def _run(
        self, name: str, values: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor,
        **more: Tensor | None,
    ) -> None:  # fmt: skip
        if values.stride(-1) != 1:
            values = values.contiguous()
        locations, weights = locations.contiguous(), weights.contiguous()
        b, s, h, c = values.shape
        _, q, _, levels, points = weights.shape
        extents = (ctypes.c_int64 * len(shapes))(*shapes)
        tensors = {"values": values, "locations": locations, "weights": weights, **more}
        problem = Problem(
            shapes=ctypes.addressof(extents), b=b, s=s, q=q, h=h, c=c, l=levels, p=points,
            stride_b=values.stride(0), stride_s=values.stride(1), stride_h=values.stride(2),
            threads=max(1, min(torch.get_num_threads(), 8 * weights.numel() // SMALL)),
            fresh=_is_fresh(more.get("grad_values")),
            **{key: tensor.data_ptr() for key, tensor in tensors.items() if tensor is not None},
        )  # fmt: skip
        if self._passes[name](ctypes.byref(problem), self.instructions, TYPES[values.dtype]):
            raise MemoryError("deformable_attention: out of memory")


def zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros, larger ones as the system gives them, without writing them once more.

    Large pages would make fewer faults, but cost seconds per gigabyte in virtual machines that give theirs back.
    """
    size = prod(shape) * dtype.itemsize
    if size < FRESH or dtype != torch.float32 or not hasattr(mmap, "MAP_PRIVATE"):
        return torch.zeros(shape, dtype=dtype)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=dtype).view(tuple(shape))


def _is_fresh(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.dtype == torch.float32 and tensor.nbytes >= FRESH


@functools.cache
def load() -> tuple[Library | None, str]:
    """The library, built if need be, or None; and what the log says about it."""
    try:
        path = native_build.library()
        try:
            loaded = Library(path)
        except OSError:  # the wheel's may have been linked with a newer C library
            if path != native_build.SHIPPED:
                raise
            path = native_build.made()
            loaded = Library(path)
    except (OSError, RuntimeError, AttributeError, subprocess.SubprocessError) as error:
        return None, f"{error}"
    return loaded, f"{SETS[loaded.instructions]}, {path}"


def fits(shapes: Sequence[int]) -> bool:
    """Whether every level, with the voxels before its first, can be counted in 32 bits, its sides in a float32."""
    sides = [tuple(shapes[i : i + 3]) for i in range(0, len(shapes), 3)]
    return all(prod(n + 1 for n in side) < 2**31 and max(side) < 2**24 for side in sides)
