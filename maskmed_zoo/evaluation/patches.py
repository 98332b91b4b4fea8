"""The piece of surface between the centres of eight voxels: its area and its centre, for every way to fill the eight.

Source: marching cubes, Lorensen and Cline 1987, of a map that is 0 or 1, so that edges are cut in their middle. What
that leaves open is settled as in the tables of surface-distance 0.1 (Nikolov et al. 2018), whose areas these are for
every code and spacing, as the tests compare: a cube and its complement have the same surface; of four corners or fewer
those that meet on a face only across its diagonal are cut off one by one; and a loop of cuts that is not flat is
divided into the triangles with the largest area in a unit cube.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from maskmed_zoo.settings import Spacing3

CORNERS = np.array([[corner >> 2 & 1, corner >> 1 & 1, corner & 1] for corner in range(8)], np.float64)
"""(8 3): corner 4 z + 2 y + x of a cube; bit of the same number in a code."""
Edge = tuple[int, int]
"""Two corners, the lower number first."""


@dataclass(frozen=True, eq=False)
class Patches:
    """By code: `areas` (256) in mm², and `centres` (256 3) from the middle of the eight voxels, in voxels."""

    areas: NDArray[np.float64]
    centres: NDArray[np.float64]


@cache
def patches(spacing: Spacing3) -> Patches:
    """Area and centre of mass of the surface of each code, for voxels of this size (z, y, x) in mm."""
    areas, centres = np.zeros(256), np.zeros((256, 3))
    for code, triangles in _triangles().items():
        parts = _areas(triangles * np.asarray(spacing))
        areas[code] = parts.sum()
        centres[code] = parts @ (triangles.mean(1) - 0.5) / parts.sum()
    return Patches(areas, centres)


@cache
def _triangles() -> dict[int, NDArray[np.float64]]:
    """Triangles (n 3 3), three points (z y x) in a unit cube, of every code that has a surface."""
    found: dict[int, NDArray[np.float64]] = {}
    for code in range(1, 255):
        filled = {corner for corner in range(8) if code >> corner & 1}
        if len(filled) <= 4:
            loops = [np.array([CORNERS[list(edge)].mean(0) for edge in loop]) for loop in _loops(filled)]
            found[code] = found[255 - code] = np.concatenate([_divided(loop) for loop in loops])
    return found


def _loops(filled: set[int]) -> Iterator[list[Edge]]:
    """The closed ways around filled corners, each as the edges that it cuts.

    A face leads from where its outline enters a filled corner to where it leaves again; the next face enters there.
    """
    leads: dict[Edge, Edge] = {}
    for face in _faces():
        for index in range(4):
            if face[index - 1] not in filled and face[index] in filled:
                around = [face[(index + step) % 4] for step in range(4)]
                last = next(a for a, b in pairwise(around) if b not in filled)
                leads[_edge(face[index - 1], face[index])] = _edge(last, around[around.index(last) + 1])
    while leads:
        loop = [next(iter(leads))]
        while loop[-1] in leads:
            loop.append(leads.pop(loop[-1]))
        yield loop[1:]


@cache
def _faces() -> tuple[tuple[int, ...], ...]:
    """Corners of the six faces, each in the same sense as seen from outside."""
    faces: list[tuple[int, ...]] = []
    for axis in range(3):
        here, one, other = (4 >> (axis + step) % 3 for step in range(3))
        faces += [(here, here + one, here + one + other, here + other), (0, other, one + other, one)]
    return tuple(faces)


def _edge(a: int, b: int) -> Edge:
    return (a, b) if a < b else (b, a)


def _divided(loop: NDArray[np.float64]) -> NDArray[np.float64]:
    """The triangles (n 3 3) of a loop of points (m 3) with the largest area."""
    return max((loop[list(ways)] for ways in _divisions(tuple(range(len(loop))))), key=lambda t: float(_areas(t).sum()))


def _divisions(points: tuple[int, ...]) -> Iterator[list[tuple[int, ...]]]:
    """All ways to divide a polygon into triangles."""
    if len(points) < 3:
        yield []
        return
    first, last = points[0], points[-1]
    for middle in range(1, len(points) - 1):
        for before in _divisions(points[: middle + 1]):
            for behind in _divisions(points[middle:]):
                yield [*before, *behind, (first, points[middle], last)]


def _areas(triangles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of triangles (n 3 3)."""
    a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
    return np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2
