"""The differences of a comparison with their intervals, one panel per metric, or one per metric and pair."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskmed_zoo.evaluation.statistics.holm import LEVEL
from maskmed_zoo.report.canvas import Sheet

PICTURE = "compare.png"
PANEL, ROW, MARGIN, TOP, BETWEEN = 3.4, 0.21, 0.35, 0.55, 0.3
"""Width of a panel, height of a row, and space around, above and between panels, in inches."""
SQUEEZED = 5
"""Times as far as another pair goes from 0 one may go on the same scale."""
MOST_ROWS = 90
"""Rows beyond which labels are left out."""
MOST_PAIRS = 150
"""Pairs that are drawn, the first ones."""
LONGEST = 34
"""Characters of a name that are drawn."""
SHOWN, NOT_SHOWN = "#1f4e9c", "#9a9a9a"
"""Colours of a difference that a corrected test tells from chance, and of one that it does not."""
Row = tuple[str, bool, dict[str, Mapping[str, Any]]]
"""Text, whether it is of a label, and the row of every metric."""


def draw(comparison: Mapping[str, Any], path: Path) -> Path:
    """Write a PNG: a row for every pair, up to `MOST_PAIRS`, and, below it, for each of its labels; a panel for every
    metric. Where the differences of pairs are of very different size, every pair has a scale of its own.

    Raises `UserError` without matplotlib.
    """
    blocks = _blocks(comparison)
    texts = [f"{'    ' * is_label}{text}" for block in blocks for text, is_label, _ in block]
    left = MARGIN + 0.075 * max(map(len, texts))
    metrics = comparison["metrics"]
    heights = [ROW * (len(block) + 1) for block in blocks]
    below = TOP + sum(heights) + BETWEEN * (len(blocks) - 1) + 0.62
    sheet = Sheet(left + len(metrics) * (PANEL + MARGIN), below + 0.98)
    for column, (name, metric) in enumerate(metrics.items()):
        top = TOP
        for block, height in zip(blocks, heights, strict=True):
            axes = sheet.axes(left + column * (PANEL + MARGIN), top, PANEL, height)
            _panel(axes, metric, [found[name] for *_, found in block])
            shown = [f"{'    ' * is_label}{text}" for text, is_label, _ in block]
            axes.set_yticks(range(len(block)), shown if column == 0 else [""] * len(block), fontsize=8)
            for tick, (_, is_label, _) in zip(axes.get_yticklabels(), block, strict=True):
                tick.set(fontweight="normal" if is_label else "bold", ha="left")
            axes.tick_params(axis="y", length=0, pad=72 * (left - MARGIN / 2))
            if block is blocks[0]:
                unit = f", {metric['unit']}" if metric["unit"] else ""
                axes.set_title(f"{metric['title']}{unit}", fontsize=10, pad=6)
            if block is blocks[-1]:
                side = "right" if metric["higher_is_better"] else "left"
                axes.set_xlabel(f"{side} of 0: the first is better", fontsize=8)
            top += height + BETWEEN
    entries = [("p < 0.05", SHOWN), ("p of 0.05 or more", NOT_SHOWN)]
    sheet.legend(MARGIN, below, entries)
    sheet.text(MARGIN, below + 0.42, "\n".join(_caption(comparison, len(blocks) > 1)), fontsize=7, linespacing=1.4)
    return sheet.save(path)


def _caption(comparison: Mapping[str, Any], own_scales: bool) -> list[str]:
    """What intervals and colours are of, and what is not drawn or drawn otherwise."""
    rows = next(iter(comparison["metrics"].values()))["differences"]
    over = "cases" if comparison["patients"] is None else "patients"
    alone, too = f"the signed-rank test over {over}", f"the test over {over} and runs"
    several = {min(row["seeds"]) > 1 for row in rows}
    test = {(False,): alone, (True,): too}.get((*several,), f"{too} where both have several runs, else {alone}")
    intervals = f"over {over}{', and over runs too where both have several' if True in several else ''}"
    lines = [f"First minus second, 95 % intervals {intervals}.", f"p: {test}, Holm-corrected."]
    if own_scales:
        lines.append("Differences are of very different size: every pair has a scale of its own.")
    if len(rows) > MOST_PAIRS:
        lines.append(f"The first {MOST_PAIRS} of {len(rows)} pairs.")
    return lines


def _blocks(comparison: Mapping[str, Any]) -> list[list[Row]]:
    """Rows that share a scale: all of them, or those of each pair."""
    rows = _rows(comparison)
    starts = [place for place, (_, is_label, _) in enumerate(rows) if not is_label]
    pairs = [rows[start:end] for start, end in zip(starts, [*starts[1:], len(rows)], strict=True)]
    for name in comparison["metrics"]:
        reaches = [max(_reach(found[name]) for *_, found in pair) for pair in pairs]
        reaches = [reach for reach in reaches if reach > 0]
        if reaches and max(reaches) > SQUEEZED * min(reaches):
            return pairs
    return [rows]


def _reach(row: Mapping[str, Any]) -> float:
    """How far a row goes from 0."""
    return max(map(abs, (row["mean"] or 0.0, *(row["interval"] or ()))))


def _rows(comparison: Mapping[str, Any]) -> list[Row]:
    """Pair after pair, each with its labels."""
    metrics = comparison["metrics"]
    first = next(iter(metrics.values()))
    labels, pairs = comparison["labels"], first["differences"]
    with_labels = len(pairs) * (len(labels) + 1) <= MOST_ROWS
    rows: list[Row] = []
    for index, pair in enumerate(pairs[:MOST_PAIRS]):
        title = f"{_cut(pair['first'])} − {_cut(pair['second'])}"
        rows.append((title, False, {name: metric["differences"][index] for name, metric in metrics.items()}))
        for place, label in enumerate(labels if with_labels else []):
            at = index * len(labels) + place
            rows.append(
                (_cut(label), True, {name: metric["label_differences"][at] for name, metric in metrics.items()})
            )
    return rows


def _panel(axes: Any, metric: Mapping[str, Any], rows: list[Mapping[str, Any]]) -> None:
    axes.axvline(0, color="black", linewidth=0.8)
    for place, row in enumerate(rows):
        if row["mean"] is None:
            continue
        p = row["p_holm"] if row["p_methods_holm"] is None else row["p_methods_holm"]
        style = {"color": SHOWN if p < LEVEL else NOT_SHOWN, "linewidth": 1.2 if row["label"] else 2.4}
        if row["interval"] is not None:
            axes.plot(row["interval"], (place, place), solid_capstyle="butt", **style)
        axes.plot(row["mean"], place, marker="o" if row["label"] else "D", markersize=4, **style)
    axes.set(ylim=(len(rows) - 0.4, -0.6))
    axes.tick_params(axis="x", labelsize=8)
    axes.locator_params(axis="x", nbins=5)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
