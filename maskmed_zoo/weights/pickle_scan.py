"""Look through a pickle without running it: is it small and flat enough to be read?

torch's restricted unpickler runs no code, but it makes what it is told to: objects without number, tuples so deep in
one another that hashing them ends the process, and byte arrays of any size. A state dict has none of these.
"""

from __future__ import annotations

import io
import pickletools
from typing import Any

LARGEST_PICKLE = 64 * 2**20
"""Bytes of a pickle: names, shapes and plain values; nnU-Net logs a number for each label and epoch there."""
MOST_OPERATIONS = 20_000_000
"""Steps of a pickle, about forty for each tensor, ten for each number that was logged."""
DEEPEST_PICKLE = 200
"""Objects in one another; each tensor is some six deep by itself."""
_BYTE_ARRAYS = ("bytearray", "builtins bytearray", "__builtin__ bytearray")
_STORE = frozenset(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"))
_FETCH = frozenset(("GET", "BINGET", "LONG_BINGET"))
_FILL = frozenset(("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"))
_MARK = -1


def _effect(operation: Any) -> tuple[bool, int, int]:
    """Whether an operation takes all down to a mark, how many it takes below that, and how many it gives."""
    before = [kind.name for kind in operation.stack_before]
    has_mark = "mark" in before
    return has_mark, before.index("mark") if has_mark else len(before), len(operation.stack_after)


_EFFECTS = {operation.name: _effect(operation) for operation in pickletools.opcodes}


def scan(content: bytes, pickles: int = 1) -> None:
    """Raise `ValueError` for pickles, so many in a row, that are broken or beyond the limits above."""
    if len(content) > LARGEST_PICKLE:
        raise ValueError(f"its pickle has {len(content)} bytes, more than {LARGEST_PICKLE}")
    file, left = io.BytesIO(content), MOST_OPERATIONS
    for index in range(pickles):
        if index == 0 or file.tell() < len(content):
            left = _scan_one(file, left)


def _scan_one(file: io.BytesIO, left: int) -> int:
    stack, memo = list[int](), dict[Any, int]()  # how deep what stands there is
    try:
        for operation, argument, _ in pickletools.genops(file):
            left -= 1
            if left < 0:
                raise ValueError(f"its pickle has more than {MOST_OPERATIONS} steps")
            if isinstance(argument, str) and argument in _BYTE_ARRAYS:
                raise ValueError("it makes a byte array, which no state dict has")
            name = operation.name
            if name in _STORE:
                memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
            elif name in _FETCH:
                stack.append(memo.get(argument, 0))
            elif name == "MARK":
                stack.append(_MARK)
            else:
                _step(name, stack)
            if stack and stack[-1] > DEEPEST_PICKLE:
                raise ValueError(f"objects are nested more than {DEEPEST_PICKLE} deep")
    except (IndexError, OverflowError, MemoryError) as error:
        raise ValueError("its pickle is broken") from error
    return left


def _step(name: str, stack: list[int]) -> None:
    """Take from the stack what an operation takes, and put there how deep what it gives is."""
    has_mark, below, after = _EFFECTS[name]
    taken: list[int] = []
    if has_mark:
        while (top := stack.pop()) != _MARK:
            taken.append(top)
    container = [stack.pop() for _ in range(below)]
    if name in _FILL:
        stack.append(max([container.pop(), *(1 + depth for depth in (*taken, *container))]))
    elif after:
        stack.extend([1 + max([*taken, *container], default=-1)] * after)
