"""Post-processing of label maps: thresholds, holes filled, small parts removed, the largest part kept, label by label.

A threshold t of a label gives its probability the weight (1 - t) / t when the most probable label is taken, the others
having theirs, and the background 1. At .5 nothing changes; with one foreground label it is "p of t or more". It moves
voxels between this label and any other, and comes before all else, while the label map is made of probabilities.

A part is what is connected through faces, edges or corners (26 neighbours). A hole is background, connected through
faces, that one label alone encloses and that does not touch the border of the image. So no step for parts of one label
changes another one, and what it does to the score of its label does not depend on the other ones. Compared in the tests
with MONAI's `KeepLargestConnectedComponent`, `FillHoles` and `RemoveSmallObjects`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from maskmed_zoo.data.parts import Parts, boxes_of, parts_of
from maskmed_zoo.errors import CheckpointError, UserError, first_line
from maskmed_zoo.files import read_json

FORMAT = "maskmed-zoo postprocessing 1"
ROUNDING = 1e-6
"""Share of a volume that spacings lose in headers: a part of just the smallest volume stays."""
Do = Literal["threshold", "fill_holes", "remove_small", "keep_largest"]
NEEDS = {"threshold": "at", "remove_small": "below_mm3"}
"""The number that a step has."""
Sizes = NDArray[np.int64]


class Step(BaseModel):
    """What is done with a label; `remove_small` removes parts of less than `below_mm3`, a `threshold` is `at`."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    label: str
    do: Do
    below_mm3: float | None = Field(default=None, gt=0)
    at: float | None = Field(default=None, gt=0, lt=1)

    @model_validator(mode="after")
    def _its_number(self) -> Self:
        for do, key in NEEDS.items():
            if (getattr(self, key) is None) == (self.do == do):
                raise ValueError(f"{do} needs {key}, and nothing else has it")
        return self

    @property
    def kind(self) -> Literal["threshold", "fill_holes", "parts"]:
        """A label has one step of a kind."""
        return "parts" if self.do in ("remove_small", "keep_largest") else self.do

    @property
    def weight(self) -> float:
        """Of the label's probability, beside 1 of the background's; 1 for a step that is no threshold."""
        return 1.0 if self.at is None else (1 - self.at) / self.at

    def kept(self, sizes: Sizes, voxel_mm3: float) -> NDArray[np.bool_]:
        """Which parts of so many voxels (parts) stay; of equal ones the first is the largest."""
        if self.do == "keep_largest":
            return np.arange(len(sizes)) == (sizes.argmax() if len(sizes) else -1)
        if self.do == "remove_small":
            return sizes * voxel_mm3 >= (self.below_mm3 or 0) * (1 - ROUNDING)
        return np.ones(len(sizes), np.bool_)


@dataclass(frozen=True)
class Postprocessing:
    """Steps for label maps whose labels have `values`.

    Whatever their order, thresholds come first, by the `weights` with which a label map is made of probabilities, then
    holes, then parts.
    """

    steps: tuple[Step, ...]
    values: Mapping[str, int]

    def apply(self, labels: NDArray[np.integer[Any]], spacing: Sequence[float]) -> NDArray[np.integer[Any]]:
        """All but thresholds: a label map (z y x) on voxels of `spacing` (z, y, x) mm, changed in place and returned.

        Memory: some 0.1 GB, more where two planes of voxels have over 4 million, and 30 bytes for each part.
        """
        steps = [step for step in self.steps if step.kind != "threshold"]
        if not steps:
            return labels
        boxes = boxes_of(labels, [self.values[step.label] for step in steps])
        for step in sorted(steps, key=lambda step: step.do != "fill_holes"):
            value = self.values[step.label]
            if value in boxes and step.do == "fill_holes":
                fill_holes(labels[boxes[value]], value)
            elif value in boxes:
                _keep(labels[boxes[value]], value, lambda sizes, s=step: s.kept(sizes, prod(spacing)))
        return labels

    @property
    def weights(self) -> dict[int, float]:
        """By the values of labels that have a threshold: what their probabilities are multiplied by."""
        return {self.values[step.label]: step.weight for step in self.steps if step.kind == "threshold"}

    @property
    def settings(self) -> list[dict[str, Any]]:
        """The steps in one order, JSON-able; those without a threshold as before there were any."""
        steps = sorted(self.steps, key=lambda step: (step.label, step.do))
        return [step.model_dump(exclude={"at"} if step.at is None else None) for step in steps]


def fill_holes(labels: NDArray[np.integer[Any]], value: int) -> None:
    """Fill the holes of a label in the box (z y x) around it."""
    around = Parts(lambda planes: labels[planes] != value, labels.shape, 6)
    is_hole = np.arange(around.count + 1) > 0
    for planes, numbers in around.slabs():
        sides = [numbers[:, [0, -1]], numbers[:, :, [0, -1]], numbers[labels[planes] != 0]]
        sides += [numbers[0]] if planes.start == 0 else []
        sides += [numbers[-1]] if planes.stop == len(labels) else []
        for side in sides:
            is_hole[side] = False
    if is_hole.any():
        for planes, numbers in around.slabs():
            labels[planes][is_hole[numbers]] = value


def _keep(labels: NDArray[np.integer[Any]], value: int, kept: Callable[[Sizes], NDArray[np.bool_]]) -> None:
    """Make background of the parts of a label that are not kept."""
    parts = parts_of(labels, value)
    is_gone = np.concatenate([[False], ~kept(parts.sizes)])
    if is_gone.any():
        for planes, numbers in parts.slabs():
            labels[planes][is_gone[numbers]] = 0


class Chosen(BaseModel):
    """What is read of `postprocessing.json`; `weights_sha256` is that of the weights it was chosen for."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    format: Literal["maskmed-zoo postprocessing 1"]
    weights_sha256: str
    steps: list[Step]

    @model_validator(mode="after")
    def _one_of_a_kind(self) -> Self:
        kinds = [(step.label, step.kind) for step in self.steps]
        if len(set(kinds)) < len(kinds):
            raise ValueError("steps: a label has one threshold, holes filled once, and one rule for its parts")
        return self


def read_postprocessing(path: Path, weights_sha256: str, values: Mapping[str, int]) -> Postprocessing:
    """What was chosen for these weights; `values` are those of the foreground labels in label maps.

    Raises `CheckpointError` for a file of another form, of labels that there are not, and chosen for other weights.
    """
    try:
        found = Chosen.model_validate(read_json(path, error=CheckpointError))
    except (ValidationError, ValueError, OverflowError) as error:
        first = error.errors(include_url=False)[0] if isinstance(error, ValidationError) else None
        where = f"{'.'.join(map(str, first['loc'])) or 'all of it'}: {first['msg']}" if first else first_line(error)
        raise CheckpointError(f"{path}: cannot be used ({where}); {REMEDY}") from error
    except UserError as error:
        raise CheckpointError(f"{first_line(error)}; {REMEDY}") from error
    unknown = [step.label for step in found.steps if not values.get(step.label)]
    if unknown:
        raise CheckpointError(f"{path}: names '{unknown[0]}', which is no label of the run; {REMEDY}")
    if found.weights_sha256 != weights_sha256:
        raise CheckpointError(f"{path}: chosen for other weights than those that predict; {REMEDY}")
    return Postprocessing(tuple(found.steps), values)


REMEDY = "'maskmed-zoo postprocess' chooses it anew, --no-postprocess (postprocess=False) predicts without"
