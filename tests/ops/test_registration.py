"""The registered op: PyTorch's own checks, compile, export, autocast, checkpointing, and what cannot be done."""

from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from maskmed_zoo.errors import UserError
from maskmed_zoo.ops import backend, native, registration
from maskmed_zoo.ops.deformable import deformable_attention

SHAPES = [(3, 4, 5), (2, 2, 2)]
FLAT = [n for shape in SHAPES for n in shape]
BACKENDS = pytest.mark.parametrize("chosen", ["auto", "torch"])


def tensors(dtype=torch.float32, grad=True, queries=6):
    torch.manual_seed(0)
    values = torch.randn(2, sum(prod(s) for s in SHAPES), 2, 8, dtype=dtype)
    locations, weights = torch.rand(2, queries, 2, 2, 3, 3), torch.rand(2, queries, 2, 2, 3)
    return [x.requires_grad_(grad) for x in (values, locations, weights)]


class Module(torch.nn.Module):
    def __init__(self, chosen):
        super().__init__()
        self.chosen = chosen

    def forward(self, values, locations, weights):
        return deformable_attention(values * 2, SHAPES, locations, weights, backend=self.chosen).sin()


def gradients(module, leaves):
    output = module(*leaves)
    return [output, *torch.autograd.grad(output.float().square().sum(), leaves)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pytorch_finds_nothing_wrong_with_the_ops(dtype):
    values, locations, weights = tensors(dtype)
    grad = torch.randn(2, 6, 2, 8).to(dtype)
    torch.library.opcheck(registration.forward, (values, locations, weights, FLAT))
    detached = [x.detach() for x in (grad, values, locations, weights)]
    for wants_values in (True, False):
        torch.library.opcheck(registration.backward, (*detached, FLAT, wants_values))


@BACKENDS
def test_compiles_as_one_graph_with_gradients(chosen):
    leaves = tensors()
    compiled = torch.compile(Module(chosen), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients(compiled, leaves), gradients(Module(chosen), leaves))


def test_choice_of_a_backend_is_marked_as_torch_marks_constants():
    """The mark is set by hand, so that the compiler is not imported; torch itself must set this very one."""

    def marked() -> None: ...

    torch.compiler.assume_constant_result(marked)
    assert vars(marked)
    assert vars(backend.resolve).items() >= vars(marked).items()


@BACKENDS
def test_compiles_once_for_any_number_of_queries(chosen):
    compiled = torch.compile(Module(chosen), fullgraph=True, backend="aot_eager", dynamic=True)
    for queries in (6, 9, 4):
        leaves = tensors(queries=queries)
        torch.testing.assert_close(gradients(compiled, leaves), gradients(Module(chosen), leaves))


@BACKENDS
def test_exports_saves_and_loads(chosen):
    inputs = tuple(tensors(grad=False))
    queries = torch.export.Dim("queries", min=2, max=100)
    program = torch.export.export(
        Module(chosen), inputs, dynamic_shapes=({}, {1: queries}, {1: queries}), strict=False
    )  # fmt: skip
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    others = tensors(grad=False, queries=11)
    torch.testing.assert_close(torch.export.load(buffer).module()(*others), Module(chosen)(*others))


@BACKENDS
def test_activation_checkpointing_gives_the_same_gradients(chosen):
    module, leaves = Module(chosen), tensors()
    again = gradients(lambda *x: checkpoint(module, *x, use_reentrant=False), leaves)
    torch.testing.assert_close(again, gradients(module, leaves))


@BACKENDS
def test_autocast_lowers_values_alone(chosen):
    linear, leaves = torch.nn.Linear(8, 8), tensors()
    with torch.autocast("cpu", torch.bfloat16):
        values = linear(leaves[0])
        output = deformable_attention(values, SHAPES, *leaves[1:], backend=chosen)
    assert values.dtype == output.dtype == torch.bfloat16
    expected = deformable_attention(values.double(), SHAPES, *(x.double() for x in leaves[1:]))
    assert (output - expected).norm() <= 5e-3 * expected.norm()
    found = torch.autograd.grad(output.float().sum(), [*leaves, linear.weight])
    assert [x.dtype for x in found] == [torch.float32] * 4
    assert all(x.isfinite().all() for x in found)


@pytest.mark.parametrize("frozen", range(3))
@BACKENDS
def test_gradients_of_some_inputs_only(chosen, frozen):
    leaves = tensors()
    expected = gradients(Module(chosen), leaves)[1:]
    leaves[frozen] = leaves[frozen].detach()
    wanted = [x for x in leaves if x.requires_grad]
    found = torch.autograd.grad(Module(chosen)(*leaves).square().sum(), wanted)
    torch.testing.assert_close(list(found), [g for i, g in enumerate(expected) if i != frozen])


def test_differentiating_twice_raises_instead_of_giving_zeros():
    values, locations, weights = tensors()
    output = registration.forward(values, locations, weights, FLAT)
    (grad,) = torch.autograd.grad(output.square().sum(), locations, create_graph=True)
    with pytest.raises(RuntimeError, match=r"autograd|does not require grad"):
        torch.autograd.grad(grad.sum(), values)


def test_plain_pytorch_differentiates_twice():
    values, locations, weights = (x.detach().double() for x in tensors(queries=1))
    values, weights = values[:1, :8, :1, :2].clone().requires_grad_(), weights[:1, :, :1, :1].clone().requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda v, w: deformable_attention(v, [(2, 2, 2)], locations[:1, :, :1, :1], w, backend="torch"),
        [values, weights],
    )


