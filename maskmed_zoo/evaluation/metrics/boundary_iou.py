"""The boundary IoU: the intersection over union of the bands along the inside of a label's boundaries.

Source: Cheng et al. 2021 (arXiv 2103.16562). Deviation: the width of the band is in mm, not in pixels, so thick slices
are taken for what they are; the voxels beside the boundary are in it however thick they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod
from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import binary_erosion, distance_transform_edt

from maskmed_zoo.evaluation.metrics import Metric
from maskmed_zoo.evaluation.parallel import over_labels
from maskmed_zoo.evaluation.surfaces import CHUNK_VOXELS, Lengths, Mask
from maskmed_zoo.settings import Spacing3

if TYPE_CHECKING:
    from maskmed_zoo.evaluation.case import LabelMapPair


def band(mask: Mask, spacing: Spacing3, width: float) -> Mask:
    """The voxels of a mask (z y x) within `width` mm of one outside, centre to centre, or sharing a face with one."""
    padded = np.pad(mask, 1)
    inner: Mask = np.asarray(binary_erosion(padded), bool)
    found = padded & ~inner
    margin = ceil(width / spacing[0])
    step = max(1, margin, CHUNK_VOXELS // prod(padded.shape[1:]))
    for start in range(0, len(padded), step):
        first = max(0, start - margin)
        part = padded[first : start + step + margin]
        if not part.all():
            distances: Lengths = np.asarray(distance_transform_edt(part, sampling=spacing), np.float64)
            found[start : start + step] |= (part & (distances <= width))[start - first :][:step]
    return found[1:-1, 1:-1, 1:-1]


def _of_pair(pair: LabelMapPair, names: Sequence[str]) -> dict[str, float]:
    def score(name: str) -> float:
        ours, theirs = (band(mask, pair.spacing, pair.settings.boundary_width) for mask in pair.masks(name))
        return float((ours & theirs).sum() / (ours | theirs).sum())

    return over_labels(pair, names, score)


METRIC = Metric(
    name="boundary_iou",
    title="Boundary IoU",
    unit="",
    higher_is_better=True,
    definition="|A and B| / |A or B| of the bands of a label in prediction and reference, its voxels that are near one "
    "without it",
    both_absent=None,
    one_absent=0.0,
    compute=_of_pair,
    details=lambda settings: f"near is within {settings.boundary_width:g} mm, centre to centre, or sharing a face",
)
