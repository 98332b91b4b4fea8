"""One picture of image, reference and prediction side by side, for the eye of a physician.

Conventions: arrays are (z y x) in RAS order. Pictures are radiological: seen from the patient's feet or front, the
patient's right on the left; front or head at the top. Voxels keep their proportions in millimetres.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskmed_zoo.errors import DataError
from maskmed_zoo.report.canvas import add_legend, require_matplotlib, save
from maskmed_zoo.settings import Spacing3

Array = NDArray[Any]
PANEL_WIDTH = 3.0
"""Width of a panel in inches."""

_FIRST_COLORS = (
    *("#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#42d4f4", "#f032e6", "#bfef45", "#9a6324", "#fabed4"),
    *("#469990", "#dcbeff", "#aaffc3", "#808000", "#ffd8b1", "#911eb4"),
)


def comparison_figure(
    path: Path,
    rows: Sequence[tuple[str, Array, Array | None, Array]],
    label_names: Sequence[str],
    spacing: Spacing3,
    window: tuple[float, float] | None = None,
) -> Path:
    """Write a PNG with two rows per case, an axial and a coronal slice, of image, reference and prediction.

    `rows` holds (name, image, reference or None, prediction), arrays (z y x) in RAS order with label maps of integers;
    `label_names` name the values 0, 1, 2, … ('background' may be left out); `spacing` is (z, y, x) in mm for all rows;
    `window` is the (lowest, highest) intensity shown, such as (-160, 240) HU, else the 1st and 99th percentile. Shown
    are the axial slice with most foreground and the coronal slice with most labels, by the reference where there is
    one. Raises `DataError` for no rows or unequal shapes, `UserError` without matplotlib.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not rows:
        raise DataError("no case to draw")
    for name, image, reference, prediction in rows:
        if any(a is not None and (a.ndim != 3 or a.shape != image.shape) for a in (image, reference, prediction)):
            raise DataError(f"case '{name}': image, reference and prediction must be 3-D (z y x) of one shape")
    names = [*([] if label_names[0] == "background" else ["background"]), *label_names]
    colors = label_colors(len(names))

    views = [view for row in rows for view in _views(row, spacing)]
    columns = ["image", "reference", "prediction"]
    if all(reference is None for _, _, reference, _ in rows):
        columns.remove("reference")
    widest = max(view.width for view in views)
    heights = [PANEL_WIDTH * view.height / widest for view in views]
    shown = sorted({int(v) for view in views for a in view.labels.values() for v in np.unique(a)} - {0})
    entries = [
        (names[value] if value < len(names) else f"label {value}", colors[value % len(colors)]) for value in shown
    ]

    gap, left, top = 0.08, 0.35, 0.35
    width = left + len(columns) * (PANEL_WIDTH + gap)
    per_row = max(1, int(width // (0.45 + 0.085 * max((len(text) for text, _ in entries), default=1))))
    legend = 0.24 * -(-len(entries) // per_row)
    bottom = 0.75 + legend
    height = top + sum(heights) + gap * len(heights) + bottom
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)

    edge = height - top
    for index, (view, panel) in enumerate(zip(views, heights, strict=True)):
        edge -= panel + gap
        for column, title in enumerate(columns):
            box = (left + column * (PANEL_WIDTH + gap), edge, PANEL_WIDTH, panel)
            axes = figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
            _draw(axes, view, title, window, colors)
            if index == 0:
                axes.set_title(title, fontsize=11, pad=5)
            if column == 0:
                axes.set_ylabel(f"{view.case}\n{view.title}", fontsize=8, labelpad=4)
    anchor = (0.5, 0.55 / height)
    add_legend(figure, entries, loc="lower center", bbox_to_anchor=anchor, ncols=min(per_row, max(1, len(entries))))
    shown_range = "1st to 99th percentile" if window is None else f"{window[0]:g} to {window[1]:g}"
    caption = "Radiological convention: the patient's right (R) is on the left of every picture."
    figure.text(0.5, 0.3 / height, caption, ha="center", fontsize=8)
    caption = f"Axial slices seen from the feet, coronal slices from the front. Grey levels: {shown_range}."
    figure.text(0.5, 0.12 / height, caption, ha="center", fontsize=8)
    return save(figure, Path(path))


def label_colors(count: int) -> list[str]:
    """`count` hex colours, the first (background) black; hand-picked up to 16 labels, then spread around the circle."""
    colors = ["#000000", *_FIRST_COLORS][:count]
    for index in range(len(colors), count):
        rgb = colorsys.hsv_to_rgb(index * 0.618034 % 1, (1.0, 0.55)[index % 2], (0.95, 0.7, 0.85)[index % 3])
        colors.append("#" + "".join(f"{round(255 * part):02x}" for part in rgb))
    return colors


def chosen_slices(labels: Array) -> tuple[int, int]:
    """Index z of the axial slice of (z y x) with most foreground, y of the coronal one with most labels.

    Equal numbers of labels are decided by foreground; without any foreground both are the middle.
    """
    foreground = labels > 0
    if not foreground.any():
        return labels.shape[0] // 2, labels.shape[1] // 2
    kinds = [len(np.unique(labels[:, y])) for y in range(labels.shape[1])]
    area = foreground.sum((0, 2))
    return int(foreground.sum((1, 2)).argmax()), max(range(len(kinds)), key=lambda y: (kinds[y], area[y]))


@dataclass(frozen=True)
class _View:
    """A slice of a case as drawn, first row at the top: image and label maps by column, width and height in mm."""

    case: str
    title: str
    image: Array
    labels: dict[str, Array]
    width: float
    height: float
    limits: tuple[float, float]


def _views(row: tuple[str, Array, Array | None, Array], spacing: Spacing3) -> list[_View]:
    """The axial and the coronal view of a case."""
    name, image, reference, prediction = row
    z, y = chosen_slices(prediction if reference is None else reference)
    low, high = (float(limit) for limit in np.percentile(image, (1, 99)))
    views: list[_View] = []
    for title, cut, mm in ((f"axial z = {z}", np.s_[z], spacing[1]), (f"coronal y = {y}", np.s_[:, y], spacing[0])):
        labels = {"prediction": prediction} | ({} if reference is None else {"reference": reference})
        picture = image[cut][::-1, ::-1]
        views.append(
            _View(
                case=name,
                title=title,
                image=picture,
                labels={key: value[cut][::-1, ::-1] for key, value in labels.items()},
                width=picture.shape[1] * spacing[2],
                height=picture.shape[0] * mm,
                limits=(low, high),
            )
        )
    return views


def _draw(axes: Any, view: _View, column: str, window: tuple[float, float] | None, colors: list[str]) -> None:
    """Fill one panel: the grey slice, its labels half transparent with opaque borders, and the letters of the sides."""
    low, high = window or view.limits
    extent = (0, view.width, 0, view.height)
    axes.set(xticks=[], yticks=[], facecolor="black")
    if column != "image" and column not in view.labels:
        axes.text(0.5, 0.5, f"no {column}", color="white", ha="center", va="center", transform=axes.transAxes)
        return
    axes.imshow(view.image, cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="bilinear", aspect="equal")
    if column != "image":
        labels = view.labels[column]
        overlay = label_overlay(labels, {value: colors[value % len(colors)] for value in np.unique(labels).tolist()})
        axes.imshow(overlay, extent=extent, interpolation="nearest", aspect="equal")
    mark_sides(axes)


def label_overlay(labels: Array, colors: Mapping[int, str]) -> Array:
    """Labels (rows columns) as RGBA, half transparent with opaque borders; background clear, no color: white."""
    from matplotlib.colors import to_rgb

    padded = np.pad(labels, 1, mode="edge")
    neighbors = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    border = np.any([labels != neighbor for neighbor in neighbors], axis=0)
    values, places = np.unique(labels, return_inverse=True)
    palette = np.array([to_rgb(colors.get(value, "white")) for value in values.tolist()])
    opacity = np.where(labels > 0, np.where(border, 0.85, 0.45), 0.0)
    return np.dstack([palette[places.reshape(labels.shape)], opacity])


def mark_sides(axes: Any, left: str = "R", right: str = "L") -> None:
    """Letters in a panel's upper corners that say which side of the patient is there."""
    from matplotlib.patheffects import withStroke

    for x, letter in ((0.03, left), (0.97, right)):
        text = axes.text(x, 0.95, letter, color="white", fontsize=9, ha="center", va="center", transform=axes.transAxes)
        text.set_path_effects([withStroke(linewidth=2, foreground="black")])
