"""A row of metrics in words, for whoever looks at a run once a day: what it has learned, how fast, and what is left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maskmed_zoo.runner.metrics_file import DICE, loss_columns, number

Row = Mapping[str, Any]
MOST_LABELS = 8
"""Labels that are shown; of more the lowest."""
LOWEST = 4


def loss(row: Row) -> str:
    """The loss and its parts."""
    total = number(row, "loss")
    if total is None:
        return "every step skipped"
    parts = ", ".join(f"{name} {number(row, name):z.3f}" for name in loss_columns(row))
    return f"loss {total:z.3f}{f' ({parts})' if parts else ''}{skipped(row)}"


def skipped(row: Row) -> str:
    """How many steps were, if any."""
    count = number(row, "skipped")
    return f", {count:.0f} step{'s' * (count > 1)} skipped" if count else ""


def dice(row: Row) -> str:
    """The mean Dice of a validation and that of every label, or of the lowest ones; nothing without one."""
    mean = number(row, DICE)
    if mean is None:
        return ""
    known = {name.removeprefix(f"{DICE}/"): number(row, name) for name in row if name.startswith(f"{DICE}/")}
    labels = {name: value for name, value in known.items() if value is not None}
    shown, before = labels, ""
    if len(labels) > MOST_LABELS:
        shown = dict(sorted(labels.items(), key=lambda item: item[1])[:LOWEST])
        before = f"lowest of {len(labels)}: "
    each = ", ".join(f"{name} {value:z.3f}" for name, value in shown.items())
    return f"validation Dice {mean:z.3f}{f' ({before}{each})' if each else ''}"


def optimisation(row: Row) -> str:
    """Gradient norm and rates."""
    norm = number(row, "gradient_norm")
    rates = ", ".join(f"{number(row, name):.2g}" for name in row if name.startswith("lr_"))
    return f"{'' if norm is None else f'gradient norm {norm:.3g}, '}rate {rates}"


def pace(row: Row) -> str:
    """How long the epoch took, and which share of it patches were waited for."""
    seconds, waited = number(row, "seconds") or 0.0, number(row, "data_seconds")
    taken = f"{seconds:.1f} s" if seconds < 600 else f"{seconds / 60:.1f} min"
    return taken if waited is None or not seconds else f"{taken}, {100 * waited / seconds:.0f} % waiting for patches"


def duration(seconds: float) -> str:
    """`0:01:30`, or `3 d 4 h` where it is more than two days."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours < 48 else f"{hours // 24} d {hours % 24} h"
