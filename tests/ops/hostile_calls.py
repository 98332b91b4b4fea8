"""Calls of the registered ops with arguments that mostly do not fit, run by test_registration in a process of its own.

python hostile_calls.py SEED COUNT: what fits must agree with float64, what does not must raise `ValueError`.
"""

from __future__ import annotations

import math
import random
import sys
from collections import Counter
from math import prod
from typing import Any

import torch
from torch import Tensor

from maskmed_zoo.ops import reference
from maskmed_zoo.ops.deformable import FLOP_FORMULAS

TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
OTHERS = (*TYPES, torch.int64, torch.bool, torch.uint8)
HUGE = (-1, -(2**63), -(2**31), 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1)
FAR = (math.nan, math.inf, -math.inf, 1e30, -1e30, 3e38, 2.0**31, -(2.0**31), 2.0**63, 1e9)
FORWARD, BACKWARD, *_ = FLOP_FORMULAS  # the registered ops, as `torch.ops.maskmed_zoo` holds them
BOUNDS = {torch.float64: 1e-9, torch.float32: 2e-4}


def fitting(rng: random.Random) -> tuple[dict[str, Tensor], list[int]]:
    """Tensors by name and flat shapes, sizes 0 among them, with locations outside and far outside."""
    shapes = [[rng.choice((0, 1, 1, 2, 3, 4, 5)) for _ in range(3)] for _ in range(rng.choice((0, 1, 1, 2, 3)))]
    b, h, q, p = rng.choice((0, 1, 1, 2)), rng.choice((0, 1, 2, 3)), rng.choice((0, 1, 3, 17)), rng.choice((0, 1, 2, 4))
    c, dtype = rng.choice((0, 1, 2, 7, 8, 16, 24, 32, 33, 64)), rng.choice(TYPES)
    precision = torch.promote_types(dtype, torch.float32)
    locations = torch.rand(b, q, h, len(shapes), p, 3, dtype=precision) * 1.6 - 0.3
    for _ in range(rng.choice((0, 0, 2, 8)) if locations.numel() else 0):
        locations.view(-1)[rng.randrange(locations.numel())] = rng.choice(FAR)
    tensors = {
        "values": torch.randn(b, sum(map(prod, shapes)), h, c).to(dtype),
        "locations": locations,
        "weights": torch.randn(b, q, h, len(shapes), p, dtype=precision),
        "grad": torch.randn(b, q, h, c).to(dtype),
    }
    return {name: strided(x, rng) for name, x in tensors.items()}, [n for shape in shapes for n in shape]


def strided(x: Tensor, rng: random.Random) -> Tensor:
    """The same numbers, now and then in another order in memory, or beginning within other memory."""
    ways = (lambda: x, lambda: x.mT.contiguous().mT, lambda: torch.cat([x, x], -1)[..., x.shape[-1] :])
    return rng.choice((*ways, lambda: x.transpose(0, -1).contiguous().transpose(0, -1)))()


def spoil(tensors: dict[str, Tensor], shapes: list[int], rng: random.Random) -> list[int]:
    """Change type, shape or device of one tensor, or the shapes; returns these."""
    name, way = rng.choice(list(tensors)), rng.randrange(8)
    x = tensors[name]
    size = list(x.shape)
    if way == 0:
        tensors[name] = x.to(rng.choice([t for t in OTHERS if t != x.dtype]))
    elif way == 1:
        tensors[name] = x.to("meta")
    elif way < 5:
        at = rng.randrange(len(size))
        if way == 2:
            size[at] += rng.choice((1, 2, 64))
        else:
            size[at : at + 1] = [] if way == 3 else [size[at], 1]
        tensors[name] = torch.zeros(size, dtype=x.dtype)
    elif way == 5 and shapes:
        shapes[rng.randrange(len(shapes))] = rng.choice(HUGE)
    elif way == 6:
        shapes += [rng.choice((*HUGE, 0, 1))] * rng.choice((1, 2, 3))
    else:
        shapes = [rng.choice((*HUGE, 0, 1)) for _ in shapes]
    return shapes


def call(which: str, tensors: dict[str, Tensor], shapes: list[int]) -> list[Tensor]:
    three = [tensors[name] for name in ("values", "locations", "weights")]
    if which == "forward":
        return [FORWARD(*three, shapes)]
    return list(BACKWARD(tensors["grad"], *three, shapes, True))


def expected(which: str, tensors: dict[str, Tensor], shapes: list[int]) -> list[Tensor]:
    grad, values, locations, weights = (tensors[k].double() for k in ("grad", "values", "locations", "weights"))
    if which == "forward":
        return [reference.sample_levels(values, shapes, locations, weights)]
    return list(reference.backward(grad, values, shapes, locations, weights))


def main(seed: int, count: int) -> None:
    rng, counted = random.Random(seed), Counter[Any]()
    torch.manual_seed(seed)
    for number in range(count):
        tensors, shapes = fitting(rng)
        is_spoilt = number % 2 == 1
        if is_spoilt:
            shapes = spoil(tensors, shapes, rng)
        for which in ("forward", "backward"):
            try:
                found = call(which, tensors, shapes)
            except ValueError as error:
                if not is_spoilt or not str(error).startswith("deformable_attention: "):
                    raise
                counted["refused"] += 1
                continue
            counted["ran"] += 1
            if not all(x.device.type == "cpu" for x in tensors.values()):
                continue  # the gradient alone is elsewhere, and the forward pass knows of none
            wanted, bound = expected(which, tensors, shapes), BOUNDS.get(tensors["values"].dtype, 6e-2)
            for a, b in zip(found, wanted, strict=True):
                if a.shape != b.shape or not (a.double() - b).norm() <= bound * (b.norm() + 1):
                    raise SystemExit(f"call {number}: {which} of {tensors['values'].shape}, {shapes} is wrong")
    sys.stdout.write(f"{counted['ran']} ran, {counted['refused']} were refused\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
