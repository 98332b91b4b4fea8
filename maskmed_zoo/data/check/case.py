"""One case looked at whole: every problem of its files, and the facts by which it is compared with the others."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from maskmed_zoo.data.case import Case, check_values
from maskmed_zoo.data.dataset import RawDataset
from maskmed_zoo.data.formats import read_image, read_labels
from maskmed_zoo.data.image import Volume, check_same_geometry
from maskmed_zoo.data.normalize import Scaling, scaling_of
from maskmed_zoo.data.problem import ProblemError, problem_of
from maskmed_zoo.errors import DataError, MemoryShortageError
from maskmed_zoo.recipe.schema import Scheme
from maskmed_zoo.settings import Size3, Spacing3

FEWEST_VOXELS = 20
"""Of a label in a case: intensities of fewer say nothing."""


class Intensity(NamedTuple):
    """Of the voxels of a label: 5th percentile, mean, 95th percentile, standard deviation."""

    low: float
    mean: float
    high: float
    std: float


@dataclass
class Examined:
    """What is known of a case when its arrays are gone.

    `intensities`: by channel and label name, in units that all cases share: those of the image, or, for channels that
    are normalized case by case, standard deviations from the image's mean. `contents`: for each image file the hash of
    its voxels, constant images left out.
    """

    case: Case
    labels: set[int] = field(default_factory=set[int])
    spacing: Spacing3 | None = None
    shape: Size3 | None = None
    orientation: str = ""
    contents: list[tuple[Path, str]] = field(default_factory=list[tuple[Path, str]])
    intensities: dict[tuple[int, str], Intensity] = field(default_factory=dict[tuple[int, str], Intensity])
    problems: list[ProblemError] = field(default_factory=list[ProblemError])


def examine(case: Case, dataset: RawDataset, schemes: tuple[Scheme, ...]) -> Examined:
    """Read a case, file by file, and keep what is wrong with it; nothing is raised for that."""
    facts = Examined(case)
    label = _read(read_labels, case.label, facts) if case.label else None
    if label is not None:
        _examine_label(label, dataset, facts)
    first: Volume | None = None
    constant: list[Path] = []
    for channel, path in enumerate(case.images):
        image = _read(read_image, path, facts)
        if image is None:
            continue
        _compare(first or image, image, facts)
        if first is None:
            first = Volume(np.empty(0), image.geometry, path)  # its voxels are not needed any more
            facts.spacing, facts.shape = image.spacing, image.geometry.canonical_shape
            facts.orientation = "".join(nib.aff2axcodes(image.geometry.affine))
            if label is not None:
                _compare(image, label, facts)
        scaling = _scaling(image, schemes[channel] if channel < len(schemes) else "none", facts)
        if image.array.min() == image.array.max():
            constant.append(path)
            continue
        facts.contents.append((path, hashlib.blake2b(image.array.data, digest_size=16).hexdigest()))
        is_whole = len(case.images) == len(dataset.channels)
        if is_whole and label is not None and label.array.shape == image.array.shape:
            for name, intensity in _intensities(image.array, label.array, dataset, scaling):
                facts.intensities[channel, name] = intensity
    for path in constant:
        what = "every voxel has the same value"
        remedy = "export the image again" if len(constant) == len(case.images) else "add the channel, if there is one"
        _tell(facts, path, ProblemError(path, what, remedy, kind="constant image"))
    return facts


def _examine_label(label: Volume, dataset: RawDataset, facts: Examined) -> None:
    """Values that nothing declares, and a map without foreground."""
    facts.labels = set(np.unique(label.array).tolist())
    check_values(facts.labels, facts.case, dataset, tell=facts.problems.append)
    if not facts.labels & set(dataset.labels.foreground.values()):
        what = f"no voxel of any label, all are {', '.join(map(str, sorted(facts.labels)))}"
        remedy = "annotate it, or leave it as an example without any"
        _tell(facts, label.path, ProblemError(label.path, what, remedy, kind="no foreground"))


def _read(read: Callable[[Path], Volume], path: Path, facts: Examined) -> Volume | None:
    try:
        return read(path)
    except (DataError, MemoryShortageError) as error:
        _tell(facts, path, problem_of(error, path, "unreadable file"))
        return None


def _compare(image: Volume, other: Volume, facts: Examined) -> None:
    try:
        check_same_geometry(image, other)
    except ProblemError as error:
        _tell(facts, other.path, error)


def _scaling(image: Volume, scheme: Scheme, facts: Examined) -> Scaling:
    """What makes intensities of several cases comparable: how they are normalized where that is case by case."""
    if scheme != "ct":
        try:
            return scaling_of(image.array, scheme, None, where=str(image.path))
        except DataError as error:
            _tell(facts, image.path, problem_of(error, image.path, "value range"))
    return Scaling(0.0, 1.0)


def _intensities(
    image: NDArray[np.float32], labels: NDArray[np.int16], dataset: RawDataset, scaling: Scaling
) -> Iterator[tuple[str, Intensity]]:
    """Of each label that has enough voxels, in units that all cases share."""
    inside = np.flatnonzero(labels > 0)
    values, found = scaling.of(image.ravel()[inside]), labels.ravel()[inside]
    for name, value in dataset.labels.foreground.items():
        own = values[found == value].astype(np.float64)
        if own.size >= FEWEST_VOXELS:
            low, high = np.percentile(own, (5, 95)).tolist()
            yield name, Intensity(low, float(own.mean()), high, float(own.std()))


def _tell(facts: Examined, path: Path, problem: ProblemError) -> None:
    """Keep a problem without the traceback of an error, which would keep the arrays."""
    case = facts.case.identifier
    facts.problems.append(ProblemError(path, problem.what, problem.remedy, kind=problem.kind, case=case))
