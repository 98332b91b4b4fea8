"""Arguments of the public functions: one of another kind than expected is named before anything is done with it."""

from __future__ import annotations

import inspect
import os
import re
import reprlib
from collections.abc import Sequence
from numbers import Integral, Real
from typing import cast

from maskmed_zoo.errors import ArgumentError

PATH = (str, os.PathLike)
NUMBER, INTEGER = (Real,), (Integral,)
NONE = (type(None),)


def shown(value: object) -> str:
    """A value of any kind, short and in one line."""
    return f"{' '.join(reprlib.repr(value).split())} ({type(value).__name__})"


def expect(name: str, value: object, kinds: tuple[type, ...], what: str) -> None:
    """Raise `ArgumentError` unless the value is of one of the kinds; True and False are no numbers."""
    is_switch = isinstance(value, bool) and bool not in kinds
    if is_switch or not isinstance(value, kinds):
        raise ArgumentError(f"{name}: expected {what}, got {shown(value)}")


def takes(value: object, count: int) -> bool:
    """Whether the value can be called with so many arguments, as far as it says."""
    if not callable(value):
        return False
    try:
        inspect.signature(value).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # written in C, it says nothing
        return True
    return True


def expect_path(name: str, value: object, what: str, *, optional: bool = False) -> None:
    """Raise `ArgumentError` unless the value can be the path of something."""
    if optional and value is None:
        return
    expect(name, value, PATH, what)


def expect_folders(data: object) -> None:
    """Raise `ArgumentError` unless `data` can be the folder of a data set, or several."""
    what = "a data set's folder, or several"
    if isinstance(data, PATH):
        expect_path("data", data, what)
    else:
        expect_several("data", data, PATH, what)


def expect_several(name: str, values: object, kinds: tuple[type, ...], what: str, length: int | None = None) -> None:
    """Raise `ArgumentError` unless the value is a list, or array, of such values, of a length if one is given."""
    values = getattr(values, "tolist", lambda: values)()  # of an array
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise ArgumentError(f"{name}: expected {what}, got {shown(values)}")
    several = cast(Sequence[object], values)
    if length not in (None, len(several)):
        raise ArgumentError(f"{name}: expected {what}, got {shown(several)}")
    for value in several:
        expect(name, value, kinds, what)


def parse_numbers(name: str, given: str | Sequence[int]) -> tuple[int, ...]:
    """Numbers from 0 upwards, from text such as '0-4' or '0,2,4' or as they are; raises `ArgumentError`."""
    wanted = "numbers and ranges upwards, such as 0-4 or 0,2,4"
    if not isinstance(given, str):
        if not given or any(isinstance(number, bool) or number < 0 for number in given):
            raise ArgumentError(f"{name}: expected {wanted}, got {list(given)}")
        return tuple(dict.fromkeys(given))
    numbers: list[int] = []
    for part in given.split(","):
        found = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part, re.ASCII)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, -1)
        if last < first:
            raise ArgumentError(f"{name}: expected {wanted}, got '{given}'")
        numbers += range(first, last + 1)
    return tuple(dict.fromkeys(numbers))
