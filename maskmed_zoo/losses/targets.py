"""What queries can answer for: the labels of a patch, or its instances, as binary masks.

Masks are bool, one byte per voxel, until they meet logits. Target 0 is always the background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from maskmed_zoo.errors import JointError
from maskmed_zoo.losses.stages import pool_max

ID_BITS = 32


@dataclass(frozen=True)
class Targets:
    """`classes` (b t) int64, the label of each target, `masks` (b t d h w) bool, `present` (b t) bool.

    `ignored` (b 1 d h w) bool says which voxels count for nothing; None: all count.
    """

    classes: Tensor
    masks: Tensor
    present: Tensor
    ignored: Tensor | None

    def at(self, size: Sequence[int]) -> Targets:
        """At another resolution, by max-pooling."""
        ignored = None if self.ignored is None else pool_max(self.ignored, size)
        return replace(self, masks=pool_max(self.masks, size), ignored=ignored)


def label_targets(labels: Tensor, num_classes: int, ignore_label: int | None) -> Targets:
    """One target per label of labels (b d h w), in the order of the labels."""
    every = torch.arange(num_classes, device=labels.device)
    masks = labels.unsqueeze(1) == every.to(labels.dtype).view(1, -1, 1, 1, 1)
    ignored = None if ignore_label is None else (labels == ignore_label).unsqueeze(1)
    return Targets(every.expand(len(labels), -1), masks, masks.flatten(2).any(-1), ignored)


def instance_targets(labels: Tensor, instances: Tensor, num_classes: int, ignore_label: int | None) -> Targets:
    """One target per (label, id) in labels and instances (b d h w), padded to the most of any sample.

    The background, and a label without a single id in the sample, is one target. A voxel without an id, of a label
    with ids, may belong to any of them and is ignored. Ids are below 2^32. Copies to the host, to count the targets.
    """
    if instances.shape != labels.shape:
        raise JointError(f"instances {tuple(instances.shape)} must have the shape of the labels {tuple(labels.shape)}")
    batch, kinds = len(labels), num_classes + 1
    is_label = (labels >= 0) & (labels < num_classes)
    kind = torch.where(is_label, labels.long(), num_classes)  # the last kind: no label
    ids = torch.where(is_label & (labels > 0), instances.long().clamp(0, 2**ID_BITS - 1), 0)
    first = torch.arange(batch, device=labels.device) * kinds << ID_BITS  # every sample has a background
    keys = ((torch.arange(batch, device=labels.device).view(-1, 1, 1, 1) * kinds + kind) << ID_BITS) + ids
    found, index = torch.unique(torch.cat([first, keys.flatten()]), return_inverse=True)
    group, is_id = found >> ID_BITS, (found & (2**ID_BITS - 1)) > 0
    orphan = ~is_id & (group == group.roll(-1)) & is_id.roll(-1)  # no id, and the next key is an id of the same label
    kept = (group % kinds < num_classes) & ~orphan
    rank = kept.cumsum(0) - 1
    number = torch.where(kept, rank - rank[index[:batch]][group // kinds], -1)
    counts = torch.zeros(batch, dtype=torch.int64, device=labels.device).index_add_(0, group // kinds, kept.long())
    slots = torch.arange(int(counts.max()), device=labels.device)
    classes = torch.zeros(batch, len(slots) + 1, dtype=torch.int64, device=labels.device)
    classes[group // kinds, number] = torch.where(kept, group % kinds, 0)  # what is not kept goes to the last column
    voxels = index[batch:].view_as(labels)
    masks = number[voxels].unsqueeze(1) == slots.view(1, -1, 1, 1, 1)
    ignored = orphan[voxels] if ignore_label is None else orphan[voxels] | (labels == ignore_label)
    return Targets(classes[:, :-1], masks, masks.flatten(2).any(-1), ignored.unsqueeze(1))
