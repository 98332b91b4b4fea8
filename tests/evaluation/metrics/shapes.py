"""Pairs of masks for the tests of metrics: noise, blobs, and shapes whose distances are known."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.ndimage import gaussian_filter

from maskmed_zoo.evaluation.case import LabelMapPair
from maskmed_zoo.labels import Labels
from maskmed_zoo.settings import Spacing3

LABELS = Labels({"background": 0, "label": 1})


def pair_of(prediction: np.ndarray, reference: np.ndarray, spacing: Spacing3 = (1.0, 1.0, 1.0)) -> LabelMapPair:
    """Two masks as a case of one label."""
    ours, theirs = prediction.astype(np.uint8), reference.astype(np.uint8)
    return LabelMapPair("a", ours, theirs, LABELS, frozenset(["label"]), spacing)


def random_pairs(count: int, seed: int = 0) -> Iterator[LabelMapPair]:
    """Masks that overlap in part, of odd sizes and any spacing, and with few voxels or many."""
    rng = np.random.default_rng(seed)
    made = 0
    while made < count:
        shape, spacing = rng.integers(1, 14, 3), tuple(rng.uniform(0.4, 4, 3).tolist())
        smooth = gaussian_filter(rng.normal(size=shape), rng.choice([0, 1, 2]))
        level = rng.choice([-0.5, 0, 1]) * smooth.std()
        other = smooth + 0.4 * smooth.std() * gaussian_filter(rng.normal(size=shape), 0.5)
        if (smooth > level).any() and (other > level).any():
            made += 1
            yield pair_of(other > level, smooth > level, spacing)


def ball(shape: tuple[int, ...], radius: float, spacing: Spacing3, shift: float = 0.13) -> np.ndarray:
    """A ball of `radius` mm, whose centre lies `shift` voxels beside the middle."""
    axes = [(np.arange(n) - (n - 1) / 2 - shift) * mm for n, mm in zip(shape, spacing, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij", sparse=True)
    return z**2 + y**2 + x**2 < radius**2
