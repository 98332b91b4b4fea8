"""A predicted case on disk: its files, and which weights made them.

```
OUT/NAME.nii.gz                 label map
OUT/NAME_instances.nii.gz       where instances are separated: their numbers 1, 2, …
OUT/NAME_instances.json         number -> label, volume_mm3, score: the class probability of its query, or null
OUT/NAME_probabilities.nii.gz   where asked for, as `inference.write_probabilities` says; so are NAME.npz and NAME.pkl
OUT/.maskmed_predictions.json   which weights made which label map, and what its values mean; see `data.predicted`
```
A case is written in such an order that its label map stands there only when all the rest does, and replaced only by a
whole one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskmed_zoo.data.formats import read_labels, stem_of, write_labels
from maskmed_zoo.data.image import Geometry
from maskmed_zoo.data.predicted import (
    FORMS,
    Form,
    PredictedFolder,
    facts_beside,
    files_of,
    objects_beside,
    refuse_shared_names,
)
from maskmed_zoo.errors import DataError
from maskmed_zoo.files import UNFINISHED, make_folder, remove_abandoned, sha256_of, unwritable, write_json
from maskmed_zoo.inference.stitcher import Instances, counts
from maskmed_zoo.inference.write_probabilities import write_probabilities
from maskmed_zoo.labels import Labels

PREDICTING = ".predicting-"
"""Before the name of a folder in which a case is put together."""
ELSEWHERE = "give another folder, or move it away"
"""What to do about a file in the way."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """Label map (z y x) of an image and, where instances are separated, its objects; its probabilities if asked for."""

    labels: NDArray[Any]
    instances: Instances | None
    geometry: Geometry
    probabilities: Iterable[tuple[str, NDArray[np.float32]]] | None = None


def write_prediction(
    target: Path,
    prediction: Prediction,
    labels: Labels,
    weights_sha256: str,
    *,
    overwrite: bool = True,
    request: str | None = None,
    settings: Mapping[str, Any] | None = None,
    probabilities: Sequence[Form] = (),
) -> None:
    """Write a case's files; `request` is the checksum of the image and settings that they were made with.

    `probabilities` are written in these forms, beside the label map; the prediction has to have them. What an earlier
    one had more is removed, unless it was the same: of these weights and settings, without `overwrite`. Everything is
    written under other names first, so that an earlier prediction stays whole until the new one is.
    Raises `DataError` for a label map that cannot be stored, and unless `overwrite` where another process has put one
    of other weights there, `OutputError` if a file cannot be written.
    """
    folder = target.parent
    make_folder(folder)
    record = PredictedFolder(folder)
    values = {name: value for value, name in enumerate(labels.names)}
    try:
        if target.exists():
            with record.held():
                _refuse_others(record, target, weights_sha256, settings, overwrite)
                record.announce(target.name, weights_sha256, values, {}, settings=settings)
        with tempfile.TemporaryDirectory(prefix=PREDICTING, dir=folder, ignore_cleanup_errors=True) as name:
            made = Path(name) / target.name
            if prediction.instances is not None:
                write_instances(made, prediction.instances, labels.names, prediction.geometry)
            if prediction.probabilities is not None:
                write_probabilities(made, prediction.probabilities, prediction.geometry, probabilities, len(values))
            write_labels(made, prediction.labels, prediction.geometry)
            files = files_of(made, with_instances=prediction.instances is not None, probabilities=probabilities)
            with record.held():
                _refuse_others(record, target, weights_sha256, settings, overwrite)
                how: dict[str, Any] = {"weights_sha256": weights_sha256, "request": request, "settings": settings}
                _put_in_place(record, target, files, labels=values, overwrite=overwrite, **how)
    except OSError as error:
        raise unwritable(target, error) from error


def _refuse_others(
    record: PredictedFolder, target: Path, weights_sha256: str, settings: Mapping[str, Any] | None, overwrite: bool
) -> None:
    if not overwrite and target.exists() and (whose := _others(record, target, weights_sha256, settings)):
        raise DataError(f"{target}: made {whose} in the meantime; give another folder, or --overwrite")


def _others(
    record: PredictedFolder, target: Path, weights_sha256: str, settings: Mapping[str, Any] | None
) -> str | None:
    """In words, how a label map that is there was made otherwise, and is not being replaced; None where it was not."""
    is_ours = record.is_made_with(target.name, weights_sha256, settings)
    if is_ours or record.is_begun(target.name, weights_sha256, settings):
        return None
    return "with other settings" if record.weights_of(target.name) == weights_sha256 else "by other weights"


def _put_in_place(
    record: PredictedFolder,
    target: Path,
    files: Sequence[Path],
    *,
    labels: Mapping[str, int],
    overwrite: bool,
    weights_sha256: str,
    request: str | None,
    settings: Mapping[str, Any] | None,
) -> None:
    """Move whole files of a case beside its label map, unless the user has put something there in the meantime."""
    every = files_of(target, with_instances=True, probabilities=FORMS)
    there = [path for path in every if path.exists()]
    names = {path.name for path in files}
    unknown = [path for path in there if not record.is_known(path.name, target.name)]
    _refuse_unknown([path for path in unknown if path.name in names])
    sums = {path.name: sha256_of(path) for path in files}
    is_same = not overwrite and target in there and record.is_made_with(target.name, weights_sha256, settings)
    is_same = is_same and sha256_of(target) == sums[target.name]  # and not of another image in the meantime
    leftover = set[str]() if is_same else {path.name for path in there if path not in unknown} - names
    record.announce(target.name, weights_sha256, labels, sums, request=request, settings=settings)
    for path in files:  # the label map last
        path.replace(record.folder / path.name)
    for name in leftover:
        (record.folder / name).unlink()
    record.enter(target.name, gone=sorted(leftover))


def check_targets(
    targets: Sequence[Path],
    weights_sha256: str,
    *,
    with_instances: bool,
    overwrite: bool,
    remedy: str = ELSEWHERE,
    settings: Mapping[str, Any] | None = None,
    probabilities: Sequence[Form] = (),
) -> None:
    """Raise `DataError` for files in the way: of other weights or settings unless `overwrite`, and the user's own."""
    if with_instances:
        refuse_shared_names({stem_of(target) for target in targets})
    records = {folder: PredictedFolder(folder) for folder in {target.parent for target in targets}}
    unknown: list[Path] = []
    others: dict[str, list[Path]] = {}
    for target in targets:
        record = records[target.parent]
        names = files_of(target, with_instances=with_instances, probabilities=probabilities)
        files = [path for path in names if path.exists()]
        unknown += [path for path in files if not record.is_known(path.name, target.name)]
        if target in files and (whose := _others(record, target, weights_sha256, settings)):
            others.setdefault(whose, []).append(target)
    _refuse_unknown(unknown, remedy)
    for whose, theirs in others.items():
        if not overwrite:
            raise DataError(f"{_counted(theirs)}: made {whose}; give another folder, or --overwrite to replace them")


