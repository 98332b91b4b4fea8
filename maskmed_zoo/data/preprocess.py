"""From the voxels of a file to what a network sees, and back: one way for training and for prediction.

The order is nnU-Net's: crop to the non-zero region, normalize there, on the file's own grid, then resample.
Source: `DefaultPreprocessor.run_case_npy` and `export_prediction.py` (Isensee et al., Nat Methods 18, 203, 2021).
Deviations: the axes are those of `data.image`, never exchanged; nothing is held at once but the case as it was read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskmed_zoo.data.crop import Box, mark_outside, nonzero_box, nonzero_mask
from maskmed_zoo.data.fingerprint import Fingerprint
from maskmed_zoo.data.image import Geometry
from maskmed_zoo.data.normalize import Normalized, Scheme, check_fingerprint, scaling_of, schemes
from maskmed_zoo.data.resample import (
    Resampled,
    Target,
    check_resampled,
    resample_image,
    resample_labels,
    target_shape,
    thick_axis,
)
from maskmed_zoo.recipe.schema import DataRecipe
from maskmed_zoo.settings import Size3, Spacing3

PREPROCESSING = 2
"""Raise this number when a network sees something else of the same image; 1 was: resampled first, then normalized."""


@dataclass(frozen=True)
class Preprocessing:
    """All that decides what the network sees of a case: `spacing` (z, y, x) mm, and how each channel is normalized."""

    spacing: Spacing3
    schemes: tuple[Scheme, ...]
    fingerprint: Fingerprint = ()
    use_mask_for_norm: bool = False

    @classmethod
    def of(cls, data: DataRecipe, channels: Sequence[str], fingerprint: Fingerprint) -> Preprocessing:
        """That of a recipe; raises `DataError` for a list of schemes that does not fit the channels."""
        return cls(data.spacing, schemes(data.normalization, channels), fingerprint, data.use_mask_for_norm)

    @property
    def masked(self) -> tuple[int, ...]:
        """Channels that are 0 outside the non-zero region."""
        return tuple(i for i, scheme in enumerate(self.schemes) if self.use_mask_for_norm and scheme == "zscore")

    def key(self) -> list[Any]:
        """What preprocessed cases depend on, JSON-able: statistics count for the channels that use them alone."""
        used = [
            [stats.mean, stats.std, stats.percentile_00_5, stats.percentile_99_5]
            for scheme, stats in zip(self.schemes, self.fingerprint, strict=False)
            if scheme == "ct"
        ]
        return [list(self.spacing), list(self.schemes), used, self.use_mask_for_norm]


@dataclass(frozen=True)
class Region:
    """Where what was preprocessed lies in its file: the `box` of `shape` (z, y, x) voxels, `resampled` to so many.

    `thick` is the axis that is not interpolated on the way there, `thick_back` the one on the way back.
    """

    shape: Size3
    box: Box
    resampled: Size3
    thick: int | None
    thick_back: int | None

    @property
    def cropped(self) -> Size3:
        """Voxels (z, y, x) of the box."""
        z, y, x = (part.stop - part.start for part in self.box)
        return z, y, x


@dataclass(frozen=True, eq=False)
class Cropped:
    """A case cut to its non-zero region, its channels normalized when their slices are read.

    `labels` int16 (z y x) have -1 where background lies outside the region; None without a label map.
    """

    channels: tuple[Normalized, ...]
    labels: NDArray[np.int16] | None
    region: Region

    def image_into(self, targets: Sequence[Target]) -> None:
        """Write the resampled channels (z y x), float32, a few slices at a time."""
        for channel, target in zip(self.channels, targets, strict=True):
            resample_image(channel, target, self.region.resampled, self.region.thick)

    def image(self) -> NDArray[np.float32]:
        """The resampled image (c z y x)."""
        result = np.empty((len(self.channels), *self.region.resampled), np.float32)
        self.image_into([*result])
        return result

    def slices(self, axis: int) -> SlicesAlong:
        """The resampled image a few slices at a time along z (0), y (1) or x (2)."""
        return SlicesAlong(self, axis)

    def resampled_labels(self) -> NDArray[np.int16]:
        """The resampled labels (z y x); `ValueError` without any."""
        if self.labels is None:
            raise ValueError("no labels")
        return resample_labels(self.labels, self.region.resampled, self.region.thick)


class SlicesAlong:
    """The resampled image of a case, of which the slices along one axis are made when they are read.

    Each channel is read once before, for the range of its values, if it has to be interpolated.
    """

    def __init__(self, case: Cropped, axis: int) -> None:
        self.axis = axis
        shape, thick = case.region.resampled, case.region.thick
        order = [axis, *(other for other in range(3) if other != axis)]
        self.channels = [
            Resampled(channel.along(axis), [shape[i] for i in order], None if thick is None else order.index(thick))
            for channel in case.channels
        ]

    def __getitem__(self, index: slice) -> NDArray[np.float32]:
        """Slices (c z y x)."""
        return np.stack([np.moveaxis(channel[index], 0, self.axis) for channel in self.channels])


def crop_and_normalize(
    image: NDArray[Any],
    labels: NDArray[np.int16] | None,
    geometry: Geometry,
    how: Preprocessing,
    *,
    values: int,
) -> Cropped:
    """A case as read, image (c z y x) in its own units and labels (z y x), made ready to be resampled.

    The image stays as it is and is read again whenever slices are normalized.

    `values` is how many numbers of 32 bits are to be kept for each resampled voxel. Raises `DataError` for channels
    that do not fit, values that a scheme cannot take, a spacing that makes far more or far fewer voxels of them, and
    `MemoryShortageError` for more than memory holds.
    """
    where = geometry.source or "image"
    check_fingerprint(how.schemes, how.fingerprint, len(image))
    box = nonzero_box(image)
    cut = image[(slice(None), *box)]
    check_resampled(geometry, how.spacing, values, cut.shape[1:])
    needs_mask = labels is not None or (how.use_mask_for_norm and "zscore" in how.schemes)
    inside = nonzero_mask(cut) if needs_mask else None
    marked = None if labels is None or inside is None else mark_outside(labels[box], inside)
    mask = (inside if marked is None else marked >= 0) if how.use_mask_for_norm else None
    stats = how.fingerprint or (None,) * len(how.schemes)
    channels: list[Normalized] = []
    for index, (channel, scheme, of) in enumerate(zip(cut, how.schemes, stats, strict=True)):
        scaling = scaling_of(channel, scheme, of, mask, where=f"{where}: channel {index}")
        channels.append(Normalized(channel, scaling, mask))
    z, y, x = image.shape[1:]
    region = Region(
        shape=(z, y, x),
        box=box,
        resampled=target_shape(cut.shape[1:], geometry.spacing, how.spacing),
        thick=thick_axis(geometry.spacing, how.spacing),
        thick_back=thick_axis(how.spacing, geometry.spacing),
    )
    return Cropped(tuple(channels), marked, region)
