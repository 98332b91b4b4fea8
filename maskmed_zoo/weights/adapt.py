"""Fit a tensor to a parameter of another shape, where it is known what the difference means.

* input channels: those that both have by name keep their filters, the others begin at 0 and add nothing at first; where
  no name is shared or known, each gets the mean filter, scaled so that equal channels give the old answer;
* labels: rows are matched by the labels' names, "no object" last; a new label begins with the mean of all rows of the
  file, which nowhere exceeds the largest, so that it takes no voxel from a label that both have (a row drawn at random
  does); without names the parameter stays fresh;
* queries: as the labels, where there is one for each. None is given up while there is room, because a matcher may have
  let the query of one label answer for another: what is left over takes the place of new labels. Further ones begin as
  copies, and their masks in a dense head begin at 0: a query drawn at random disturbs the others. Where each query of
  the file gets as many copies, all answers stay what they were; else the first, the background's, gets none: twice
  the background takes the borders of every organ. The copies' classes are not 0, so that the masks learn;
* tables over positions (Swin's relative bias, a ViT's embedding): interpolated, which is right for cubes alone.

Anything else is not fitted: equal numbers of elements promise no equal meaning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

BIAS_TABLE, POSITIONS = "relative_position_bias_table", "position_embeddings"


Axes = Mapping[str, tuple[int, ...]]
"""By name of a parameter, along which of its axes the rows stand for something."""


@dataclass(frozen=True)
class Context:
    """What a module takes and gives: channels and labels of the file and of the module, where known.

    `label_axes` says of parameters by name along which axes their rows are the labels'; None: not known. Of these,
    `query_axes` are those of one query or several for each; `channel_axes` are the input channels'.
    """

    in_channels: int | None = None
    old_classes: Sequence[str] | None = None
    new_classes: Sequence[str] | None = None
    label_axes: Axes | None = None
    query_axes: Axes = field(default_factory=dict[str, tuple[int, ...]])
    old_channels: Sequence[str] | None = None
    new_channels: Sequence[str] | None = None
    channel_axes: Axes = field(default_factory=dict[str, tuple[int, ...]])

    def is_relabelled(self, name: str) -> bool:
        """Whether the rows of a parameter are of other labels in the file, or of the same in another order."""
        known = bool(self.old_classes and self.new_classes)
        return known and tuple(self.old_classes or ()) != self.new_classes and name in (self.label_axes or ())

    def is_rechanneled(self, name: str) -> bool:
        """Whether the rows of a parameter are of channels that are partly others in the file, or in another order."""
        old, new = self.old_channels or (), self.new_channels or ()
        return tuple(old) != tuple(new) and bool(set(old) & set(new)) and name in self.channel_axes


class Fitted(NamedTuple):
    """A tensor for a parameter, how it came to its shape, and how many of its numbers are the file's."""

    value: Tensor
    how: str
    taken: int


def adapt(name: str, value: Tensor, target: Tensor, context: Context) -> Fitted | None:
    """`value` in the shape of `target`, or None where it is not known how.

    `target` is the module's own parameter.
    """
    if value.ndim != target.ndim or not value.is_floating_point():
        return None
    differing = [axis for axis, (a, b) in enumerate(zip(value.shape, target.shape, strict=True)) if a != b]
    if name.endswith(BIAS_TABLE) and differing == [0]:
        found = _table(value.unsqueeze(0), len(target))
        return None if found is None else found._replace(value=found.value[0])
    if name.endswith(POSITIONS) and value.ndim == 3 and differing == [1]:
        return _table(value, target.shape[1])
    if context.is_rechanneled(name) and set(differing) <= set(context.channel_axes[name]):
        fitted = _channels(value, target, context, context.channel_axes[name])
        if fitted is not None:
            return fitted
    if value.ndim == 5 and differing == [1] and target.shape[1] == context.in_channels:
        scale = value.shape[1] / target.shape[1]
        fitted = value.mean(1, keepdim=True).expand_as(target) * scale
        how = f"input channels {value.shape[1]} → {target.shape[1]}"
        return Fitted(fitted.contiguous(), how, target.numel())
    axes = (0,) if context.label_axes is None else context.label_axes.get(name, ())
    axes = tuple(dict.fromkeys((*axes, *context.query_axes.get(name, ()))))
    return _rows(name, value, target, context, axes) if axes and set(differing) <= set(axes) else None


