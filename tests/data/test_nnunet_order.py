"""nnU-Net's order of voxels: that of the file, whatever way it lies, and back."""

from __future__ import annotations

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest

from maskmed_zoo.data.image import Geometry
from maskmed_zoo.data.nnunet_order import VoxelOrder

SHAPE = (4, 5, 6)


def grids() -> list[Geometry]:
    """All 48 ways for a file of 4 x 5 x 6 voxels to lie in the world."""
    found = []
    for axes, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        affine = np.eye(4)
        affine[:3, :3] = np.diag([1.0, 2.0, 3.0])[:, axes] * np.array(signs)
        found.append(Geometry(affine, SHAPE))
    return found


@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1)])
def test_it_is_the_files_own_order_and_comes_back(transpose: tuple[int, int, int]) -> None:
    stored = np.arange(120, dtype=np.float32).reshape(SHAPE)
    seen = grids()
    assert len(seen) == 48
    for geometry in seen:
        canonical = geometry.to_canonical(stored)
        order = VoxelOrder.of(geometry, transpose, turns=False)
        expected = stored.transpose(2, 1, 0).transpose(transpose)
        np.testing.assert_array_equal(order.turned(canonical), expected)
        channels = np.stack([canonical, -canonical])
        np.testing.assert_array_equal(order.turned(channels), np.stack([expected, -expected]))
        np.testing.assert_array_equal(order.back(order.turned(channels)), channels)
        turned = order.geometry(geometry)
        assert turned.canonical_shape == expected.shape
        sizes = nib.affines.voxel_sizes(geometry.affine)[::-1]
        assert turned.spacing == tuple(sizes[list(transpose)])


def test_a_reader_that_turns_images_has_ours() -> None:
    array = np.arange(120).reshape(SHAPE)
    for geometry in grids():
        order = VoxelOrder.of(geometry, (0, 1, 2), turns=True)
        np.testing.assert_array_equal(order.turned(array), array)
        np.testing.assert_array_equal(order.back(array), array)
