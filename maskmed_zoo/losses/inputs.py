"""What every loss is given, checked in one place: shapes and types at once, values with as little waiting as can be.

A loss makes an `InputCheck` of its own and begins `forward` with it. On the CPU a wrong value is an error of that very
call. On a GPU, looking would wait for all that was queued, so the loss's first call is judged at once, and any later
one by a flag that is copied meanwhile and read by the next call; until then its wrong voxels count for nothing. A loss
that copies numbers to the host anyway takes `look`, sends `Given.seen` along and has it judged with the rest. Compiled
by `torch.compile`, and on meta, values are not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from maskmed_zoo.contracts import HeadOutput, StageOutput
from maskmed_zoo.errors import JointError

SIGNED = (torch.int16, torch.int32, torch.int64)
TOLERANCE = 1e-3
"""How far labels in floating point may be from whole numbers; as those of files."""
TOP_ID = 2**32 - 1
NOT_IGNORED = -100
"""What wrong voxels become where there is no ignore label; `cross_entropy` leaves it out by default."""


@dataclass(frozen=True)
class Given:
    """Labels and instances (b d h w), integer, and annotated (b k) bool, plain tensors on the output's device.

    `seen` float32: for labels, then instances: whether a value is wrong, the smallest, the largest and how far from
    whole numbers they are.
    """

    labels: Tensor
    annotated: Tensor | None
    instances: Tensor | None
    seen: Tensor


class InputCheck:
    """The check of one loss; see the module.

    Args:
        num_classes: K, background included.
        ignore_label: the value that counts for nothing, if there is one.
        accepts: what the loss reads of an output, as `Loss.accepts`.
    """

    def __init__(self, num_classes: int, ignore_label: int | None, accepts: Literal["logits", "queries"]) -> None:
        self.num_classes, self.ignore_label, self.accepts = num_classes, ignore_label, accepts
        self._was_called, self._pending = False, list[tuple[Tensor, Any]]()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pending": []}  # an event is of one process and cannot be copied

    def __call__(
        self, output: HeadOutput, labels: Tensor, annotated: Tensor | None = None, instances: Tensor | None = None
    ) -> Given:
        """Raise `JointError` for inputs that do not fit, on a GPU also for values of the call before."""
        given = self.look(output, labels, annotated, instances)
        if torch.compiler.is_compiling() or given.seen.is_meta:
            return given
        is_first, self._was_called = not self._was_called, True
        if is_first or not is_queued(given.seen):
            self.judge(given.seen.cpu())
            return given
        self._judge_pending()
        self._pending.append(to_pinned(given.seen))
        return replace(given, labels=self.without_wrong(given.labels))

    def look(
        self, output: HeadOutput, labels: Tensor, annotated: Tensor | None = None, instances: Tensor | None = None
    ) -> Given:
        """The inputs in the form that losses read; raises `JointError` for shapes, types and devices."""
        if not isinstance(output, HeadOutput) or not output.stages:  # pyright: ignore[reportUnnecessaryIsInstance]
            what = type(output).__name__
            raise JointError(f"expected the HeadOutput of a network and then labels, got a {what} for the former")
        final, *_ = (self._maps(stage) for stage in output.stages)
        labels, of_labels = self._look("labels", labels, final, self.num_classes - 1, self.ignore_label)
        seen = [*of_labels]
        if instances is not None:
            instances, of_instances = self._look("instances", instances, final, TOP_ID, None)
            seen += of_instances
        if annotated is not None:
            annotated = _checked(annotated, "annotated", final)
            if annotated.shape != (len(labels), self.num_classes) or annotated.dtype != torch.bool:
                raise JointError(
                    f"annotated {tuple(annotated.shape)} must be (batch, labels) = {(len(labels), self.num_classes)}, "
                    f"bool, got {annotated.dtype}"
                )
        return Given(labels, annotated, instances, torch.stack([x.float() for x in seen]))

    def judge(self, seen: Sequence[float] | Tensor) -> None:
        """Raise `JointError` for wrong values in `Given.seen`, on the host."""
        numbers = [float(x) for x in seen]
        for name, top, at in (("labels", self.num_classes - 1, 0), ("instances", TOP_ID, 4))[: len(numbers) // 4]:
            is_wrong, low, high, off = numbers[at : at + 4]
            if is_wrong:
                wrong = sorted({x for x in (low, high) if not 0 <= x <= top})
                if not off <= TOLERANCE:
                    raise JointError(
                        f"{name} hold numbers that are not whole; were they interpolated? take the nearest voxel"
                    )
                held = f"{' and '.join(f'{x:.0f}' for x in wrong)} (values from {low:.0f} to {high:.0f})"
                raise JointError(f"{name} hold {held}; {self._due(name)}")

    def without_wrong(self, labels: Tensor) -> Tensor:
        """Labels (b d h w) whose wrong values are ignored."""
        fill = NOT_IGNORED if self.ignore_label is None else self.ignore_label
        wrong = (labels < 0) | (labels >= self.num_classes)
        return labels.long().masked_fill(wrong, fill)

    def _judge_pending(self) -> None:
        while self._pending:
            seen, copied = self._pending.pop()
            copied.synchronize()
            self.judge(seen)

    def _due(self, name: str) -> str:
        if name == "instances":
            return "expected whole numbers from 0, for none, to 2^32 - 1"
        ignored = "and no other" if self.ignore_label is None else f"or {self.ignore_label}, which is ignored"
        return (
            f"expected whole numbers from 0 to {self.num_classes - 1}, {ignored}; renumber them (a mask of 0 and 255: "
            f"(labels == 255).long()), or give the loss the ignore_label or num_classes that they have"
        )

    def _maps(self, stage: StageOutput) -> Tensor:
        """The tensor with the voxel axes, of as many labels as the loss has."""
        if self.accepts == "logits" and stage.logits is None:
            raise JointError("this loss needs logits; use 'set_criterion' for heads that give masks and class logits")
        if self.accepts == "queries" and (stage.masks is None or stage.class_logits is None):
            raise JointError("this loss needs masks and class logits; use 'ce_dice' for heads that give logits")
        maps = stage.logits if self.accepts == "logits" else stage.masks
        classes = stage.logits.shape[1:2] if self.accepts == "logits" else stage.class_logits.shape[-1:]  # pyright: ignore
        if maps is None or maps.ndim != 5:
            raise JointError(f"expected {self.accepts} of volumes (b n d h w), got {tuple(stage.spatial.shape)}")
        due = self.num_classes + (self.accepts == "queries")
        if classes != (due,):
            what = "logits (b k d h w)" if self.accepts == "logits" else "class logits (b n k+1)"
            raise JointError(
                f"the output has {classes[0]} for the {due} that a loss for {self.num_classes} labels takes of {what}; "
                f"give head and loss the same num_classes"
            )
        return maps

    def _look(
        self, name: str, x: Tensor, final: Tensor, top: int, ignored: int | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        x = _checked(x, name, final)
        due = (len(final), *final.shape[2:])
        if x.ndim == 5 and x.shape[1] == 1:
            x = x.squeeze(1)
        if tuple(x.shape) != due:
            raise JointError(
                f"{name} {tuple(x.shape)} do not fit the output {tuple(final.shape)}: expected (batch, depth, height, "
                f"width) = {due}, or that with a channel axis of 1; {_remedy(name, x.shape, due)}"
            )
        whole, off = _integers(x, ignored)
        kept = whole if ignored is None else whole.masked_fill(whole == ignored, 0)
        low, high = kept.aminmax() if x.numel() else (off, off)
        return whole, ((low < 0) | (high > top) | ~(off <= TOLERANCE), low, high, off)


def is_queued(x: Tensor) -> bool:
    """Whether to read `x` would be to wait."""
    return x.is_cuda


def to_pinned(x: Tensor) -> tuple[Tensor, Any]:
    """A copy on the host, and the event after which it is there."""
    there = torch.empty(x.shape, pin_memory=True).copy_(x, non_blocking=True)
    return there, torch.cuda.current_stream(x.device).record_event()


def _checked(x: Tensor, name: str, final: Tensor) -> Tensor:
    """`x` as a plain tensor; that of a data loader may be of a class of its own."""
    if not isinstance(x, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise JointError(f"{name} are a {type(x).__name__}, expected a tensor; torch.as_tensor makes one")
    if x.is_complex():
        raise JointError(f"{name} are {x.dtype}, expected whole numbers")
    if x.device != final.device:
        raise JointError(f"{name} are on {x.device}, the output on {final.device}; give {name}.to('{final.device}')")
    return x if type(x) is Tensor else x.as_subclass(Tensor)


def _integers(x: Tensor, ignored: int | None) -> tuple[Tensor, Tensor]:
    """`x` in a type that also holds the ignore label, and how far from whole numbers it was; NaN for one not finite."""
    off = torch.zeros((), device=x.device)
    if x.is_floating_point():
        off = (x - x.round()).abs().amax() if x.numel() else off
        return x.round().long(), off
    if x.dtype in SIGNED and torch.iinfo(x.dtype).min <= (ignored or 0) <= torch.iinfo(x.dtype).max:
        return x, off
    return x.long(), off


def _remedy(name: str, shape: Sequence[int], due: Sequence[int]) -> str:
    if len(shape) == 5 and (shape[0], *shape[2:]) == due:
        return f"of one-hot {name} give {name}.argmax(1)"
    if tuple(shape) == due[1:]:
        return f"give one per image: {name}[None]" if due[0] == 1 else "give one per image of the batch"
    if len(shape) == 4 and tuple(shape[1:]) == tuple(due[1:]):
        return "give one per image of the batch"
    if sorted(shape[-3:]) == sorted(due[1:]):
        return "their axes are z, y, x, as the image's: permute them"
    return "crop, pad or resample them as the image was"
