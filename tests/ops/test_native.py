"""The C backend: every instruction set and type against float64, determinism, building, and life without a compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from maskmed_zoo.ops import native, native_build, reference
from maskmed_zoo.ops.deformable import deformable_attention

SHAPES = (5, 6, 7, 0, 3, 2, 2, 3, 4, 1, 1, 6)  # four levels, one empty
ROOT = Path(__file__).resolve().parents[2]
LIBRARY, WHY = native.load()
needs_library = pytest.mark.skipif(LIBRARY is None, reason=f"no compiled library: {WHY}")


def case(width, dtype, *, points=3, queries=37, batch=2, heads=3):
    """Values, shapes, locations and weights, some samples outside or not finite, and the output's gradient."""
    torch.manual_seed(0)
    precise = torch.promote_types(dtype, torch.float32)
    values = torch.randn(batch, 5 * 6 * 7 + 2 * 3 * 4 + 6, heads, width).to(dtype)
    locations = torch.rand(batch, queries, heads, 4, points, 3, dtype=precise) * 1.5 - 0.25
    locations[0, 0, 0, 0, 0, 0], locations[0, 1, 0, 0, 0, 1], locations[1, 1, 0, 3, 0, 2] = torch.nan, torch.inf, -1e30
    weights = torch.randn(batch, queries, heads, 4, points, dtype=precise)
    grad = torch.randn(batch, queries, heads, width).to(dtype)
    return values, SHAPES, locations, weights, grad


def sets():
    """The library once per instruction set of this processor."""
    return [native.Library(native_build.library(), number) for number in range(LIBRARY.instructions + 1)]


@needs_library
@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(torch.float64, 1e-13), (torch.float32, 5e-6), (torch.bfloat16, 5e-3), (torch.float16, 1e-3)],
)
@pytest.mark.parametrize("width", [1, 7, 8, 16, 24, 32, 40, 64, 100])
def test_every_instruction_set_agrees_with_float64(width, dtype, bound):
    values, shapes, locations, weights, grad = case(width, dtype)
    precise = [x.double() for x in (values, locations, weights)]
    expected = [
        reference.sample_levels(precise[0], shapes, *precise[1:]),
        *reference.backward(grad.double(), precise[0], shapes, *precise[1:]),
    ]
    for library in sets():
        found = [
            library.forward(values, shapes, locations, weights),
            *library.backward(grad, values, shapes, locations, weights, wants_values=True),
        ]
        assert [x.dtype for x in found] == [values.dtype, values.dtype, locations.dtype, locations.dtype]
        for actual, wanted in zip(found, expected, strict=True):
            assert (actual.double() - wanted).norm() <= bound * wanted.norm(), native.SETS[library.instructions]


@needs_library
def test_a_lesser_instruction_set_is_chosen_and_a_better_one_is_not_invented():
    assert native.Library(native_build.library(), 0).instructions == 0
    assert native.Library(native_build.library(), 99).instructions == LIBRARY.instructions


@needs_library
@pytest.mark.parametrize("heads", [1, 8])
@pytest.mark.parametrize("width", [8, 32])
def test_is_the_same_bit_by_bit_in_every_run_and_for_any_number_of_threads(width, heads, monkeypatch):
    monkeypatch.setattr(native, "SMALL", 1)
    values, shapes, locations, weights, grad = case(width, torch.float32, queries=2000, heads=heads)
    expected = None
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        for _ in range(10):
            found = [
                LIBRARY.forward(values, shapes, locations, weights),
                *LIBRARY.backward(grad, values, shapes, locations, weights, wants_values=True),
            ]
            expected = expected or found
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@needs_library
def test_values_and_gradients_that_do_not_lie_in_order():
    values, shapes, locations, weights, grad = case(8, torch.float32)
    expected = [
        LIBRARY.forward(values, shapes, locations, weights),
        *LIBRARY.backward(grad, values, shapes, locations, weights, wants_values=True),
    ]
    views = [
        values.transpose(1, 2).contiguous().transpose(1, 2),
        values.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0),
        torch.cat([values, values], -1)[..., 8:],
    ]
    grads = grad.transpose(1, 2).contiguous().transpose(1, 2)
    for view in views:
        assert not view.is_contiguous()
        found = [
            LIBRARY.forward(view, shapes, locations.mT.contiguous().mT, weights),
            *LIBRARY.backward(grads, view, shapes, locations, weights, wants_values=True),
        ]
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@needs_library
def test_the_gradient_of_values_is_left_out_where_nobody_wants_it():
    arguments = case(8, torch.float32)
    _, of_locations, of_weights = LIBRARY.backward(arguments[-1], *arguments[:-1], wants_values=True)
    nothing, *others = LIBRARY.backward(arguments[-1], *arguments[:-1], wants_values=False)
    assert nothing is None
    torch.testing.assert_close(others, [of_locations, of_weights])


