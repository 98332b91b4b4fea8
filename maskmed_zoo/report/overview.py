"""One picture of the cases that were segmented worst, in the middle and best: where prediction and reference differ.

A case is a row: a slice of the image, then the part of it that has labels with those of the reference, and with those
predicted inside the outlines of the reference. The slice is the one with most voxels that differ, or with most labelled
ones where none differs: an axial one, or across the axis along which voxels are by far the longest. Conventions are
those of `report.figure`: arrays (z y x) in RAS order, radiological pictures, voxels in proportion in millimetres.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskmed_zoo.errors import DataError, escaped
from maskmed_zoo.report.canvas import Sheet, require_matplotlib
from maskmed_zoo.report.figure import label_colors, label_overlay, mark_sides
from maskmed_zoo.report.query_slices import PLANES, Plane
from maskmed_zoo.settings import Spacing3

Array = NDArray[Any]
PANEL, GAP, SIDE, TOP = 2.6, 0.08, 1.75, 0.65
"""Inches: a panel's side, the gap between panels, the room for words beside a row and above all."""
FAR_LONGER = 2.0
"""Times as long as along any other axis voxels are where slices are cut across this one."""
MARGIN, LEAST_MARGIN = 0.15, 8.0
"""What is shown around labels: a share of their extent, and mm."""
NEARLY_ALL = 0.9
"""Share of a slice's rows and columns from which the part shown is not marked in it."""
LONGEST_LINE = 24
"""Characters beside a row."""


@dataclass(frozen=True, eq=False)
class ShownCase:
    """A case under a heading, and what is said of it, a line each; arrays (z y x), spacing (z, y, x) in mm.

    Nothing differs where the reference is `ignore`, nor where either map has one of the labels `unannotated`.
    """

    heading: str
    lines: Sequence[str]
    image: Array | None
    reference: Array
    prediction: Array
    spacing: Spacing3
    ignore: int | None = None
    unannotated: Collection[int] = ()

    @property
    def differs(self) -> Array:
        """Where the maps have different labels (z y x)."""
        differs = self.prediction != self.reference
        if self.ignore is not None:
            differs &= self.reference != self.ignore
        for value in self.unannotated:
            differs &= (self.reference != value) & (self.prediction != value)
        return differs


