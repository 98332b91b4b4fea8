"""The curves of a training run over its epochs: losses, Dice of every label, learning rates and gradient norm.

Of more labels than can be told apart the ones that are lowest by now have a name; all of them are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from maskmed_zoo.errors import escaped
from maskmed_zoo.report.canvas import Sheet
from maskmed_zoo.report.figure import label_colors

Line = Sequence[tuple[int, float]]
"""Points: epochs from 1, and values."""
Drawn = Mapping[str, tuple[Line, str, float]]
"""By name: the line, its color and its width."""
LEFT, TOP, WIDE, HIGH, LOW, WORDS, GAP = 0.6, 0.65, 3.9, 2.6, 1.3, 1.75, 0.6
"""Inches: margins, width and heights of the panels, the room for a legend, the gap between rows."""
MOST = 12
"""Labels that have a name."""
LONGEST_NAME = 22
LINES = ("#1f4e9c", "#d1495b", "#2e8b57", "#8e5ea2", "#e08e0b", "#5b7083")
"""Colours of what is no label."""
FAINT = "0.85"
"""Color of labels without a name."""
MARKED = 40
"""Points up to which each has a mark."""


@dataclass(frozen=True)
class Curves:
    """Lines by name; `dice` are those of the mean over labels."""

    losses: Mapping[str, Line]
    dice: Mapping[str, Line]
    labels: Mapping[str, Line]
    rates: Mapping[str, Line]
    norms: Mapping[str, Line]


def progress_figure(path: Path, title: str, curves: Curves) -> Path:
    """Write a PNG; raises `UserError` without matplotlib, `OutputError` if it cannot be written."""
    column = WIDE + WORDS + LEFT
    sheet = Sheet(LEFT + 2 * column, TOP + HIGH + GAP + LOW + 0.55)
    sheet.text(LEFT, 0.15, title, fontsize=11)
    below = TOP + HIGH + GAP
    labels = zip(curves.labels.items(), label_colors(len(curves.labels) + 1)[1:], strict=True)  # the first is black
    dice = {name: (line, color, 1.0) for (name, line), color in labels}
    means = dict(zip(curves.dice, zip(curves.dice.values(), ("black", "0.5"), (1.8, 1.2), strict=False), strict=False))
    panels: list[tuple[int, float, float, str, Drawn, bool]] = [
        (0, TOP, HIGH, "losses, mean over the epoch", _coloured(curves.losses), True),
        (1, TOP, HIGH, "Dice on validation patches", {**dice, **means}, False),
        (0, below, LOW, "learning rate", _coloured(curves.rates), True),
        (1, below, LOW, "gradient norm", _coloured(curves.norms), True),
    ]
    epochs = [epoch for *_, lines, _ in panels for line, *_ in lines.values() for epoch, _ in line]
    limits = (min(epochs, default=1), max(epochs, default=1))
    for place, top, height, name, lines, is_log in panels:
        left = LEFT + place * column
        axes = sheet.axes(left, top, WIDE, height)
        shown = _named(lines, curves.dice)
        faint = {n: (line, FAINT, 0.8) for n, (line, *_) in lines.items() if n not in shown}
        _panel(axes, name, faint | dict(shown), limits, is_log=is_log)
        sheet.legend(left + WIDE + 0.12, top, [(f"{_cut(n)} {_last(line)}", c) for n, (line, c, _) in shown.items()])
        if len(shown) < len(lines):
            more = f"{len(lines) - len(shown)} higher ones have no name"
            sheet.text(left + WIDE + 0.12, top + 0.05 + 0.19 * len(shown), more, fontsize=7)
    return sheet.save(path)


def _coloured(lines: Mapping[str, Line]) -> Drawn:
    return {name: (line, color, 1.2) for (name, line), color in zip(lines.items(), cycle(LINES), strict=False)}


def _panel(axes: Any, title: str, lines: Drawn, limits: tuple[int, int], *, is_log: bool) -> None:
    for line, color, width in lines.values():
        style: dict[str, Any] = {"color": color, "linewidth": width, "zorder": 2 + width, "markersize": 2}
        marker = "o" if len(line) <= MARKED else None
        axes.plot([x for x, _ in line], [y for _, y in line], marker=marker, **style)
    first, last = limits
    axes.set_xlim(first - 0.02 * (last - first) - 0.2, last + 0.02 * (last - first) + 0.2)
    values = [y for line, *_ in lines.values() for _, y in line]
    if is_log and any(y > 0 for y in values):
        axes.set_yscale("log")
        positive = [y for y in values if y > 0]
        is_narrow = max(positive) < 100 * min(positive)
        axes.yaxis.get_major_locator().set_params(subs=(1, 2, 5) if is_narrow else (1,))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda *_: "")
    elif not is_log:
        axes.set_ylim(-0.02, 1.02)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.tick_params(labelsize=8)
    axes.set_title(title, fontsize=9, loc="left", pad=4)
    axes.set_xlabel("epoch", fontsize=8, labelpad=2)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)


def _named(lines: Drawn, means: Collection[str]) -> Drawn:
    """The means, and the other lines, or those that are lowest now."""
    others = [name for name in lines if name not in means]
    if len(others) > MOST:
        others = sorted(others, key=lambda name: lines[name][0][-1][1] if lines[name][0] else math.inf)[:MOST]
    return {name: lines[name] for name in (*means, *others) if name in lines}


def _last(line: Line) -> str:
    return f"{line[-1][1]:.3g}" if line else ""


def _cut(name: str) -> str:
    name = escaped(name)
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
