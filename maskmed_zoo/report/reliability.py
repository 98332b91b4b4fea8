"""Reliability curves: how often voxels have a label, against the probability with which it was given to them.

On the diagonal probabilities mean what they say; below it the network is too sure. A curve has a point per bin, at the
mean probability of its voxels; the bars under the curves are the bins' shares of all voxels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from typing import Any

from maskmed_zoo.errors import escaped
from maskmed_zoo.report.canvas import Sheet
from maskmed_zoo.report.figure import label_colors

LEFT, TOP, WIDE, HIGH, LOW, WORDS = 0.75, 0.5, 4.2, 4.2, 1.1, 3.1
"""Inches: the plots' left and upper edge, their width, the heights of both, the room for the legend."""
MOST_CURVES = 20
"""Curves that can be told apart."""
LONGEST_NAME = 24


def reliability_figure(path: Path, curves: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write a PNG of curves by name, each with `ece`, `voxels` and a `curve` of bins; the first is the most important.

    Raises `UserError` without matplotlib, `OutputError` if it cannot be written.
    """
    shown = dict(list(curves.items())[:MOST_CURVES])
    colors = dict(zip(shown, label_colors(len(shown)), strict=True))
    sheet = Sheet(LEFT + WIDE + WORDS, TOP + HIGH + LOW + 0.75)
    axes = sheet.axes(LEFT, TOP, WIDE, HIGH)
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
    under = sheet.axes(LEFT, TOP + HIGH + 0.1, WIDE, LOW)
    for number, (name, found) in enumerate(shown.items()):
        bins = found["curve"]
        style = {"color": colors[name], "linewidth": 2.0 if number == 0 else 1.2}
        places = [entry["probability"] for entry in bins]
        axes.plot(places, [entry["frequency"] for entry in bins], marker="o", markersize=3, **style)
        shares = [entry["voxels"] / found["voxels"] for entry in bins]
        under.plot(*_steps(bins, shares), **style)
    axes.set(xlim=(0, 1), ylim=(0, 1), xticklabels=[])
    axes.set_ylabel("share that has the label", fontsize=9)
    under.set(xlim=(0, 1), yscale="log")
    under.yaxis.set_major_formatter(lambda share, _: f"{share:g}")
    under.yaxis.set_minor_formatter(lambda *_: "")
    under.set_xlabel("probability", fontsize=9)
    under.set_ylabel("voxels, share", fontsize=9)
    for each in (axes, under):
        each.tick_params(labelsize=8)
        each.grid(color="0.92")
    sheet.text(LEFT, 0.15, "Reliability of the probabilities, voxels of all cases together", fontsize=10)
    entries = [(f"{_cut(name)}, ECE {found['ece']:.3g}", colors[name]) for name, found in shown.items()]
    sheet.legend(LEFT + WIDE + 0.15, TOP + 0.1, entries)
    if len(curves) > len(shown):
        left_out = f"{len(curves) - len(shown)} more are in the table"
        sheet.text(LEFT + WIDE + 0.15, TOP + 0.2 + 0.24 * len(shown), left_out, fontsize=8)
    return sheet.save(path)


def _steps(bins: Sequence[Mapping[str, Any]], shares: Sequence[float]) -> tuple[list[float], list[float]]:
    """A line over bins at their shares, broken where bins without voxels, which are not listed, lie between."""
    places, heights = list[float](), list[float]()
    for entry, share in zip(bins, shares, strict=True):
        if places and entry["from"] > places[-1]:
            places.append(entry["from"])
            heights.append(nan)
        places += [entry["from"], entry["to"]]
        heights += [share, share]
    return places, heights


def _cut(name: str) -> str:
    name = escaped(name)
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
