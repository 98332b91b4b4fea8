"""Numbers as a reader of tables wants them."""

from __future__ import annotations

from collections.abc import Sequence


def number(value: float | None, unit: str = "", sign: str = "") -> str:
    """Four decimals, or two of a quantity with a unit; – for none; minus signs are typographic, zero has none."""
    return "–" if value is None else f"{value:{sign}z.{2 if unit else 4}f}".replace("-", "−")


def size(value: float, unit: str) -> str:
    """How large, with the unit."""
    return _with_unit(number(abs(value), unit), unit)


def signed(value: float, unit: str) -> str:
    """With sign and unit."""
    return _with_unit(number(value, unit, "+"), unit)


def interval(ends: Sequence[float] | None, unit: str = "", sign: str = "") -> str:
    """Both ends."""
    return "–" if ends is None else f"{number(ends[0], unit, sign)} to {number(ends[1], unit, sign)}"


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
