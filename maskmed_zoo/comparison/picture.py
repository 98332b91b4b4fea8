"""The differences of a comparison with their intervals, one panel per metric."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskmed_zoo.evaluation.statistics.holm import LEVEL
from maskmed_zoo.report.canvas import Sheet

PICTURE = "compare.png"
PANEL, ROW, MARGIN = 3.4, 0.21, 0.35
"""Width of a panel, height of a row, and space around, in inches."""
MOST_ROWS = 90
"""Rows beyond which labels are left out."""
MOST_PAIRS = 150
"""Pairs that are drawn, the first ones."""
LONGEST = 34
"""Characters of a name that are drawn."""
SHOWN, NOT_SHOWN = "#1f4e9c", "#9a9a9a"
"""Colours of a difference that a corrected test tells from chance, and of one that it does not."""


def draw(comparison: Mapping[str, Any], path: Path) -> Path:
    """Write a PNG: a row for every pair, up to `MOST_PAIRS`, and, below it, for each of its labels; a panel for every
    metric.

    Raises `UserError` without matplotlib.
    """
    rows = _rows(comparison)
    texts = [f"{'    ' * is_label}{text}" for text, is_label, _ in rows]
    left = MARGIN + 0.075 * max(map(len, texts))
    metrics = comparison["metrics"]
    height = ROW * (len(rows) + 1)
    sheet = Sheet(left + len(metrics) * (PANEL + MARGIN), height + 1.85)
    for column, (name, metric) in enumerate(metrics.items()):
        axes = sheet.axes(left + column * (PANEL + MARGIN), 0.55, PANEL, height)
        _panel(axes, metric, [found[name] for *_, found in rows])
        axes.set_yticks(range(len(rows)), texts if column == 0 else [""] * len(rows), fontsize=8)
        for tick, (_, is_label, _) in zip(axes.get_yticklabels(), rows, strict=True):
            tick.set(fontweight="normal" if is_label else "bold", ha="left")
        axes.tick_params(axis="y", length=0, pad=72 * (left - MARGIN / 2))
    below = 0.55 + height + 0.62
    entries = [("told from chance (Holm, 5 %)", SHOWN), ("not told from chance", NOT_SHOWN)]
    sheet.legend(MARGIN, below, entries)
    caption = "First minus second, 95 % intervals: over cases, and over runs too where both sides have several."
    pairs = len(next(iter(metrics.values()))["differences"])
    if pairs > MOST_PAIRS:
        caption = f"The first {MOST_PAIRS} of {pairs} pairs. {caption}"
    sheet.text(MARGIN, below + 0.42, caption, fontsize=7)
    return sheet.save(path)


def _rows(comparison: Mapping[str, Any]) -> list[tuple[str, bool, dict[str, Mapping[str, Any]]]]:
    """Text, whether it is of a label, and the row of every metric: pair after pair, each with its labels."""
    metrics = comparison["metrics"]
    first = next(iter(metrics.values()))
    labels, pairs = comparison["labels"], first["differences"]
    with_labels = len(pairs) * (len(labels) + 1) <= MOST_ROWS
    rows: list[tuple[str, bool, dict[str, Mapping[str, Any]]]] = []
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
    unit = f", {metric['unit']}" if metric["unit"] else ""
    axes.set_title(f"{metric['title']}{unit}", fontsize=10, pad=6)
    side = "right" if metric["higher_is_better"] else "left"
    axes.set_xlabel(f"{side} of 0: the first is better", fontsize=8)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
