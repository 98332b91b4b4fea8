"""Whole folders of label maps to scores, whoever made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskmed_zoo.data.annotated import ANNOTATED, annotated_labels, check_annotated
from maskmed_zoo.data.case import image_files
from maskmed_zoo.data.dataset import declared_labels
from maskmed_zoo.data.formats import read_labels, stem_of, written_endings
from maskmed_zoo.data.groups import GROUPS, read_groups
from maskmed_zoo.data.image import Volume, check_same_geometry
from maskmed_zoo.data.instances import components
from maskmed_zoo.data.predicted import PredictedFolder, is_objects_file, npz_beside, objects_beside, renumbered
from maskmed_zoo.errors import ArgumentError, DataError, Failures
from maskmed_zoo.evaluation.aggregate import summarize_cases
from maskmed_zoo.evaluation.calibration import Probabilities
from maskmed_zoo.evaluation.case import LabelMapPair, ScoredCase, score_case
from maskmed_zoo.evaluation.metrics import chosen
from maskmed_zoo.evaluation.metrics.objects import Separated
from maskmed_zoo.evaluation.probability_files import ProbabilityFile
from maskmed_zoo.evaluation.settings import SettingsSource, check_names, metric_settings
from maskmed_zoo.files import usable
from maskmed_zoo.labels import Labels, LabelsError
from maskmed_zoo.metric_settings import MetricSettings

MOST_FOUND = 1000
"""Values in label maps that nothing describes; an image has more."""
NOTHING = "nothing is scored before these are mended or taken out"
"""What becomes of the other cases."""


def evaluate_folders(
    pred: str | Path,
    ref: str | Path,
    labels: Mapping[str, int] | None = None,
    *,
    metrics: Sequence[str] = (),
    settings: SettingsSource | None = None,
    missing_as_missed: bool = False,
) -> dict[str, Any]:
    """The summary of every label map in `ref` and the file of the same name in `pred`.

    `labels` maps names to values, with 'background' 0 and perhaps 'ignore'. Without it they come from `dataset.json` in
    `ref` or beside it, else from the values found, named `label_1`, …. Label maps of `predict` are compared by the
    names of their labels, whatever the values: see `data.predicted`. An `annotated.json` in `ref` or beside it says
    which labels were annotated in each case, a `groups.json` which cases are of one patient; each has to list every
    reference. Predictions without a reference are left out and listed under `unreferenced`. A reference without a
    prediction is refused or, with `missing_as_missed`, scored as if the prediction were empty, its probabilities too,
    and listed under `unpredicted`. Where predictions have instance maps beside them, these are scored too, under
    `instances`; `metrics` names those to compute besides Dice, under `metrics`, with `settings`; those of probabilities
    read them beside the predictions: see `probability_files`. Raises `DataError` for no cases or no predictions,
    settings that name a label there is not, and, one line for each case, maps that do not lie on one another, values
    that are no label, probabilities that are not the label map's, and an annotated.json that the references contradict.
    """
    used_settings = MetricSettings() if settings is None else metric_settings(settings)
    pred, ref, wanted = usable(Path(pred), DataError), usable(Path(ref), DataError), chosen(metrics)
    names, missing = _names(pred, ref, missing_as_missed=missing_as_missed)
    known = known_labels(ref, labels)
    used = known or _found([*(pred / name for name in names if name not in missing), *(ref / name for name in names)])
    check_names(used_settings, used)
    source = _beside(ref, ANNOTATED)
    identifiers = [stem_of(Path(name)) for name in names]
    annotated = annotated_labels(source, used, identifiers, others=True) if source else {}
    groups = _beside(ref, GROUPS)
    patients = read_groups(groups, identifiers) if groups else {}
    record = PredictedFolder(pred)
    has_instances = any(is_objects_file(objects_beside(pred / name), record) for name in names)
    has_probabilities = any(metric.from_probabilities for metric in wanted)
    cases: list[ScoredCase] = []
    failures = Failures()

    def pair_of(name: str, identifier: str) -> LabelMapPair:
        reference = read_labels(ref / name)
        prediction = _empty(reference, pred / name) if name in missing else read_labels(pred / name)
        check_same_geometry(reference, prediction)
        own = record.labels_of(name) if known else None
        prediction = replace(prediction, array=renumbered(prediction.array, own, used))
        there = annotated.get(identifier, frozenset(used.foreground))
        _check_values(prediction, used)
        check_annotated(_check_values(reference, used), reference.path, used, there)
        separated = _separated(prediction, reference, used, names) if has_instances else None
        given = None
        if has_probabilities:
            given = _certain(prediction, used) if name in missing else _probabilities(prediction, own or used, used)
        arrays, patient = (prediction.array, reference.array), patients.get(identifier)
        return LabelMapPair(
            identifier, *arrays, used, there, reference.spacing, separated, used_settings, given, patient
        )

    for name, identifier in zip(names, identifiers, strict=True):
        with failures.kept():
            cases.append(score_case(pair_of(name, identifier), wanted))  # a name for the pair would keep it too long
    failures.tell(len(names), NOTHING)
    summary = summarize_cases(cases, list(used.foreground), wanted, used_settings)
    files = [path for path in image_files(pred) if not record.is_beside(path.name)]
    predicted = {path.name for path in files if not is_objects_file(path, record)}
    summary["unpredicted"] = [stem_of(Path(name)) for name in missing]
    summary["unreferenced"] = sorted(stem_of(Path(name)) for name in predicted - set(names))
    return summary


def _names(pred: Path, ref: Path, *, missing_as_missed: bool) -> tuple[list[str], list[str]]:
    """File names of the references, and of those without a prediction.

    Raises `DataError` for the latter unless they are `missing_as_missed`, and where there is no prediction at all.
    """
    for folder in (pred, ref):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder")
    record = PredictedFolder(pred)
    names = [path.name for path in image_files(ref) if not is_objects_file(path) or record.is_label_map(path.name)]
    if not names:
        raise DataError(f"{ref}: no label maps (*{', *'.join(written_endings())})")
    missing = [name for name in names if not (pred / name).is_file()]
    if missing and (not missing_as_missed or len(missing) == len(names)):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DataError(
            f"{pred}: no prediction for {', '.join(missing[:3])}{more} of the {len(names)} cases in {ref}; predict "
            f"them, count them as missed (--missing-as-missed), or give the references of the others alone"
        )
    return names, missing


def _empty(reference: Volume, path: Path) -> Volume:
    """A prediction without any label, in place of one that is not there."""
    return replace(reference, path=path, array=np.zeros_like(reference.array))


def known_labels(ref: Path, labels: Mapping[str, int] | None) -> Labels | None:
    """The labels given, or those of a dataset.json; None where nothing names them."""
    if labels is None:
        source = _beside(ref, "dataset.json")
        return declared_labels(source) if source else None
    if not isinstance(labels, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ArgumentError(f"labels to score: expected names and values, as {{'liver': 1}}, got {labels!r}")
    try:
        return labels if isinstance(labels, Labels) else Labels(labels, gaps=True)
    except LabelsError as error:
        raise DataError(f"labels to score: {error}") from error


def _beside(ref: Path, name: str) -> Path | None:
    """A file in the folder of references or beside it."""
    return next((path for path in (ref / name, ref.parent / name) if path.is_file()), None)


def _found(paths: Sequence[Path]) -> Labels:
    """Labels named by their values, where nothing describes the maps."""
    values: set[int] = set()
    failures = Failures()
    for path in paths:
        with failures.kept():
            here: set[int] = set(np.unique(read_labels(path).array).tolist())
            if min(here) < 0:
                raise DataError(f"{path}: value {min(here)} is no label; labels are 0, 1, 2, …")
            if len(values | here) > MOST_FOUND:
                raise DataError(
                    f"{path}: an image? {len(values | here)} different values are more than {MOST_FOUND} labels; give "
                    f"label maps, or name the labels in a dataset.json beside {paths[-1].parent}"
                )
            values |= here
    failures.tell(len(paths), NOTHING, in_one_line=True)
    try:
        return Labels.found(values)
    except LabelsError as error:
        raise DataError(f"{paths[-1].parent}: labels to score: {error}") from error


def _check_values(volume: Volume, labels: Labels) -> set[int]:
    values: set[int] = set(np.unique(volume.array).tolist())
    unknown = values - {0, *labels.values()}
    if unknown:
        raise DataError(f"{volume.path}: value {min(unknown)} is no label; labels are {labels}")
    return values


def _separated(pred: Volume, ref: Volume, labels: Labels, names: Sequence[str]) -> Separated:
    """The instances of a predicted and a reference label map by the maps that belong to them.

    The prediction's is `NAME_instances.nii.gz` beside it. The reference's is the same or, if it lies in a folder like
    `labelsTs`, `instancesTs/NAME.nii.gz`; without either its instances are the connected parts (26 neighbours) of each
    label. A file called so that is one of the `names` to score is no such map. Raises `DataError` for a prediction
    without a map, maps on other grids and negative numbers.
    """
    folder = ref.path.parent
    candidates = [path for path in (objects_beside(ref.path),) if path.name not in names]
    if folder.name.startswith("labels"):
        candidates.append(folder.with_name(folder.name.replace("labels", "instances", 1)) / ref.path.name)
    theirs = next((path for path in candidates if path.is_file()), None)
    parts = components(ref.array, list(labels.foreground.values())) if theirs is None else _numbers(theirs, ref)
    if not pred.path.exists():
        return Separated(np.zeros_like(parts), parts)
    ours = objects_beside(pred.path)
    if not is_objects_file(ours):
        raise DataError(f"{ours}: no such file with objects, though other predictions have theirs; predict it again")
    return Separated(_numbers(ours, pred), parts)


def _probabilities(prediction: Volume, own: Labels, labels: Labels) -> ProbabilityFile:
    """The file beside a predicted map with the labels `own`, which must be those to score."""
    path = npz_beside(prediction.path)
    if set(own.names) != set(labels.names):
        raise DataError(
            f"{path}: probabilities of {', '.join(own.names)}, but {', '.join(labels.names)} are scored; give "
            f"references with the labels of the predictions"
        )
    return ProbabilityFile(path, prediction, own.names)


def _certain(prediction: Volume, labels: Labels) -> Probabilities:
    """Of a prediction that is not there: background, surely, everywhere."""
    return [
        (name, np.broadcast_to(np.float32(name == labels.names[0]), prediction.array.shape)) for name in labels.names
    ]


def _numbers(path: Path, label_map: Volume) -> NDArray[np.int16]:
    volume = read_labels(path)
    check_same_geometry(label_map, volume)
    if volume.array.min() < 0:
        raise DataError(f"{path}: number {volume.array.min()}, expected 1, 2, … for objects and 0 elsewhere")
    return volume.array
