"""The surfaces of two masks, and how far each lies from the other.

A surface has an element at every corner of voxels that some but not all of the eight voxels around have; its area is
that of the patch between their centres (`patches`). Beyond the image nothing has the label, so a mask that reaches the
border is closed there.

Source: Nikolov et al. 2018 (arXiv 1809.04430), whose `surface-distance` 0.1 has the same elements, areas and distances.
Deviation: the nearest element is looked up in a k-d tree and not in a distance transform of the whole box, which is
as exact and takes time and memory with the surface, not with the volume; elements that both have are not searched.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from maskmed_zoo.evaluation.patches import Patches, patches
from maskmed_zoo.settings import Spacing3

CHUNK_VOXELS = 2**21
"""Voxels of a mask that are looked at together."""
Mask = NDArray[np.bool_]
Lengths = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Surface:
    """The elements of a mask's surface, in order: their flat indices (n) among the corners of voxels, and codes (n)."""

    places: NDArray[np.int64]
    codes: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Sides:
    """A number of every element of the predicted surface (n), and of the reference's (m)."""

    prediction: Lengths
    reference: Lengths


@dataclass(frozen=True, eq=False)
class SurfacePair:
    """The surfaces of two masks, both with elements; `corners` (z y x): how many there are; `spacing` in mm."""

    prediction: Surface
    reference: Surface
    corners: tuple[int, ...]
    spacing: Spacing3

    @property
    def patches(self) -> Patches:
        """Areas and centres by code."""
        return patches(self.spacing)

    @cached_property
    def areas(self) -> Sides:
        """mm² of every element."""
        return Sides(*(self.patches.areas[side.codes] for side in (self.prediction, self.reference)))

    @cached_property
    def between_corners(self) -> Sides:
        """mm from every element to the nearest of the other side, between corners, as `surface-distance` has them."""
        sides = self.prediction, self.reference
        return self._distances([self._corners(side) for side in sides], [side.places for side in sides])

    @cached_property
    def between_patches(self) -> Sides:
        """The same between the centres of patches: they lie on the surface, corners up to half a voxel beside it."""
        sides = self.prediction, self.reference
        points = [self._corners(side) + self.patches.centres[side.codes] for side in sides]
        # a code and its complement have one patch
        return self._distances(points, [side.places * 256 + np.minimum(side.codes, ~side.codes) for side in sides])

    def _corners(self, side: Surface) -> Lengths:
        """Places (n 3) in voxels."""
        return np.stack(np.unravel_index(side.places, self.corners), 1).astype(np.float64)

    def _distances(self, points: list[Lengths], names: list[NDArray[np.int64]]) -> Sides:
        """mm from each of the points (n 3), in voxels, to the nearest of the other side; those of one name are one."""
        spacing = np.asarray(self.spacing)
        found: list[Lengths] = []
        for here, there in ((0, 1), (1, 0)):
            alone = ~np.isin(names[here], names[there], assume_unique=True)
            distances = np.zeros(len(alone))
            if alone.any():
                tree = KDTree(points[there] * spacing, balanced_tree=False)
                _, nearest = tree.query(points[here][alone] * spacing)
                steps = (points[here][alone] - points[there][nearest]) * spacing
                distances[alone] = np.sqrt((steps**2).sum(1))  # of whole steps between corners: equal ones stay equal
            found.append(distances)
        return Sides(*found)


def surface_pair(prediction: Mask, reference: Mask, spacing: Spacing3) -> SurfacePair:
    """The surfaces of two masks (z y x) of one shape; `spacing` (z, y, x) in mm."""
    corners = tuple(side + 1 for side in reference.shape)
    return SurfacePair(surface(prediction), surface(reference), corners, spacing)


def surface(mask: Mask) -> Surface:
    """The surface of a mask (z y x)."""
    depth, *plane = (side + 1 for side in mask.shape)  # corners
    places: list[NDArray[np.int64]] = []
    codes: list[NDArray[np.uint8]] = []
    step = max(1, CHUNK_VOXELS // prod(plane))
    for start in range(0, depth, step):
        layers = mask[max(0, start - 1) : start + step]
        around = np.pad(layers, ((start == 0, start + step >= depth), (1, 1), (1, 1))).view(np.uint8)
        found = _codes(around).ravel()
        here = np.flatnonzero(found - np.uint8(1) < 254)  # neither 0, which becomes 255, nor 255
        places.append(here + start * prod(plane))
        codes.append(found[here])
    return Surface(np.concatenate(places), np.concatenate(codes))


def _codes(voxels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """At each corner between voxels of 0 and 1 the code of the eight around it, as `patches` numbers them."""
    voxels = voxels[:, :, :-1] | voxels[:, :, 1:] << np.uint8(1)
    voxels = voxels[:, :-1] | voxels[:, 1:] << np.uint8(2)
    return voxels[:-1] | voxels[1:] << np.uint8(4)