# --- called directly

ROOT = Path(__file__).resolve().parents[2]
WRONG = {
    "no batch": lambda v, at, w: (v[0], at, w, FLAT),
    "heads": lambda v, at, w: (v[:, :, :1], at, w, FLAT),
    "two coordinates": lambda v, at, w: (v, at[..., :2], w, FLAT),
    "points": lambda v, at, w: (v, at, w[..., :2], FLAT),
    "half a level": lambda v, at, w: (v, at, w, FLAT[:-1]),
    "voxels": lambda v, at, w: (v, at, w, [3, 4, 5, 2, 2, 3]),
    "negative": lambda v, at, w: (v, at, w, [-3, -4, 5, 2, 2, 2]),
    "product of 2^64 + 60": lambda v, at, w: (v, at, w, [2**62, 4, 1, 2, 2, 2]),
    "float64 locations": lambda v, at, w: (v, at.double(), w, FLAT),
    "float16 weights": lambda v, at, w: (v, at, w.half(), FLAT),
    "float32 locations of float64 values": lambda v, at, w: (v.double(), at, w.double(), FLAT),
    "integer values": lambda v, at, w: (v.long(), at, w, FLAT),
    "weights elsewhere": lambda v, at, w: (v, at, w.to("meta"), FLAT),
    "all on meta": lambda v, at, w: (v.to("meta"), at.to("meta")[:1], w.to("meta"), FLAT),
    "sparse values": lambda v, at, w: (v.to_sparse(), at, w, FLAT),
}
WRONG_GRADIENTS = {
    "shape": lambda grad: grad[:, :-1],
    "no head": lambda grad: grad[:, :, 0],
    "type": lambda grad: grad.half(),
    "wider type": lambda grad: grad.double(),
    "device": lambda grad: grad.to("meta"),
}


@pytest.mark.parametrize("name", WRONG)
def test_direct_calls_that_do_not_fit_are_refused(name):
    op, of_gradient = torch.ops.maskmed_zoo.deformable_attention, torch.ops.maskmed_zoo.deformable_attention_backward
    arguments = WRONG[name](*tensors(grad=False))
    with pytest.raises(ValueError, match="deformable_attention: "):
        op(*arguments)
    with pytest.raises(ValueError, match="deformable_attention: "):
        of_gradient(torch.randn(2, 6, 2, 8), *arguments, True)


@pytest.mark.parametrize("name", WRONG_GRADIENTS)
def test_gradients_of_another_output_are_refused(name):
    grad = WRONG_GRADIENTS[name](torch.randn(2, 6, 2, 8))
    with pytest.raises(ValueError, match=r"the gradient is \(.*\), torch.float.* on .*; expected .*\(2, 6, 2, 8\)"):
        torch.ops.maskmed_zoo.deformable_attention_backward(grad, *tensors(grad=False), FLAT, True)


@pytest.mark.parametrize("missing", ["nothing", "library"])
def test_hundreds_of_direct_calls_with_hostile_arguments(missing, tmp_path):
    """In a process of its own, which must live; see `hostile_calls`."""
    code = "import sys; from tests.ops import hostile_calls; hostile_calls.main(int(sys.argv[1]), int(sys.argv[2]))"
    if missing == "library":
        code = f"from maskmed_zoo.ops import native; native.load = lambda: (None, 'taken away'); {code}"
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code, "5", "400"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    numbers = re.fullmatch(r"(\d+) ran, (\d+) were refused\n", done.stdout)
    assert numbers
    assert all(int(n) > 200 for n in numbers.groups())


# --- which backend


def test_one_log_line_says_which_backend_was_taken(caplog):
    backend.best.cache_clear()
    with caplog.at_level(logging.INFO, "maskmed_zoo.ops"):
        for _ in range(3):
            deformable_attention(tensors()[0], SHAPES, *tensors()[1:])
    taken = "torch" if native.load()[0] is None else "native"
    assert [f"backend '{taken}'" in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ("triton", "runs on cuda, the values are on cpu"),
        ("fast", "no backend 'fast'; there are auto, torch, native and triton"),
    ],
)
def test_backends_that_are_not_there_are_refused_in_one_line(chosen, message):
    with pytest.raises(UserError, match=message) as caught:
        deformable_attention(tensors()[0], SHAPES, *tensors()[1:], backend=chosen)
    assert "\n" not in str(caught.value)


def test_without_a_library_the_op_itself_still_runs(monkeypatch):
    """A program exported where there was one may run where there is none."""
    leaves = tensors()
    expected = gradients(lambda *x: registration.forward(*x, FLAT), leaves)
    monkeypatch.setattr(native, "load", lambda: (None, "taken away"))
    backend.best.cache_clear()
    found = gradients(lambda *x: registration.forward(*x, FLAT), leaves)
    assert backend.best("cpu") == "torch"
    backend.best.cache_clear()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
