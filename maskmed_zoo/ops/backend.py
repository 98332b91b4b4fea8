"""Which backend runs deformable attention: `native` on the CPU, `triton` on CUDA, `torch` where those are missing."""

from __future__ import annotations

import functools
import logging
from typing import Literal

from maskmed_zoo.errors import UserError
from maskmed_zoo.ops import native

Backend = Literal["auto", "torch", "native", "triton"]
DEVICES = {"native": "cpu", "triton": "cuda"}
ADVICE = "leave out `backend`, or take 'torch', which runs everywhere"
log = logging.getLogger(__name__)


@functools.cache
def best(device: str) -> Literal["torch", "native", "triton"]:
    """The fastest backend there is for a kind of device; the first time this is logged."""
    taken, why = "torch", f"no other backend for {device}"
    if device == "cpu":
        library, why = native.load()
        taken = "native" if library else "torch"
    elif device == "cuda":
        from maskmed_zoo.ops import triton_backend

        why = triton_backend.missing() or "Triton"
        taken = "torch" if triton_backend.missing() else "triton"
    log.info("deformable attention on %s: backend '%s' (%s)", device, taken, why)
    return taken


def resolve(backend: Backend, device: str) -> str:
    """What runs on a kind of device: "torch", or "op" for the registered op and its own choice of a kernel.

    Raises `UserError` for a backend that is unknown, of another device, or missing.
    """
    if backend == "torch":
        return "torch"
    if backend == "auto":
        # Nothing is computed on meta; the op's shapes and counts are those of every backend.
        return "op" if device == "meta" or best(device) != "torch" else "torch"
    if backend not in DEVICES:
        raise UserError(f"deformable attention has no backend '{backend}'; there are auto, torch, native and triton")
    if device not in (DEVICES[backend], "meta"):
        runs = DEVICES[backend]
        raise UserError(
            f"backend '{backend}' of deformable attention runs on {runs}, the values are on {device}; {ADVICE}"
        )
    if device != "meta" and best(device) != backend:
        raise UserError(f"backend '{backend}' of deformable attention cannot run on this machine; {ADVICE}")
    return "op"


# To `torch.compile` the answer is a constant. This is the mark of `torch.compiler.assume_constant_result`, which would
# import the whole compiler (a second) for those who compile nothing; a test holds it to what torch sets.
resolve._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
