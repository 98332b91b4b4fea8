"""Training patches: which case, where in it, augmented; a patch is a function of seed and index alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NotRequired, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from maskmed_zoo.data import augment
from maskmed_zoo.data.cache import CachedCase, Parts
from maskmed_zoo.errors import DataError
from maskmed_zoo.labels import Labels
from maskmed_zoo.recipe.schema import DataRecipe
from maskmed_zoo.settings import Size3

_STREAMS = {"train": 0, "validation": 1}


class Patch(TypedDict):
    """A patch, or a batch of them with b in front: what `Trainer.step` takes.

    image (c d h w) float32 normalised, labels (d h w) int64, annotated (k) bool: which labels were annotated,
    background always; instances (d h w) int64: the numbers of separated objects of a label, 0 for none.
    """

    image: Tensor
    labels: Tensor
    annotated: Tensor
    instances: NotRequired[Tensor]


class PatchDataset(Dataset[Patch]):
    """Endless patches by index.

    A share of the patches (`foreground_oversampling`) is centred on a voxel of a random foreground label of the
    case, the rest lies anywhere; volumes smaller than the patch are padded with 0, as in nnU-Net. Label values are
    those of `labels`, whatever they are in the case's data set; a label that the data set does not know was not
    annotated in it.
    """

    def __init__(
        self,
        parts: Parts,
        recipe: DataRecipe,
        *,
        labels: Labels,
        seed: int,
        stream: Literal["train", "validation"],
    ) -> None:
        self.cases: list[tuple[CachedCase, NDArray[np.int16], Tensor]] = []
        names = labels.names
        for cache, cases in parts:
            table = cache.dataset.labels.renumbering(labels)
            for case in cases:
                found = {
                    "background",
                    *(names if recipe.unannotated == "background" else cache.dataset.annotated(case)),
                }
                self.cases.append((cache.load(case), table, torch.tensor([name in found for name in names])))
        self.recipe = recipe
        self.seed, self.stream = seed, stream

    def __getitem__(self, index: int) -> Patch:
        rng = np.random.default_rng([self.seed, _STREAMS[self.stream], index])
        case, table, annotated = self.cases[rng.integers(len(self.cases))]
        volume, annotation, size = case.image, case.labels, self.recipe.patch_size
        is_training = self.stream == "train"
        config = self.recipe.augmentation
        matrix = augment.random_matrix(config, self.recipe.spacing, rng) if is_training else None
        start = self._start(case, size, rng)
        source = size if matrix is None else augment.source_size(matrix, size)
        offset = [s + (n - m) // 2 for s, n, m in zip(start, size, source, strict=True)]
        inside, padding = window(annotation.shape, offset, source)
        image = torch.from_numpy(np.pad(volume[(slice(None), *inside)], [(0, 0), *padding]))
        values = np.maximum(np.asarray(annotation[inside]), 0)
        if values.size and not 0 <= int(values.min()) <= int(values.max()) < len(table):
            raise DataError(
                f"{case.folder}: damaged cache entry (labels up to {values.max()}, of {len(table)}); delete this "
                f"folder and prepare again"
            )
        arrays = [table[values], *([case.instances[inside]] if self.recipe.instances else [])]
        maps = torch.from_numpy(np.stack([np.pad(array, padding) for array in arrays]).astype(np.int64))
        if matrix is not None:
            image = augment.apply_matrix(image, matrix, size, nearest=False)
            maps = augment.apply_matrix(maps.float(), matrix, size, nearest=True).long()
        if is_training:
            image = augment.random_intensity(image, config, rng)
            image, maps = augment.random_mirror(image, maps, self.recipe.mirror_axes, rng)
        patch: Patch = {"image": image.float().contiguous(), "labels": maps[0].contiguous(), "annotated": annotated}
        if self.recipe.instances:
            patch["instances"] = maps[1].contiguous()
        return patch

    def _start(self, case: CachedCase, size: Size3, rng: np.random.Generator) -> list[int]:
        """First voxel of a patch; may be negative where the volume is smaller than the patch."""
        shape = case.labels.shape
        low = [min(0, (n - p) // 2) for n, p in zip(shape, size, strict=True)]
        high = [max(n - p, lo) for n, p, lo in zip(shape, size, low, strict=True)]
        wants_foreground = rng.random() < self.recipe.foreground_oversampling
        places_of = case.coordinates if wants_foreground else {}
        if places_of:
            places = list(places_of.values())[rng.integers(len(places_of))]
            center = places[rng.integers(len(places))]
            wanted = [int(c) - p // 2 for c, p in zip(center, size, strict=True)]
            return [min(max(w, lo), hi) for w, lo, hi in zip(wanted, low, high, strict=True)]
        return [int(rng.integers(lo, hi + 1)) for lo, hi in zip(low, high, strict=True)]


def window(
    shape: Sequence[int], start: Sequence[int], size: Sequence[int]
) -> tuple[tuple[slice, ...], list[tuple[int, int]]]:
    """The part of a window that lies inside a volume, as slices, and the padding that completes the window."""
    inside: list[slice] = []
    padding: list[tuple[int, int]] = []
    for n, first, length in zip(shape, start, size, strict=True):
        low, high = min(max(first, 0), n), min(max(first + length, 0), n)
        inside.append(slice(low, high))
        before = min(max(-first, 0), length)
        padding.append((before, length - before - (high - low)))
    return tuple(inside), padding