def clear_abandoned(folder: Path) -> None:
    """Remove what killed processes left in a folder of predictions."""
    for prefix in (PREDICTING, UNFINISHED):
        remove_abandoned(folder, f"{prefix}*")


def is_finished(
    record: PredictedFolder,
    target: Path,
    weights_sha256: str,
    *,
    with_instances: bool,
    request: str | None = None,
    settings: Mapping[str, Any] | None = None,
    probabilities: Sequence[Form] = (),
) -> bool:
    """Whether all files of a case are there, as `predict` left them, of these weights and, if given, what else is.

    `record` is that of the folder.
    """
    files = files_of(target, with_instances=with_instances, probabilities=probabilities)
    if not all(path.exists() and record.is_known(path.name, target.name) for path in files):
        return False
    is_same = request is None or record.request_of(target.name) == request
    return is_same and record.is_made_with(target.name, weights_sha256, settings)


def read_prediction(target: Path, *, with_instances: bool) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """The label map (z y x) of a finished case, and the numbers of its objects; `DataError` for damaged files."""
    numbers = read_labels(objects_beside(target)).array if with_instances else None
    return read_labels(target).array, numbers


def _refuse_unknown(unknown: Sequence[Path], remedy: str = ELSEWHERE) -> None:
    if unknown:
        raise DataError(
            f"{_counted(unknown)}: made by something unknown, or changed since it was predicted, so it is not "
            f"replaced; {remedy}"
        )


def _counted(paths: Sequence[Path]) -> str:
    return f"{paths[0]} and {len(paths) - 1} more" if len(paths) > 1 else str(paths[0])


def write_instances(target: Path, found: Instances, names: Sequence[str], geometry: Geometry) -> None:
    """The map of objects beside the label map `target`, and for each its label's name, its volume and its score."""
    sizes = counts(found.ids, len(found.labels) + 1)[1:] * np.prod(geometry.spacing)
    facts = {
        str(number): {"label": names[label], "volume_mm3": round(float(volume), 3), "score": score}
        for number, (label, volume, score) in enumerate(zip(found.labels, sizes, found.scores, strict=True), start=1)
    }
    path = objects_beside(target)
    write_labels(path, found.ids, geometry)
    write_json(facts_beside(path), facts)
