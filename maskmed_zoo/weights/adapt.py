"""Fit a tensor to a parameter of another shape, where it is known what the difference means.

* input channels: each gets the mean filter, scaled so that equal channels give the old answer;
* labels: rows are matched by the labels' names, "no object" last; without names the parameter stays fresh;
* tables over positions (Swin's relative bias, a ViT's embedding): interpolated, which is right for cubes alone.

Anything else is not fitted: equal numbers of elements promise no equal meaning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

BIAS_TABLE, POSITIONS = "relative_position_bias_table", "position_embeddings"


@dataclass(frozen=True)
class Context:
    """What a module takes and gives: input channels, and the labels of the file and of the module, where known.

    `label_axes` says of parameters by name along which axes their rows are the labels'; None: not known.
    """

    in_channels: int | None = None
    old_classes: Sequence[str] | None = None
    new_classes: Sequence[str] | None = None
    label_axes: Mapping[str, tuple[int, ...]] | None = None

    def is_relabelled(self, name: str) -> bool:
        """Whether the rows of a parameter are of other labels in the file, or of the same in another order."""
        known = bool(self.old_classes and self.new_classes)
        return known and tuple(self.old_classes or ()) != self.new_classes and name in (self.label_axes or ())


class Fitted(NamedTuple):
    """A tensor for a parameter, how it came to its shape, and how many of its numbers are the file's."""

    value: Tensor
    how: str
    taken: int


def adapt(name: str, value: Tensor, target: Tensor, context: Context) -> Fitted | None:
    """`value` in the shape of `target`, or None where it is not known how.

    `target` is the module's own parameter: rows of labels that the file does not know keep its values.
    """
    if value.ndim != target.ndim or not value.is_floating_point():
        return None
    differing = [axis for axis, (a, b) in enumerate(zip(value.shape, target.shape, strict=True)) if a != b]
    if name.endswith(BIAS_TABLE) and differing == [0]:
        found = _table(value.unsqueeze(0), len(target))
        return None if found is None else found._replace(value=found.value[0])
    if name.endswith(POSITIONS) and value.ndim == 3 and differing == [1]:
        return _table(value, target.shape[1])
    if value.ndim == 5 and differing == [1] and target.shape[1] == context.in_channels:
        scale = value.shape[1] / target.shape[1]
        fitted = value.mean(1, keepdim=True).expand_as(target) * scale
        how = f"input channels {value.shape[1]} → {target.shape[1]}"
        return Fitted(fitted.contiguous(), how, target.numel())
    axes = (0,) if context.label_axes is None else context.label_axes.get(name, ())
    return _classes(value, target, context, axes) if axes and set(differing) <= set(axes) else None


def _classes(value: Tensor, target: Tensor, context: Context, axes: Sequence[int]) -> Fitted | None:
    old, new = context.old_classes, context.new_classes
    if not old or not new:
        return None
    shared = [label for label in new if label in old]
    rows, picked = [torch.arange(size) for size in target.shape], value.detach()
    for axis in axes:
        extra = value.shape[axis] - len(old)  # "no object", where a head has it
        if extra not in (0, 1) or target.shape[axis] - len(new) != extra:
            return None
        last = range(extra)
        rows[axis] = torch.tensor([new.index(label) for label in shared] + [len(new) for _ in last], dtype=torch.long)
        sources = [old.index(label) for label in shared] + [len(old) for _ in last]
        picked = picked.index_select(axis, torch.tensor(sources, dtype=torch.long))
    fitted = target.detach().clone()
    fitted[torch.meshgrid(*rows, indexing="ij")] = picked.to(fitted)
    return Fitted(fitted, f"classes {len(old)} → {len(new)}, {len(shared)} by name", picked.numel())


def _cube(count: int) -> int | None:
    side = round(count ** (1 / 3))
    return side if side**3 == count else None


def _table(rows: Tensor, count: int) -> Fitted | None:
    """Rows (1 n c) over a cube of positions, at the `count` positions of another cube."""
    old, new = _cube(rows.shape[1]), _cube(count)
    if old is None or new is None:
        return None
    cube = rows.float().mT.unflatten(2, (old,) * 3)
    fitted = F.interpolate(cube, (new,) * 3, mode="trilinear", align_corners=True).flatten(2).mT
    return Fitted(fitted.contiguous().to(rows.dtype), f"positions {old}³ → {new}³", fitted.numel())