@needs_library
def test_more_than_two_to_the_31_elements():
    shape = (65, 1024, 1024)
    # Fresh memory is zero, and pages that are only read take none.
    values = torch.empty(1, 65 << 20, 8, 4, dtype=torch.bfloat16)
    assert values.numel() > 2**31
    values[0, -1, 7], values[0, 0, 0] = torch.arange(1.0, 5).bfloat16(), torch.arange(5.0, 9).bfloat16()
    locations = torch.tensor([0.5, 0.5, 0.5]) / torch.tensor(shape)
    locations = torch.stack([locations, 1 - locations]).view(1, 2, 1, 1, 1, 3).expand(1, 2, 8, 1, 1, 3)
    output = deformable_attention(values, [shape], locations, torch.ones(1, 2, 8, 1, 1), backend="native").float()
    torch.testing.assert_close(output[0, 0, 0], torch.arange(5.0, 9), rtol=0.01, atol=0)
    torch.testing.assert_close(output[0, 1, 7], torch.arange(1.0, 5), rtol=0.01, atol=0)


def test_levels_that_cannot_be_counted_in_32_bits_go_another_way():
    assert native.fits((1024, 1024, 1024, 0, 0, 0))
    assert not native.fits((2, 2, 2, 2048, 1024, 1024))
    assert not native.fits((1, 1, 2**24))
    assert not native.fits((1, 2000, 1073740))  # fewer than 2^31, but not with the row before the first


# --- building


@needs_library
@pytest.mark.skipif(native_build.compiler() is None, reason="no C compiler")
def test_is_built_once_into_the_cache_and_found_again(tmp_path, monkeypatch):
    monkeypatch.setattr(native_build, "FLAGS", (*native_build.FLAGS, "-O0"))  # not to wait for
    path = native_build.made(tmp_path / "new")
    assert native.Library(path).instructions == LIBRARY.instructions
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    monkeypatch.setattr(native_build, "build", lambda _: pytest.fail("built again"))
    assert native_build.made(tmp_path / "new") == path
    monkeypatch.setattr(native_build, "FLAGS", (*native_build.FLAGS, "-DOTHER"))
    assert native_build.cached(tmp_path / "new") != path


HALF = 'while [ "$1" != -o ]; do shift; done; echo half > "$2"; kill $$'


@pytest.mark.parametrize("script", ["exit 1", HALF, None])
def test_a_build_that_fails_leaves_nothing_behind(script, tmp_path, monkeypatch):
    compiler = tmp_path / "cc"
    if script:
        compiler.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        compiler.chmod(0o755)
    monkeypatch.setattr(native_build, "compiler", lambda: str(compiler) if script else None)
    with pytest.raises((OSError, subprocess.SubprocessError)):
        native_build.build(tmp_path / "cache" / "library.so")
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").iterdir())


WITHOUT_COMPILER = """
import logging, sys, torch
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
from maskmed_zoo.errors import UserError
from maskmed_zoo.ops.deformable import deformable_attention
values, weights = torch.rand(1, 24, 2, 8, requires_grad=True), torch.ones(1, 5, 2, 1, 3)
locations = torch.rand(1, 5, 2, 1, 3, 3)
for _ in range(2):
    deformable_attention(values, [(2, 3, 4)], locations, weights).sum().backward()
op = torch.ops.maskmed_zoo.deformable_attention(values, locations, weights, [2, 3, 4])
op.sum().backward()
torch.testing.assert_close(op, deformable_attention(values, [(2, 3, 4)], locations, weights))
try:
    deformable_attention(values, [(2, 3, 4)], locations, weights, backend="native")
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("missing", ["compiler", "cache"])
def test_where_nothing_can_be_built_everything_runs_in_plain_pytorch(missing, tmp_path):
    if native_build.SHIPPED.exists():
        pytest.skip("the library is part of this installation")
    environment = os.environ | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    if missing == "compiler":
        environment["PATH"] = str(tmp_path)
    else:
        (tmp_path / ".cache").write_bytes(b"a file, no folder")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_COMPILER], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "deformable attention" in line]
    assert sum("deformable attention on cpu: backend 'torch'" in line for line in lines) == 1
    assert "'native' of deformable attention cannot run on this machine" in lines[-1]


def test_rubbish_in_the_cache_is_no_library(tmp_path, monkeypatch):
    rubbish = tmp_path / "library.so"
    rubbish.write_bytes(b"no library")
    monkeypatch.setattr(native_build, "library", lambda: rubbish)
    library, why = native.load.__wrapped__()
    assert library is None
    assert "library.so" in why


@needs_library
@pytest.mark.skipif(native_build.compiler() is None, reason="no C compiler")
def test_a_library_of_the_wheel_that_cannot_be_loaded_is_made_anew(tmp_path, monkeypatch):
    """As where the wheel was made with a newer C library."""
    shipped = tmp_path / "shipped.so"
    shipped.write_bytes(b"no library")
    monkeypatch.setattr(native_build, "SHIPPED", shipped)
    monkeypatch.setattr(native_build, "FLAGS", (*native_build.FLAGS, "-O0"))  # not to wait for
    monkeypatch.setattr(native_build.Path, "home", lambda: tmp_path)
    library, where = native.load.__wrapped__()
    assert library is not None
    assert str(tmp_path / ".cache") in where
