"""The scores of one case: which labels count, what each metric says of them, and what became of the instances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import hypot, prod
from typing import Any

from numpy.typing import NDArray
from scipy.ndimage import find_objects

from maskmed_zoo.errors import DataError
from maskmed_zoo.evaluation.calibration import Calibration, Probabilities, calibration
from maskmed_zoo.evaluation.joint import joint_histogram
from maskmed_zoo.evaluation.lesions import BratsLesions, brats_lesions, lesions
from maskmed_zoo.evaluation.matching import Overlaps
from maskmed_zoo.evaluation.mean import mean
from maskmed_zoo.evaluation.metrics import Metric
from maskmed_zoo.evaluation.metrics.objects import Matches, Separated, match_objects
from maskmed_zoo.evaluation.reference import checksum_of
from maskmed_zoo.evaluation.surfaces import Mask, SurfacePair, surface_pair
from maskmed_zoo.labels import Labels
from maskmed_zoo.metric_settings import MetricSettings
from maskmed_zoo.settings import Spacing3


@dataclass(frozen=True, eq=False)
class LabelMapPair:
    """A predicted and a reference label map (z y x) with the values of `labels`, and what belongs to their case.

    `annotated` names the labels that were annotated in the reference; the others have no score, whatever was predicted.
    `spacing` (z, y, x) in mm. `instances` are the separated instances of both, where they are scored too. `settings`
    are what metrics depend on besides. `probabilities` are those that the prediction is made of, on its voxels, where
    metrics take them. `patient` is whose case it is, where that is known.
    """

    identifier: str
    prediction: NDArray[Any]
    reference: NDArray[Any]
    labels: Labels
    annotated: frozenset[str]
    spacing: Spacing3
    instances: Separated | None = None
    settings: MetricSettings = field(default_factory=MetricSettings)
    probabilities: Probabilities | None = None
    patient: str | None = None
    _surfaces: dict[str, SurfacePair] = field(default_factory=dict[str, SurfacePair], init=False, repr=False)
    _lesions: dict[str, Overlaps] = field(default_factory=dict[str, Overlaps], init=False, repr=False)

    @property
    def diagonal(self) -> float:
        """Of the image, mm: from one outer corner to the other, the largest distance there can be."""
        return hypot(*(voxels * mm for voxels, mm in zip(self.reference.shape, self.spacing, strict=True)))

    @property
    def scored(self) -> dict[str, int]:
        """Values by name of the foreground labels that were annotated."""
        return {name: value for name, value in self.labels.foreground.items() if name in self.annotated}

    @cached_property
    def voxels(self) -> dict[str, Voxels]:
        """Voxels of each foreground label on both sides, those of the reference's 'ignore' left out."""
        values = list(self.labels.foreground.values())
        joint = joint_histogram(self.prediction, self.reference, values, self.labels.ignore)
        counts = zip(joint.sum(0).tolist(), joint.sum(1).tolist(), joint.diagonal().tolist(), strict=True)
        return {name: Voxels(*found) for name, found in zip(self.labels.foreground, list(counts)[1:], strict=True)}

    def masks(self, name: str) -> tuple[Mask, Mask]:
        """Where prediction and reference have a label, in the box (z y x) that holds both; without 'ignore'."""
        box, value = self.boxes[name], self.labels[name]
        ours, theirs = self.prediction[box] == value, self.reference[box] == value
        if self.labels.ignore is not None:
            ours &= self.reference[box] != self.labels.ignore
        return ours, theirs

    def surfaces(self, name: str) -> SurfacePair:
        """The surfaces of a label that both sides have; computed once."""
        if name not in self._surfaces:
            self._surfaces[name] = surface_pair(*self.masks(name), self.spacing)
        return self._surfaces[name]

    @cached_property
    def calibration(self) -> Calibration:
        """The calibration of the probabilities; raises `DataError` without any."""
        if self.probabilities is None:
            raise DataError(f"case '{self.identifier}': metrics of probabilities are asked for, and there are none")
        return calibration(self, self.probabilities)

    def lesions(self, name: str) -> Overlaps:
        """How the lesions of a label meet; found once."""
        if name not in self._lesions:
            self._lesions[name] = lesions(*self.masks(name))
        return self._lesions[name]

    def brats_lesions(self, name: str) -> BratsLesions:
        """The lesions of a label as BraTS counts them; not kept, as they take 9 bytes per voxel of its box."""
        how = self.settings
        return brats_lesions(*self.masks(name), how.brats_dilation, how.brats_smallest / prod(self.spacing))

    @cached_property
    def boxes(self) -> dict[str, tuple[slice, ...]]:
        """Of each foreground label that there is, (z y x) around both sides."""
        highest = max(self.labels.foreground.values())
        sides = [find_objects(side, highest) for side in (self.prediction, self.reference)]
        boxes: dict[str, tuple[slice, ...]] = {}
        for name, value in self.labels.foreground.items():
            there = [box for box in (side[value - 1] for side in sides) if box]
            if there:
                ends = zip(*there, strict=True)
                boxes[name] = tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in ends)
        return boxes


