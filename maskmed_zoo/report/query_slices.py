"""Where queries look, drawn on slices of the image: attention over tokens, and sampling points of deformable blocks.

MaskMed Fig. 5 for any head and any number of stages. Conventions are those of `report.figure`: arrays (z y x) in RAS
order, radiological pictures, voxels in proportion. Places are in mm from the window's corner of lowest indices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskmed_zoo.contracts import Size3, Spacing3
from maskmed_zoo.report.canvas import Sheet
from maskmed_zoo.report.figure import label_colors, mark_sides

Array = NDArray[Any]
PANEL, GAP, SIDE = 2.1, 0.08, 1.55
"""Inches: a panel's width, the gap between panels, the room for the names of rows."""
PLANES = (("axial", 0, 1, 2, "R", "L"), ("coronal", 1, 0, 2, "R", "L"), ("sagittal", 2, 0, 1, "A", "P"))
"""Name, axis cut, axes shown upwards and sideways, letters of the left and right side."""


@dataclass(frozen=True)
class Scene:
    """A window as seen: image and predicted labels (z y x), voxel size in mm, class names."""

    image: Array
    labels: Array
    spacing: Spacing3
    classes: Sequence[str]


@dataclass(frozen=True)
class Looker:
    """A query, the label it answers for, and the voxel whose axial slice is drawn."""

    query: int
    label: int
    voxel: Size3


@dataclass(frozen=True)
class Sampled:
    """Points (m 3) mm, their shares of weight and levels (m), of the query in `voxel` centered at `center` (3) mm."""

    name: str
    voxel: Size3
    center: Array
    points: Array
    weights: Array
    levels: Array


def attention_figure(
    path: Path,
    title: str,
    scene: Scene,
    lookers: Sequence[Looker],
    blocks: Sequence[tuple[str, Array, Array | None]],
) -> Path:
    """One column per query, one row per block (name, weights (n d h w), prior (n d h w) or None); image on top.

    Color is attention over the query's largest in the block; ×: that largest over uniform attention. A cyan line
    encloses the tokens that the block's mask prior left open.
    """
    depth, height, width = (n * mm for n, mm in zip(scene.image.shape, scene.spacing, strict=True))
    panel, side, top = PANEL * height / width, SIDE, 0.95
    count, rows = len(lookers), len(blocks) + 1
    sheet = Sheet(max(side + count * (PANEL + GAP) + 1.0, 7.5), top + rows * (panel + GAP) + 0.55)
    sheet.text(0.15, 0.12, title, fontsize=11)
    colors = label_colors(len(scene.classes))
    last: Any = None
    for x, looker in enumerate(lookers):
        z = looker.voxel[0]
        for y in range(rows):
            axes = sheet.axes(side + x * (PANEL + GAP), top + y * (panel + GAP), PANEL, panel)
            _slice(axes, scene, 0, z)
            _outline(axes, scene, scene.labels[z] == looker.label, colors[looker.label])
            if y == 0:
                axes.set_title(f"{scene.classes[looker.label]}\nquery {looker.query}, slice {z}", fontsize=8, pad=4)
                mark_sides(axes)
                continue
            _, weights, prior = blocks[y - 1]
            last = _heat(axes, weights[looker.query], z, (depth, height, width), scene.image.shape[0])
            peak = float(weights[looker.query].max() * weights[looker.query].size)
            _note(axes, f"×{peak:.0f}" if peak >= 10 else f"×{peak:.1f}")
            if prior is not None:
                _prior(axes, prior[looker.query], scene, z)
    sheet.text(0.15, top + 0.1, "image and\nprediction")
    for y, (name, _, _) in enumerate(blocks, start=1):
        sheet.text(0.15, top + y * (panel + GAP) + 0.1, name)
    if last is not None:
        bar = sheet.axes(side + count * (PANEL + GAP) + 0.05, top + panel + GAP, 0.13, min(panel * 2, 2.5))
        sheet.figure.colorbar(last, cax=bar).set_label("attention / the query's largest in the block", fontsize=8)
        bar.tick_params(labelsize=7)
    caption = (
        "×: largest attention over uniform attention. Cyan: border of what the mask prior left open in this slice; "
        "colored: predicted label."
    )
    sheet.text(0.15, top + rows * (panel + GAP) + 0.1, caption)
    caption = "Axial slices; radiological convention: the patient's right (R) is on the left."
    sheet.text(0.15, top + rows * (panel + GAP) + 0.28, caption)
    return sheet.save(path)


