"""Numbers as a reader of tables wants them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import floor, log10
from typing import Any

DECIMALS = 4
"""Of a share."""
FEWEST, MOST = 2, 6
"""Decimals of a quantity with a unit."""
TINY = 1e-9
"""What rounding makes of 0, in any unit."""


def decimals(values: Iterable[float | None], unit: str) -> int:
    """Of numbers that stand together: with a unit so many that the smallest has three significant digits.

    Where the largest would then have more than five, the smallest has fewer, but one at least.
    """
    if not unit:
        return DECIMALS
    places = [-floor(log10(abs(value))) for value in values if value and abs(value) > TINY]
    if not places:
        return FEWEST
    wanted, bearable = max(places) + 2, max(*places, min(places) + 4)
    return max(FEWEST, min(MOST, wanted, bearable))


def decimals_of(row: Mapping[str, Any], unit: str) -> int:
    """The same of a mean with its interval."""
    return decimals([row["mean"], *(row["interval"] or ())], unit)


def number(value: float | None, places: int = DECIMALS, sign: str = "") -> str:
    """With so many decimals; – for none; minus signs are typographic, zero has none."""
    return "–" if value is None else f"{value:{sign}z.{places}f}".replace("-", "−")


def size(value: float, unit: str, places: int | None = None) -> str:
    """How large, with the unit; with the decimals of its own unless others are given."""
    return _with_unit(number(abs(value), decimals([value], unit) if places is None else places), unit)


def signed(value: float, unit: str, places: int) -> str:
    """With sign and unit."""
    return _with_unit(number(value, places, "+"), unit)


def interval(ends: Sequence[float] | None, places: int = DECIMALS, sign: str = "") -> str:
    """Both ends."""
    return "–" if ends is None else f"{number(ends[0], places, sign)} to {number(ends[1], places, sign)}"


def p_value(p: float | None, name: str = "") -> str:
    """Two or three decimals, or that it is tiny; with a `name`, as in `p = 0.01`."""
    if p is None:
        return "–"
    if p < 0.001:
        return f"{name} < 0.001".strip()
    return f"{name}{' = ' if name else ''}{p:.{3 if p < 0.1 else 2}f}"


def counted(number: int, word: str) -> str:
    """As in `1 case` and `2 cases`."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def _with_unit(text: str, unit: str) -> str:
    return f"{text} {unit}" if unit else text
