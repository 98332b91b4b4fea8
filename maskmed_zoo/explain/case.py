"""One case of `explain`: the volume as the network sees it, and the place where a window of it is to lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from maskmed_zoo.data.case import Case, load_case
from maskmed_zoo.data.dataset import RawDataset
from maskmed_zoo.data.preprocess import Region
from maskmed_zoo.data.resample import resample_labels
from maskmed_zoo.errors import UserError
from maskmed_zoo.explain.places import Point, centroid, largest_label, on_other_grid
from maskmed_zoo.inference.predictor import Predictor
from maskmed_zoo.inference.sliding_window import Windows
from maskmed_zoo.settings import Size3

Array = NDArray[Any]


@dataclass(frozen=True)
class Subject:
    """A case at the network's spacing, padded to the window: image (c z y x), predicted labels (z y x), reference.

    The reference is negative where voxels do not count; `matched` are the labels that are annotated in it.
    `padding` is the number of voxels put before the first one along each axis.
    """

    name: str
    image: torch.Tensor
    labels: Array
    reference: Array | None
    matched: tuple[int, ...]
    region: Region
    padding: Size3
    unpadded: Size3


@dataclass(frozen=True)
class Aim:
    """Where a window is to lie in the padded volume, why there, and the label to be drawn first, 0 for none."""

    point: Point
    reason: str
    label: int = 0


def read_subject(predictor: Predictor, name: str, case: Case, dataset: RawDataset | None) -> Subject:
    """Read, prepare and segment a case."""
    image, reference, geometry = load_case(case, dataset)
    ready = predictor.prepare(image, geometry)
    prepared, region = ready.image, ready.region
    shape = (prepared.shape[1], prepared.shape[2], prepared.shape[3])
    labels = predictor.network_probabilities(prepared).argmax(0).numpy()
    padding = Windows(shape, predictor.recipe.data.patch_size, 0.0).padding
    matched: tuple[int, ...] = ()
    if reference is not None and dataset is not None:
        merged = predictor.labels
        names, annotated = merged.names, dataset.annotated(case)
        # A label that is not annotated may hide in the background.
        matched = tuple(
            k for k, name in enumerate(names) if name in annotated or (k == 0 and annotated >= {*names[1:]})
        )
        reference = resample_labels(dataset.labels.renumbering(merged)[reference[region.box]], shape, region.thick)
        reference = np.where(reference == merged.ignore, -1, reference)
        reference = np.pad(reference, padding, constant_values=-1)
    return Subject(
        name=name,
        image=F.pad(prepared, [side for sides in reversed(padding) for side in sides]),
        labels=np.pad(labels, padding),
        reference=reference,
        matched=matched,
        region=region,
        padding=(padding[0][0], padding[1][0], padding[2][0]),
        unpadded=shape,
    )


def foreground_of(subject: Subject) -> Aim:
    """The middle of everything predicted."""
    mask = subject.labels > 0
    if mask.any():
        return Aim(centroid(mask), "all predicted foreground")
    return Aim(centroid(np.ones_like(mask)), "the volume, as no foreground is predicted")


def aim_of(subject: Subject, label: int | None, point: Point | None, names: Sequence[str]) -> Aim:
    """The point given (z, y, x in the image), the middle of the label given, or that of the largest one predicted.

    Raises `UserError` for a point outside of the image.
    """
    if point is not None:
        box, shape = subject.region.box, subject.region.shape
        if not all(0 <= p < n for p, n in zip(point, shape, strict=True)):
            raise UserError(
                f"case '{subject.name}': point {','.join(f'{p:g}' for p in point)} lies outside of its "
                f"{' x '.join(map(str, shape))} voxels (z, y, x, from 0)"
            )
        z, y, x = (p - part.start for p, part in zip(point, box, strict=True))
        if not all(0 <= p < n for p, n in zip((z, y, x), subject.region.cropped, strict=True)):
            seen = ", ".join(f"{part.start} to {part.stop - 1}" for part in box)
            raise UserError(
                f"case '{subject.name}': point {','.join(f'{p:g}' for p in point)} lies in the zeros around what the "
                f"network sees, {seen} (z, y, x)"
            )
        seen = on_other_grid((z, y, x), subject.region.cropped, subject.unpadded)
        z, y, x = (p + b for p, b in zip(seen, subject.padding, strict=True))
        there = int(subject.labels[round(z), round(y), round(x)])
        return Aim((z, y, x), f"voxel {tuple(int(p) for p in point)} of the image", there)
    largest = largest_label(subject.labels)
    if label is not None and (subject.labels == label).any():
        return Aim(centroid(subject.labels == label), f"'{names[label]}' as predicted", label)
    if largest is None:
        return foreground_of(subject)
    missing = "" if label is None else f", as '{names[label]}' is not predicted"
    reason = f"'{names[largest]}', the largest label predicted{missing}"
    return Aim(centroid(subject.labels == largest), reason, largest)