@dataclass(frozen=True)
class Voxels:
    """Voxels of a label in a prediction, in a reference, and in both at one place."""

    prediction: int
    reference: int
    shared: int


@dataclass(frozen=True)
class CaseScores:
    """One metric's values of one case by label name, `None` where a label has none.

    `unannotated` names the labels that were not annotated in the case; scores they may have do not count. `missed`,
    `false` and `absent` name those that only the reference, only the prediction, and neither has.
    """

    identifier: str
    values: Mapping[str, float | None]
    unannotated: frozenset[str] = frozenset()
    missed: frozenset[str] = frozenset()
    false: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()

    @property
    def mean(self) -> float | None:
        """Mean over the labels that have a score, `None` if none has."""
        return mean(self.values.values())


@dataclass(frozen=True)
class ScoredCase:
    """What `score_case` gives: scores by metric and, where asked for, matches of instances by label and calibration.

    `patient` as in the pair; `reference` is a checksum of the reference's labels.
    """

    identifier: str
    scores: dict[str, CaseScores] = field(default_factory=dict[str, CaseScores])
    instances: dict[str, Matches] | None = None
    calibration: Calibration | None = None
    patient: str | None = None
    reference: str = ""


def score_case(pair: LabelMapPair, metrics: Sequence[Metric]) -> ScoredCase:
    """The scores of one case; raises `DataError` for maps of different shapes, not 3-D, or that hold no integers."""
    if pair.prediction.shape != pair.reference.shape:
        raise DataError(
            f"case '{pair.identifier}': prediction {pair.prediction.shape} and reference {pair.reference.shape} differ "
            f"in shape"
        )
    if pair.reference.ndim != 3:
        raise DataError(
            f"case '{pair.identifier}': label maps are {pair.reference.ndim}-D, expected 3-D (z y x); give a slice an "
            f"axis of length 1"
        )
    for side, array in (("prediction", pair.prediction), ("reference", pair.reference)):
        if array.dtype.kind not in "iub":
            raise DataError(
                f"case '{pair.identifier}': the {side} holds {array.dtype} values, a label map holds integers"
            )
    unannotated = frozenset(pair.labels.foreground) - pair.annotated
    there = {name: pair.voxels[name] for name in pair.scored}
    missed = frozenset(name for name, n in there.items() if n.reference and not n.prediction)
    false = frozenset(name for name, n in there.items() if n.prediction and not n.reference)
    absent = frozenset(name for name, n in there.items() if not n.prediction and not n.reference)
    scores = {
        metric.name: CaseScores(pair.identifier, _values(pair, metric), unannotated, missed, false, absent)
        for metric in metrics
    }
    instances = None
    if pair.instances is not None:
        ours, theirs = pair.instances.prediction, pair.instances.reference
        sides = (pair.prediction, ours), (pair.reference, theirs)
        instances = match_objects(*sides, pair.scored, pair.labels.ignore)
    has_probabilities = any(metric.from_probabilities for metric in metrics)
    calibration, checksum = pair.calibration if has_probabilities else None, checksum_of(pair.reference, pair.labels)
    return ScoredCase(pair.identifier, scores, instances, calibration, pair.patient, checksum)


def _values(pair: LabelMapPair, metric: Metric) -> dict[str, float | None]:
    values: dict[str, float | None] = {}
    wanted: list[str] = []
    for name in pair.scored:
        there = pair.voxels[name]
        if not there.prediction and not there.reference:
            values[name] = metric.both_absent
        elif metric.one_absent is not None and not (there.prediction and there.reference):
            values[name] = pair.diagonal if metric.one_absent == "diagonal" else metric.one_absent
        else:
            wanted.append(name)
    found = metric.compute(pair, wanted) if wanted else {}
    return {name: found[name] if name in wanted else values[name] for name in pair.scored}