def overview_figure(path: Path, title: str, cases: Iterable[ShownCase], labels: Mapping[str, int]) -> Path:
    """Write a PNG with a row per case; `labels` are names and values, the colours in this order.

    Of each case its slice is kept and nothing else, so that an iterator needs memory for one at a time.
    Raises `DataError` for no case or arrays of different shapes, `UserError` without matplotlib, `OutputError`.
    """
    require_matplotlib()
    views = list(map(_View.of, cases))  # a loop would hold a case while the next one is read
    if not views:
        raise DataError("no case to draw")
    colors = dict(zip(labels.values(), label_colors(len(labels)), strict=True))
    columns = ["image", "reference", "prediction"]
    if all(view.image is None for view in views):
        columns.remove("image")
    shown = sorted({int(value) for view in views for value in view.values} - {0})
    names = {value: name for name, value in labels.items()}
    entries = [(_cut(names.get(value, f"label {value}")), colors.get(value, "#ffffff")) for value in shown]
    width = SIDE + len(columns) * (PANEL + GAP) + 0.15
    across = max(1, int((width - 0.3) // (0.45 + 0.085 * max((len(text) for text, _ in entries), default=1))))
    below = TOP + len(views) * (PANEL + GAP) + 0.1
    sheet = Sheet(width, below + 0.24 * -(-len(entries) // across) + 0.5)
    sheet.text(0.15, 0.12, title, fontsize=11)
    for row, view in enumerate(views):
        top = TOP + row * (PANEL + GAP)
        lines = [*view.lines, f"{view.plane.name} slice {view.index}", f"{view.differing} voxels differ in it"]
        sheet.text(0.15, top + 0.05, view.heading, fontsize=9, fontweight="bold")
        sheet.text(0.15, top + 0.27, "\n".join(map(_cut, lines)), linespacing=1.5)
        for column, name in enumerate(columns):
            axes = sheet.axes(SIDE + column * (PANEL + GAP), top, PANEL, PANEL)
            _draw(axes, view, name, colors)
            if row == 0:
                words = {"reference": "reference, labelled part", "prediction": "prediction, reference outlined"}
                axes.set_title(words.get(name, name), fontsize=9, pad=5)
    sheet.legend(0.15, below, entries, columns=across)
    which = "most voxels that differ, else with most labelled ones"
    caption = f"Slices with {which}, as radiologists see them: the patient's right or front is on the left."
    sheet.text(0.15, sheet.height - 0.28, caption, fontsize=7)
    return sheet.save(path)


@dataclass(frozen=True, eq=False)
class _View:
    """A slice of a case, first row at the top: image and label maps (rows columns), and the part that has labels."""

    heading: str
    lines: Sequence[str]
    plane: Plane
    index: int
    differing: int
    image: Array | None
    limits: tuple[float, float]
    reference: Array
    prediction: Array
    mm: tuple[float, float]
    part: tuple[slice, slice]

    @classmethod
    def of(cls, case: ShownCase) -> _View:
        """The slice to show of a case."""
        if any(a is not None and a.shape != case.reference.shape for a in (case.image, case.prediction)):
            raise DataError(f"case {', '.join(case.lines)}: image and label maps must be 3-D (z y x) of one shape")
        plane = _plane(case.spacing)
        others = tuple(axis for axis in range(3) if axis != plane.axis)
        differing = case.differs.sum(others)
        labelled = ((case.reference > 0) | (case.prediction > 0)).sum(others)
        counts = differing if differing.any() else labelled
        index = int(counts.argmax()) if counts.any() else len(counts) // 2
        reference, prediction = (side.take(index, plane.axis)[::-1, ::-1] for side in (case.reference, case.prediction))
        image, limits = None, (0.0, 1.0)
        if case.image is not None:
            image = case.image.take(index, plane.axis)[::-1, ::-1]
            low, high = np.percentile(image, (1, 99))
            limits = float(low), float(high)
        mm = case.spacing[plane.up], case.spacing[plane.sideways]
        part = _part((reference > 0) | (prediction > 0), mm)
        shown = (image, limits, reference, prediction, mm, part)
        return cls(case.heading, case.lines, plane, index, int(differing[index]), *shown)

    @property
    def values(self) -> Array:
        """Labels in sight."""
        return np.unique(np.concatenate([np.unique(self.reference), np.unique(self.prediction)]))


def _plane(spacing: Spacing3) -> Plane:
    """The plane of slices: across the axis of the longest voxels where these are far longer, else axial."""
    axis = int(np.argmax(spacing))
    return PLANES[axis if spacing[axis] >= FAR_LONGER * sorted(spacing)[1] else 0]


def _part(mask: Array, mm: tuple[float, float]) -> tuple[slice, slice]:
    """The part of a slice around a mask (rows columns), a square in mm as far as it goes; all of an empty slice."""
    if not mask.any():
        return slice(0, mask.shape[0]), slice(0, mask.shape[1])
    ends = [np.flatnonzero(mask.any(1 - axis))[[0, -1]] for axis in (0, 1)]
    extents = [(last - first + 1) * size for (first, last), size in zip(ends, mm, strict=True)]
    side = max(extents) + 2 * max(LEAST_MARGIN, MARGIN * max(extents))
    part: list[slice] = []
    for (first, last), size, length in zip(ends, mm, mask.shape, strict=True):
        voxels = min(length, round(side / size))
        start = int(np.clip((first + last + 1 - voxels) // 2, 0, length - voxels))
        part.append(slice(start, start + voxels))
    return part[0], part[1]


def _draw(axes: Any, view: _View, column: str, colors: Mapping[int, str]) -> None:
    """Fill one panel."""
    from matplotlib.patches import Rectangle

    rows, columns = view.part if column != "image" else (slice(0, n) for n in view.reference.shape)
    height, width = view.mm[0], view.mm[1]
    extent = (columns.start * width, columns.stop * width, rows.stop * height, rows.start * height)
    axes.set(xticks=[], yticks=[], facecolor="black", anchor="N")
    if view.image is not None:
        low, high = view.limits
        style: dict[str, Any] = {"cmap": "gray", "vmin": low, "vmax": high, "interpolation": "bilinear"}
        axes.imshow(view.image[rows, columns], extent=extent, aspect="equal", **style)
    shares = [(edge.stop - edge.start) / n for edge, n in zip(view.part, view.reference.shape, strict=True)]
    if column == "image" and min(shares) < NEARLY_ALL:
        top, left = (edge.start * mm for edge, mm in zip(view.part, view.mm, strict=True))
        down, across = ((edge.stop - edge.start) * mm for edge, mm in zip(view.part, view.mm, strict=True))
        axes.add_patch(Rectangle((left, top), across, down, fill=False, edgecolor="white", linewidth=0.8))
    if column != "image":
        labels = view.reference if column == "reference" else view.prediction
        picture = label_overlay(labels[rows, columns], colors)
        axes.imshow(picture, extent=extent, interpolation="nearest", aspect="equal")
    if column == "prediction":
        for line in _outlines(view.reference[rows, columns], view.mm, (extent[3], extent[0])):
            axes.add_collection(line)
    axes.set(xlim=extent[:2], ylim=extent[2:])
    mark_sides(axes, view.plane.left, view.plane.right)


def _outlines(labels: Array, mm: tuple[float, float], start: tuple[float, float]) -> list[Any]:
    """Black and white lines along the edges between voxels of different labels (rows columns), from `start`, mm."""
    from matplotlib.collections import LineCollection

    row, column = np.nonzero(labels[1:] != labels[:-1])
    level = [(row + 1, column), (row + 1, column + 1)]
    row, column = np.nonzero(labels[:, 1:] != labels[:, :-1])
    upright = [(row, column + 1), (row + 1, column + 1)]
    ends = [np.concatenate([np.stack(here, 1), np.stack(there, 1)]) for here, there in zip(level, upright, strict=True)]
    segments = np.stack(ends, 1) * mm + np.asarray(start)  # (lines ends row-and-column)
    styles = (("black", 2.2), ("white", 1.0))
    return [LineCollection(list(segments[..., ::-1]), colors=color, linewidths=width) for color, width in styles]


def _cut(text: str) -> str:
    text = escaped(text)
    return text if len(text) <= LONGEST_LINE else f"{text[: LONGEST_LINE - 1]}…"
