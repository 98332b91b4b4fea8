"""Training patches: which case, where in it, augmented; a patch is a function of seed, index and batch size alone."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from maskmed_zoo.data import sampling
from maskmed_zoo.data.augmentation import mirror, policy_of
from maskmed_zoo.data.augmentation.source import Read, empty_outside
from maskmed_zoo.data.cache import CachedCase, Parts
from maskmed_zoo.data.crop import OUTSIDE
from maskmed_zoo.errors import DataError
from maskmed_zoo.labels import Labels
from maskmed_zoo.recipe.schema import DataRecipe
from maskmed_zoo.settings import Size3

_STREAMS = {"train": 0, "validation": 1}


class Patch(TypedDict):
    """A patch, or a batch of them with b in front: what `Trainer.step` takes.

    image (c d h w) float32 normalized, labels (d h w) int64, annotated (k) bool: which labels were annotated,
    background always; instances (d h w) int64: the numbers of separated objects of a label, 0 for none.
    """

    image: Tensor
    labels: Tensor
    annotated: Tensor
    instances: NotRequired[Tensor]


@dataclass(frozen=True, eq=False)
class Member:
    """A case to draw from: what its labels are called here, which of them it has annotated, its value of 'ignore'."""

    case: CachedCase
    table: NDArray[np.int16]
    annotated: Tensor
    ignore: int | None


class PatchDataset(Dataset[Patch]):
    """Endless patches by index, batches of `batch_size` one after the other.

    The last places of every batch (`foreground_oversampling`) are centered on a voxel of a random foreground label of
    the case, the others lie anywhere, and where there is an 'ignore' label about a voxel that does not have it; what
    lies outside a volume is 0 and background, as in nnU-Net. The stream 'train' is augmented. Label values are those
    of `labels`, whatever they are in the case's data set; a label that the data set does not know was not annotated in
    it.
    """

    def __init__(
        self,
        parts: Parts,
        recipe: DataRecipe,
        *,
        labels: Labels,
        batch_size: int,
        seed: int,
        stream: Literal["train", "validation"],
    ) -> None:
        self.members: list[Member] = []
        names = labels.names
        for cache, cases in parts:
            own = cache.dataset.labels
            table = np.append(own.renumbering(labels), np.int16(OUTSIDE))  # the last one is what OUTSIDE leads to
            for case in cases:
                found = {
                    "background",
                    *(names if recipe.unannotated == "background" else cache.dataset.annotated(case)),
                }
                annotated = torch.tensor([name in found for name in names])
                self.members.append(Member(cache.load(case), table, annotated, own.ignore))
        self.recipe, self.masked = recipe, parts[0][0].how.masked if parts else ()
        self.batch_size, self.seed, self.stream = batch_size, seed, stream
        self.policy = policy_of(recipe)

    def __getitem__(self, index: int) -> Patch:
        rng = np.random.default_rng([self.seed, _STREAMS[self.stream], index])
        member = self.members[rng.integers(len(self.members))]
        is_forced = sampling.is_forced(index % self.batch_size, self.batch_size, self.recipe.foreground_oversampling)
        with _one_thread():
            if self.stream == "train":
                start = self._start(member, self.policy.box, is_forced, rng)
                image, maps = self.policy.take(self.read(member), start, rng)
                image, maps = mirror(self.policy.change(image, rng), maps, self.recipe.mirror_axes, rng)
                empty_outside(image, maps[0], self.masked)
            else:
                start = self._start(member, self.recipe.patch_size, is_forced, rng)
                image, maps = self.read(member)(start, self.recipe.patch_size)
        whole = torch.from_numpy(np.maximum(maps, 0).astype(np.int64))
        patch: Patch = {"image": image.contiguous(), "labels": whole[0], "annotated": member.annotated}
        if self.recipe.instances:
            patch["instances"] = whole[1]
        return patch

    def _start(self, member: Member, box: Size3, is_forced: bool, rng: np.random.Generator) -> Size3:
        """First voxel of the box that holds a patch; may be negative."""
        labels = member.case.labels
        voxel: NDArray[Any] | None = None
        if is_forced:
            voxel = sampling.foreground_voxel(member.case.coordinates, rng)
        if voxel is None and member.ignore is not None:
            voxel = sampling.annotated_voxel(labels, member.ignore, rng)
        if voxel is None:
            return sampling.any_start(labels.shape, box, self.recipe.patch_size, rng)
        return sampling.start_around(voxel, labels.shape, box, self.recipe.patch_size)

    def read(self, member: Member) -> Read:
        """What the policies read boxes of a case with; labels are numbered as here."""
        case, table = member.case, member.table
        volume, annotation = case.image, case.labels
        instances = case.instances if self.recipe.instances else None

        def read(start: Size3, size: Size3) -> tuple[Tensor, NDArray[Any]]:
            inside, padding = sampling.window(annotation.shape, start, size)
            values = np.asarray(annotation[inside])
            if values.size and not OUTSIDE <= int(values.min()) <= int(values.max()) < len(table) - 1:
                raise DataError(
                    f"{case.folder}: damaged cache entry (labels {values.min()} … {values.max()}, of "
                    f"{len(table) - 1}); delete this folder and prepare again"
                )
            image = np.zeros((case.shape[0], *size), np.float32)
            maps = np.zeros((1 if instances is None else 2, *size), np.int16 if instances is None else np.int32)
            maps[0] = OUTSIDE
            within = tuple(slice(before, n - after) for n, (before, after) in zip(size, padding, strict=True))
            image[(slice(None), *within)] = volume[(slice(None), *inside)]
            maps[(0, *within)] = table[values]
            if instances is not None:
                maps[(1, *within)] = instances[inside]
            return torch.from_numpy(image), maps

        return read


@contextmanager
def _one_thread() -> Generator[None]:
    """Sums in an order that does not depend on the process: patches are alike with and without loader processes."""
    count = torch.get_num_threads()
    if count != 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if count != 1:
            torch.set_num_threads(count)
