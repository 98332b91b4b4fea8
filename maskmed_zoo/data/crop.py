"""The part of an image that holds anything: the box of its non-zero voxels, and what in it lies outside the object.

Source: nnU-Net's `crop_to_nonzero` (Isensee et al., Nat Methods 18, 203, 2021): a voxel counts where any channel is not
zero, and holes in what counts belong to it. Labels are cut to the same box.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maskmed_zoo.data.resample import slabs

Box = tuple[slice, slice, slice]
"""Slices (z, y, x)."""
Value = TypeVar("Value", bound=np.generic)

OUTSIDE = -1
"""Label of background voxels outside the non-zero region, and in patches of what lies outside a volume."""


def nonzero_box(image: NDArray[Any]) -> Box:
    """The smallest box around the voxels of an image (c z y x) that are not 0 in a channel; all of an empty image."""
    shape = image.shape[1:]
    z, y, x = (np.zeros(size, bool) for size in shape)
    for part in slabs(shape):
        mask = _any_channel(image[:, part])
        z[part] = mask.any((1, 2))
        y |= mask.any((0, 2))
        x |= mask.any((0, 1))
    return _extent(z), _extent(y), _extent(x)


def _extent(is_there: NDArray[np.bool_]) -> slice:
    found = np.flatnonzero(is_there)
    return slice(int(found[0]), int(found[-1]) + 1) if found.size else slice(0, len(is_there))


def nonzero_mask(image: NDArray[Any]) -> NDArray[np.bool_]:
    """(z y x) of an image (c z y x) cut to its box: true in its non-zero region, the holes of which are filled.

    Filled within the box it is what it would be within the whole image: around the box everything is outside.
    """
    mask = _any_channel(image)
    return mask if mask.all() else np.asarray(ndimage.binary_fill_holes(mask), np.bool_)


def mark_outside(labels: NDArray[Any], mask: NDArray[np.bool_]) -> NDArray[np.int16]:
    """A copy of a label map (z y x), with background outside the mask -1; a label there stays what it is."""
    marked = labels.astype(np.int16)
    marked[(marked == 0) & ~mask] = OUTSIDE
    return marked


def uncropped(array: NDArray[Value], box: Box, shape: Sequence[int], fill: float = 0) -> NDArray[Value]:
    """An array (… z y x) put back into a volume of `shape` (z, y, x), which holds `fill` around it."""
    if array.shape[-3:] == tuple(shape):
        return array
    whole = np.full((*array.shape[:-3], *shape), fill, array.dtype)
    whole[(..., *box)] = array
    return whole


def _any_channel(image: NDArray[Any]) -> NDArray[np.bool_]:
    mask = image[0] != 0
    for channel in image[1:]:
        mask |= channel != 0
    return mask
