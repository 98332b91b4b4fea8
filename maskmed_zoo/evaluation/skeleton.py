"""The centreline of a mask: thinned to lines of one voxel, without a part, a loop or a cavity more or less.

Source: Lee, Kashyap and Chu 1994, border voxels taken off in turn from six sides, none that ends a line. A voxel may go
if it is simple (Bertrand and Malandain 1994): the mask's voxels around it hang together through their 26 neighbours,
and the background's that share a face with it do so through their faces.
Deviation: voxels are looked at again, before they go, in eight sets in which no two are neighbours, so that a set goes
at once, where Lee et al. go one by one; lines may lie a voxel beside those of scikit-image.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from maskmed_zoo.evaluation.surfaces import Mask

AROUND = np.array([step for step in product((-1, 0, 1), repeat=3) if any(step)])
"""(26 3): the neighbours of a voxel, in the order of the bits of a neighbourhood."""
SIDES = np.array([(-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1)])
"""The sides from which voxels are taken off, in turn; opposite ones one after the other keep lines in the middle."""
Bits = NDArray[np.uint32]
Places = NDArray[np.int64]


def _bits(chosen: Iterable[bool]) -> int:
    return sum(1 << bit for bit, is_in in enumerate(chosen) if is_in)


FACES = _bits(np.abs(AROUND).sum(1) == 1)
EDGES = _bits(np.abs(AROUND).sum(1) <= 2)
"""Neighbours that share a face with the voxel, and those that share at least an edge."""


def skeleton(mask: Mask) -> Mask:
    """The centreline of a mask (z y x)."""
    padded = np.pad(mask, 1)
    voxels, sets = padded.ravel(), _sets(padded.shape)
    strides = np.array([padded.shape[1] * padded.shape[2], padded.shape[2], 1])
    steps, left, before = AROUND @ strides, np.flatnonzero(voxels), -1
    while len(left) != before:
        before = len(left)
        for side in (SIDES @ strides).tolist():
            border = left[~voxels[left + side]]
            around = _neighbourhood(voxels, border, steps)
            ends_a_line = around & around - np.uint32(1) == 0  # one neighbour or none
            border = border[_is_simple(around) & ~ends_a_line]
            for number in range(8):
                some = border[sets[border] == number]
                voxels[some[_is_simple(_neighbourhood(voxels, some, steps))]] = False
            left = left[voxels[left]]
    return padded[1:-1, 1:-1, 1:-1]


def _sets(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """By flat index a number from 0 to 7 that none of a voxel's neighbours has."""
    z, y, x = (np.arange(side) % 2 for side in shape)
    return (4 * z[:, None, None] + 2 * y[:, None] + x).astype(np.uint8).ravel()


def _neighbourhood(voxels: Mask, places: Places, steps: Places) -> Bits:
    """The 26 voxels around each of n places, as bits."""
    found = np.zeros(len(places), np.uint32)
    for bit, step in enumerate(steps):
        found |= voxels[places + step].astype(np.uint32) << np.uint32(bit)
    return found


def _is_simple(around: Bits) -> Mask:
    """Whether voxels in these neighbourhoods (n) can go and leave parts, loops and cavities as they are."""
    around, which = np.unique(around, return_inverse=True)
    empty = ~around & np.uint32(EDGES)
    faces = empty & np.uint32(FACES)
    is_one = (around > 0) & (_reached(_lowest(around), around, _touching(3)) == around)
    are_one = (faces > 0) & (_reached(_lowest(faces), empty, _touching(1)) & faces == faces)
    return (is_one & are_one)[which]


def _lowest(bits: Bits) -> Bits:
    """The lowest bit alone."""
    return bits & ~bits + np.uint32(1)


def _reached(start: Bits, within: Bits, touching: tuple[np.uint32, ...]) -> Bits:
    """What of the neighbours `within` can be reached from those at the `start`."""
    while True:
        grown = start.copy()
        for bit, others in enumerate(touching):
            grown |= (start >> np.uint32(bit) & np.uint32(1)) * others
        grown &= within
        if np.array_equal(grown, start):
            return start
        start = grown


@cache
def _touching(axes: int) -> tuple[np.uint32, ...]:
    """For each neighbour the neighbours one step away along at most so many axes: 1 for faces, 3 for any contact."""
    steps = np.abs(AROUND[:, None] - AROUND)
    return tuple(np.uint32(_bits(row)) for row in (steps.max(2) == 1) & (steps.sum(2) <= axes))
