"""What queries are, as matrices: class embeddings, mask embeddings, and which class each answers for.

MaskMed Fig. 3 and 4 for any head and any number of stages. Rows come in the order and with the names they are given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage

from maskmed_zoo.report.canvas import Sheet
from maskmed_zoo.report.figure import label_colors

Array = NDArray[Any]
LETTER = 0.07
"""Width of a letter of 8 points in inches, at most."""
NO_OBJECT_COLOR = "#c8c8c8"


def class_embedding_figure(
    path: Path,
    title: str,
    stages: Sequence[tuple[str, Array]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    probabilities: bool,
) -> Path:
    """One panel (n k) per stage side by side: probabilities from 0 to 1, or embeddings about 0 with one scale."""
    across, down = _cell(len(columns)), _cell(len(rows))
    width, height = max(across * len(columns), 1.2), down * len(rows)
    left, top, gap = 0.3 + _longest(rows), 0.95, 0.25
    sheet = Sheet(left + len(stages) * (width + gap) + 1.0, top + height + _longest(columns) + 0.35)
    sheet.text(0.15, 0.12, title, fontsize=11)
    limit = max(float(np.abs(values).max()) for _, values in stages) or 1.0
    style = {"cmap": "viridis", "vmin": 0, "vmax": 1} if probabilities else _about_zero(limit)
    image: Any = None
    for index, (name, values) in enumerate(stages):
        axes = sheet.axes(left + index * (width + gap), top, width, height)
        image = axes.imshow(values, aspect="auto", interpolation="nearest", **style)
        axes.set_title(name, fontsize=8)
        _ticks(axes.xaxis, columns, across, rotation=90)
        _ticks(axes.yaxis, rows if index == 0 else [], down)
    bar = sheet.axes(left + len(stages) * (width + gap), top, 0.14, min(height, 2.4))
    _bar(bar, image, "probability of the class" if probabilities else "class embedding")
    return sheet.save(path)


def mask_embedding_figure(path: Path, title: str, stages: Sequence[tuple[str, Array]], rows: Sequence[str]) -> Path:
    """Above the embeddings (n c), channels sorted so that similar ones are neighbors; below the rows' cosines."""
    cell = _cell(len(rows))
    square, gap = max(cell * len(rows), 1.6), 0.85
    left, top, between = 0.3 + _longest(rows), 1.0, 0.8
    sheet = Sheet(left + len(stages) * (square + gap) + 0.1, top + 2 * square + between + _longest(rows) + 0.3)
    sheet.text(0.15, 0.12, title, fontsize=11)
    cosines: Any = None
    for index, (name, values) in enumerate(stages):
        at = left + index * (square + gap)
        axes = sheet.axes(at, top, square, square)
        limit = float(np.percentile(np.abs(values), 99)) or 1.0
        image = axes.imshow(
            values[:, similar_neighbors(values)], aspect="auto", interpolation="nearest", **_about_zero(limit)
        )
        axes.set_title(f"{name}\n{values.shape[1]} channels", fontsize=8)
        axes.set_xticks([])
        _ticks(axes.yaxis, rows if index == 0 else [], cell)
        _bar(sheet.axes(at + square + 0.06, top, 0.09, square), image, "")
        axes = sheet.axes(at, top + square + between, square, square)
        cosines = axes.imshow(cosine_similarity(values), cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
        axes.set_title("cosine similarity" if index == 0 else "", fontsize=8)
        _ticks(axes.xaxis, rows, cell, rotation=90)
        _ticks(axes.yaxis, rows if index == 0 else [], cell)
    at = left + len(stages) * (square + gap) - gap + 0.06
    _bar(sheet.axes(at, top + square + between, 0.09, square), cosines, "")
    return sheet.save(path)


@dataclass(frozen=True)
class Bindings:
    """`answers[row][case]` is a class or None; `purities` and `counts` (answers that are not None) belong to rows."""

    answers: Sequence[Sequence[int | None]]
    purities: Sequence[float | None]
    counts: Sequence[int]
    mean: float | None


@dataclass(frozen=True)
class Served:
    """`queries[row][case]`: the query whose mask lies best on a label's reference, and its Dice; None without.

    `usual` is the most frequent query of each of `labels`.
    """

    labels: Sequence[int]
    usual: Sequence[int | None]
    queries: Sequence[Sequence[tuple[int, float] | None]]
    mean: float | None


def binding_figure(
    path: Path,
    title: str,
    bindings: Bindings,
    served: Served | None = None,
    *,
    rows: Sequence[str],
    cases: Sequence[str],
    classes: Sequence[str],
) -> Path:
    """Left: query by image, the color being the class. Right: label by image, the query that serves the label."""
    colors = label_colors(len(classes))
    used = sorted({k for row in bindings.answers for k in row if k is not None} | set(served.labels if served else ()))
    box, line = max(0.24, min(0.6, 6 / len(cases))), _cell(len(rows))
    names, width = _longest(cases), max(box * len(cases), 1.7)
    left, top, height = 0.3 + _longest(rows), 0.95, line * len(rows)
    purity_at = left + width + 0.12
    second = purity_at + 1.5 + _longest([classes[k] for k in (served.labels if served else ())])
    wide = max(0.5, box)
    legend_at = second + max(wide * len(cases), 2.9) + 0.3 if served else purity_at + 1.6
    row_height = 0.36
    tallest = max(height, row_height * len(served.labels) if served else 0, 0.2 * (len(used) + 1))
    sheet = Sheet(legend_at + 0.4 + _longest([*classes, "no object or empty"]), top + tallest + names + 0.3)
    sheet.text(0.15, 0.12, title, fontsize=11)
    axes = sheet.axes(left, top, width, height)
    axes.imshow(_painted(bindings.answers, colors), aspect="auto", interpolation="nearest")
    _grid(axes, len(rows), len(cases))
    axes.set_title("class each query answers for", fontsize=8, loc="left")
    _ticks(axes.yaxis, rows, line)
    _ticks(axes.xaxis, cases, width / len(cases), rotation=90)
    sheet.text(purity_at, top - 0.05, f"purity, times bound\n(mean {_number(bindings.mean)})", va="bottom")
    for index, (value, count) in enumerate(zip(bindings.purities, bindings.counts, strict=True)):
        text = "never bound" if value is None else f"{value:.2f}   {count}×"
        size = min(8.0, line * 60)
        sheet.text(purity_at, top + (index + 0.5) * line, text, va="center", fontsize=size)
    if served:
        axes = sheet.axes(second, top, wide * len(cases), row_height * len(served.labels))
        _draw_served(axes, served, colors)
        _ticks(axes.yaxis, [classes[k] for k in served.labels], row_height)
        _ticks(axes.xaxis, cases, wide, rotation=90)
    entries = [(classes[k], colors[k]) for k in used] + [("no object or empty", NO_OBJECT_COLOR)]
    sheet.legend(legend_at, top, entries)
    return sheet.save(path)


def _draw_served(axes: Any, served: Served, colors: Sequence[str]) -> None:
    """Query and Dice of label by image; in the label's color, stronger with Dice, where it is the usual query."""
    answers = [
        [label if cell and cell[0] == often else None for cell in row]
        for label, row, often in zip(served.labels, served.queries, served.usual, strict=True)
    ]
    dice = np.array([[cell[1] if cell else 0 for cell in row] for row in served.queries])
    axes.imshow(_painted(answers, colors), aspect="auto", interpolation="nearest", alpha=0.1 + 0.5 * dice)
    _grid(axes, len(answers), len(answers[0]))
    for y, row in enumerate(served.queries):
        for x, cell in enumerate(row):
            text = f"q{cell[0]}\n{cell[1]:.2f}" if cell else "–"
            axes.text(x, y, text, ha="center", va="center", fontsize=6.5)
    title = f"query whose mask fits the reference best,\nand its Dice (purity {_number(served.mean)})"
    axes.set_title(title, fontsize=8, loc="left")


def cosine_similarity(values: Array) -> Array:
    """(n n) cosines between the rows of (n c); 0 for a row of zeros."""
    length = np.linalg.norm(values, axis=1, keepdims=True)
    unit = values / np.where(length > 0, length, 1)
    return unit @ unit.T


def similar_neighbors(values: Array) -> Array:
    """An order of the columns of (n c) in which similar ones are neighbors: average linkage of distances."""
    if values.shape[1] == 1:
        return np.zeros(1, int)
    return leaves_list(linkage(values.T, "average", optimal_ordering=True))


def _painted(answers: Sequence[Sequence[int | None]], colors: Sequence[str]) -> Array:
    """(rows columns 3) colors of classes."""
    from matplotlib.colors import to_rgb

    return np.array([[to_rgb(NO_OBJECT_COLOR if k is None else colors[k]) for k in row] for row in answers])


def _grid(axes: Any, rows: int, columns: int) -> None:
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="minor", length=0)


def _ticks(axis: Any, names: Sequence[str], cell: float, rotation: int = 0) -> None:
    """Every name, or every so many where cells are too small for one."""
    size = min(8.0, max(4.5, cell * 60))
    step = max(1, math.ceil(size / (cell * 72)))
    axis.set_ticks(range(0, len(names), step), labels=list(names[::step]), fontsize=size, rotation=rotation)
    axis.set_tick_params(length=2)


def _bar(axes: Any, image: Any, label: str) -> None:
    bar = axes.figure.colorbar(image, cax=axes)
    bar.ax.tick_params(labelsize=7, length=2)
    bar.set_label(label, fontsize=8)


def _about_zero(limit: float) -> dict[str, Any]:
    return {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}


def _cell(count: int) -> float:
    """Edge of a cell in inches for so many rows."""
    return min(0.26, max(0.05, 7 / max(count, 1)))


def _longest(texts: Sequence[str]) -> float:
    """Room for the longest text in inches."""
    return LETTER * max((len(text) for text in texts), default=0) + 0.1


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
