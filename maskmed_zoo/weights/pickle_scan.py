"""Look through a pickle without running it: is it small and flat enough to be read?

torch's restricted unpickler runs no code, but it makes what it is told to: objects without number, tuples so deep in
one another that hashing them ends the process, and byte arrays of any size. A state dict has none of these.
"""

from __future__ import annotations

import io
import pickletools
from typing import Any

LARGEST_PICKLE = 8 * 2**20
"""Bytes of a pickle, which holds names, shapes and plain values; numbers of tensors lie outside."""
MOST_OPERATIONS = 2_000_000
"""Steps of a pickle, about forty for each tensor."""
DEEPEST_PICKLE = 200
"""Objects in one another; each tensor is some six deep by itself."""
_BYTE_ARRAYS = ("bytearray", "builtins bytearray", "__builtin__ bytearray")
_STORE = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
_FETCH = ("GET", "BINGET", "LONG_BINGET")
_FILL = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")
_MARK = -1


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
            if operation.name in _STORE:
                memo[len(memo) if operation.name == "MEMOIZE" else argument] = stack[-1]
            elif operation.name in _FETCH:
                stack.append(memo.get(argument, 0))
            else:
                _step(operation, stack)
            if stack and stack[-1] > DEEPEST_PICKLE:
                raise ValueError(f"objects are nested more than {DEEPEST_PICKLE} deep")
    except (IndexError, OverflowError, MemoryError) as error:
        raise ValueError("its pickle is broken") from error
    return left


def _step(operation: Any, stack: list[int]) -> None:
    """Take from the stack what an operation takes, and put there how deep what it gives is."""
    if operation.name == "MARK":
        stack.append(_MARK)
        return
    taken: list[int] = []
    wanted = [kind.name for kind in operation.stack_before]
    if "mark" in wanted:
        while (top := stack.pop()) != _MARK:
            taken.append(top)
        wanted = wanted[: wanted.index("mark")]
    container = [stack.pop() for _ in wanted]
    if operation.name in _FILL:
        items, held = [*taken, *container[:-1]], container[-1]
        stack.append(max([held, *(depth + 1 for depth in items)]))
    else:
        depth = 1 + max([*taken, *container], default=-1)
        stack.extend([depth] * len(operation.stack_after))
