"""Connected parts found slab by slab, against SciPy's numbers of the whole."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from maskmed_zoo.data import parts
from maskmed_zoo.data.parts import Parts, boxes_of, parts_of

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 7), st.integers(1, 7))


def labelled(mask: np.ndarray, connectivity: int) -> tuple[np.ndarray, int]:
    return cast(tuple[np.ndarray, int], ndimage.label(mask, ndimage.generate_binary_structure(3, connectivity)))


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, share=st.floats(0, 1), seed=st.integers(0, 99), slab=st.integers(1, 200), near=st.booleans())
def test_slabs_make_no_difference(shape: tuple[int, int, int], share: float, seed: int, slab: int, near: bool) -> None:
    mask = np.random.default_rng(seed).random(shape) < share
    expected, count = labelled(mask, 1 if near else 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "SLAB_VOXELS", slab)
        found = Parts(lambda planes: mask[planes], shape, 6 if near else 26)
        given_planes, numbers = zip(*found.slabs(), strict=True)
    assert found.count == count
    assert [plane for planes in given_planes for plane in range(shape[0])[planes]] == list(range(shape[0]))
    np.testing.assert_array_equal(np.concatenate(numbers), expected)
    np.testing.assert_array_equal(found.sizes, np.bincount(expected.ravel(), minlength=count + 1)[1:])


def test_a_slab_may_change_before_the_next_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "SLAB_VOXELS", 50)
    labels = (np.random.default_rng(0).random((40, 5, 5)) < 0.3).astype(np.uint8)
    expected, _ = labelled(labels, 3)
    seen: list[np.ndarray] = []
    for planes, numbers in parts_of(labels, 1).slabs():
        labels[planes] = 0
        seen.append(numbers)
    assert len(seen) == 20
    np.testing.assert_array_equal(np.concatenate(seen), expected)


def test_many_parts_that_join_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comb: teeth that are parts of their own in every slab but the last."""
    monkeypatch.setattr(parts, "SLAB_VOXELS", 1)
    mask = np.zeros((20, 3, 41), bool)
    mask[:, 1, ::2] = True
    mask[-1, 1] = True
    found = Parts(lambda planes: mask[planes], mask.shape, 6)
    assert found.count == 1
    assert found.sizes.tolist() == [mask.sum()]


def test_boxes() -> None:
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[1:3, 2, 4] = 3
    assert boxes_of(labels, [1, 3]) == {3: (slice(1, 3), slice(2, 3), slice(4, 5))}
    assert boxes_of(labels, []) == {}