def _rows(name: str, value: Tensor, target: Tensor, context: Context, axes: Sequence[int]) -> Fitted | None:
    """Rows of labels and of queries, each along its axes."""
    value, taken, hows = value.detach(), value.numel(), list[str]()
    for axis in axes:
        sizes = value.shape[axis], target.shape[axis]
        is_query = axis in context.query_axes.get(name, ())
        found = _query_places(*sizes, context) if is_query else _label_places(*sizes, context)
        if found is None:
            return None
        picked = value.index_select(axis, torch.tensor(found.old, dtype=torch.long))
        taken = taken // sizes[0] * len(found.old)
        new = [row for row in range(sizes[1]) if row not in found.new]
        if not is_query:
            further = value.mean(axis, keepdim=True).repeat_interleave(len(new), axis)
        elif value.ndim == 2:  # the queries themselves, or their classes
            copied = range(len(found.old))
            if len(new) % len(copied):
                copied = copied[:0:-1] or copied
            turns = [copied[row % len(copied)] for row in range(len(new))]
            further = picked.index_select(axis, torch.tensor(turns, dtype=torch.long))
        else:
            further = torch.zeros_like(value).narrow(axis, 0, 1).repeat_interleave(len(new), axis)
        order = torch.tensor([*found.new, *new], dtype=torch.long).argsort()
        value = torch.cat([picked, further], axis).index_select(axis, order)
        hows += found.how
    return Fitted(value.contiguous(), "; ".join(dict.fromkeys(hows)), taken)


class _Places(NamedTuple):
    """Rows of the parameter, the rows of the file that come there, and how that is said."""

    new: list[int]
    old: list[int]
    how: list[str]


def _shared(old: Sequence[str], new: Sequence[str]) -> tuple[list[int], list[int]]:
    """The places among `new`, and among `old`, of names that both have."""
    names = [name for name in new if name in old]
    return [new.index(name) for name in names], [old.index(name) for name in names]


def _label_places(old_size: int, new_size: int, context: Context) -> _Places | None:
    old, new = context.old_classes, context.new_classes
    extra = old_size - len(old or ())  # "no object", where a head has it
    if not old or not new or extra not in (0, 1) or new_size - len(new) != extra:
        return None
    to, source = _shared(old, new)
    last = range(extra)
    how = f"classes {len(old)} → {len(new)}, {len(to)} by name"
    return _Places([*to, *(len(new) for _ in last)], [*source, *(len(old) for _ in last)], [how])


def _query_places(old_size: int, new_size: int, context: Context) -> _Places:
    old, new = context.old_classes or (), context.new_classes or ()
    how: list[str] = []
    to: list[int] = []
    source: list[int] = []
    if (old_size, new_size) == (len(old), len(new)):
        to, source = _shared(old, new)
        how.append(f"classes {old_size} → {new_size}, {len(to)} by name")
    elif old_size != new_size:
        how.append(f"queries {old_size} → {new_size}")
    free = [row for row in range(new_size) if row not in to]
    left = [row for row in range(old_size) if row not in source]
    kept = min(len(free), len(left))
    if to and kept:
        how.append(f"{kept} of {new_size} queries from other labels")
    if len(left) > kept:
        how.append(f"{len(left) - kept} of {old_size} queries left out")
    return _Places([*to, *free[:kept]], [*source, *left[:kept]], how)


def _channels(value: Tensor, target: Tensor, context: Context, axes: Sequence[int]) -> Fitted | None:
    """The filters of channels that both have; those of the others are 0."""
    old, new = context.old_channels or (), context.new_channels or ()
    to, source = _shared(old, new)
    if len(axes) != 1 or (value.shape[axes[0]], target.shape[axes[0]]) != (len(old), len(new)):
        return None
    picked = value.detach().index_select(axes[0], torch.tensor(source, dtype=torch.long))
    fitted = value.new_zeros(target.shape)
    fitted.index_copy_(axes[0], torch.tensor(to, dtype=torch.long), picked)
    return Fitted(fitted, f"input channels {len(old)} → {len(new)}, {len(to)} by name", picked.numel())


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