def sampling_figure(path: Path, title: str, scene: Scene, sampled: Sequence[Sampled], levels: Sequence[int]) -> Path:
    """One row per query voxel, cut in three planes; all of its points are projected onto them.

    Color is the level, area the attention weight, a cross the query's center.
    """
    import matplotlib

    side, top, under = SIDE, 0.85, 0.75
    sheet = Sheet(side + 3 * (PANEL + GAP) + 2.2, top + len(sampled) * (PANEL + GAP) + under)
    sheet.text(0.15, 0.12, title, fontsize=11)
    shades = {
        level: matplotlib.colormaps["turbo"](0.08 + 0.84 * i / max(len(levels) - 1, 1))
        for i, level in enumerate(levels)
    }
    extent = np.multiply(scene.image.shape, scene.spacing)
    for y, one in enumerate(sampled):
        # Points can lie far outside; of that, a margin of a tenth of the window is shown.
        reach = min(1.1 * float(np.abs(one.points - one.center).max()), 0.6 * float(extent.max()))
        reach = max(reach, 4 * max(scene.spacing))
        at = top + y * (PANEL + GAP)
        sheet.text(0.15, at + 0.1, f"{one.name}\nvoxel {one.voxel}\nwithin {reach:.0f} mm")
        for x, (name, axis, up, sideways, left, right) in enumerate(PLANES):
            axes = sheet.axes(side + x * (PANEL + GAP), at, PANEL, PANEL)
            _slice(axes, scene, axis, one.voxel[axis])
            _points(axes, one, up, sideways, shades)
            axes.set_xlim(one.center[sideways] + reach, one.center[sideways] - reach)
            axes.set_ylim(one.center[up] - reach, one.center[up] + reach)
            if y == 0:
                axes.set_title(name, fontsize=9)
            mark_sides(axes, left, right)
        share = [f"level {e}: {one.weights[one.levels == e].sum():.0%}, {_distance(one, e):.0f} mm" for e in levels]
        sheet.text(side + 3 * (PANEL + GAP) + 0.1, at + 0.1, "share of weight, mean distance", fontsize=7)
        for index, (text, level) in enumerate(zip(share, levels, strict=True)):
            sheet.text(side + 3 * (PANEL + GAP) + 0.1, at + 0.3 + 0.19 * index, "●", color=shades[level])
            sheet.text(side + 3 * (PANEL + GAP) + 0.27, at + 0.3 + 0.19 * index, text)
    at = top + len(sampled) * (PANEL + GAP) + 0.1
    sheet.text(0.15, at, "Points of all heads, projected onto the slice; area: attention weight; cross: the query.")
    size = " × ".join(f"{mm:.0f}" for mm in extent)
    caption = f"Level 0 is the finest. Outside of the window of {size} mm (z y x), black here, points read zeros."
    sheet.text(0.15, at + 0.18, caption)
    return sheet.save(path)


def _slice(axes: Any, scene: Scene, axis: int, index: int) -> None:
    """A gray slice in mm, seen as radiologists do: sideways axis falling, upward axis rising."""
    plane = scene.image.take(index, axis)
    _, up, sideways = next((name, u, s) for name, a, u, s, _, _ in PLANES if a == axis)
    extent = (0, plane.shape[1] * scene.spacing[sideways], 0, plane.shape[0] * scene.spacing[up])
    low, high = np.percentile(scene.image, (1, 99))
    axes.imshow(plane, cmap="gray", vmin=low, vmax=high, extent=extent, origin="lower", interpolation="bilinear")
    axes.set(xticks=[], yticks=[], facecolor="black", xlim=(extent[1], 0), ylim=(0, extent[3]), aspect="equal")


def _outline(axes: Any, scene: Scene, mask: Array, color: Any) -> None:
    """The border of a mask (y x) of an axial slice."""
    if mask.any():
        y, x = ((np.arange(-1, n + 1) + 0.5) * mm for n, mm in zip(mask.shape, scene.spacing[1:], strict=True))
        axes.contour(x, y, np.pad(mask.astype(float), 1), levels=[0.5], colors=[color], linewidths=1.2)


def _heat(axes: Any, weights: Array, z: int, extent: Sequence[float], depth: int) -> Any:
    """Tokens (d h w) of the slice's plane, more opaque where attention is stronger."""
    plane = weights[int((z + 0.5) / depth * weights.shape[0])] / weights.max()
    return axes.imshow(
        plane,
        cmap="inferno",
        vmin=0,
        vmax=1,
        alpha=0.9 * plane**0.7,
        extent=(0, extent[2], 0, extent[1]),
        origin="lower",
        interpolation="nearest",
    )


def _prior(axes: Any, prior: Array, scene: Scene, z: int) -> None:
    """The border between tokens that are open, at least by half, and those that are not."""
    if (prior >= 0.5).all():
        _note(axes, "open everywhere", 0.03, 0.97, "top")
        return
    grid = prior.shape
    depth, height, width = scene.image.shape
    plane = prior[int((z + 0.5) / depth * grid[0])]
    rows, columns = ((np.arange(n) * g) // n for n, g in zip((height, width), grid[1:], strict=True))
    _outline(axes, scene, plane[rows][:, columns] >= 0.5, "cyan")


def _points(axes: Any, one: Sampled, up: int, sideways: int, shades: dict[int, Any]) -> None:
    largest = float(one.weights.max()) or 1.0
    for level, shade in reversed(shades.items()):
        chosen = one.levels == level
        axes.scatter(
            one.points[chosen, sideways],
            one.points[chosen, up],
            s=60 * one.weights[chosen] / largest + 2,
            color=[shade],
            alpha=0.8,
            linewidths=0,
        )
    axes.plot(one.center[sideways], one.center[up], "+", color="white", markersize=11, markeredgewidth=1.6)


def _distance(one: Sampled, level: int) -> float:
    return float(np.linalg.norm(one.points[one.levels == level] - one.center, axis=1).mean())


def _note(axes: Any, text: str, x: float = 0.03, y: float = 0.03, va: str = "bottom") -> None:
    from matplotlib.patheffects import withStroke

    drawn = axes.text(x, y, text, color="white", fontsize=7, va=va, transform=axes.transAxes)
    drawn.set_path_effects([withStroke(linewidth=2, foreground="black")])
