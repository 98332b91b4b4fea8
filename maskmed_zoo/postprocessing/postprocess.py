"""`postprocess`: choose post-processing on the label maps that `evaluate` left of validation cases, of all folds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from maskmed_zoo.data.case import Case, check_values
from maskmed_zoo.data.dataset import RawDataset
from maskmed_zoo.data.formats import DEFAULT, read_labels
from maskmed_zoo.data.image import check_same_geometry
from maskmed_zoo.data.predicted import PredictedFolder
from maskmed_zoo.data.sources import Data
from maskmed_zoo.errors import CheckpointError, DataError, Failures
from maskmed_zoo.files import is_file, sha256_of, write_json
from maskmed_zoo.inference.postprocessing import POSTPROCESSING
from maskmed_zoo.inference.predictor import together
from maskmed_zoo.labels import Labels
from maskmed_zoo.memory import within_memory
from maskmed_zoo.postprocessing.counts import CaseCounts, LabelCounts, counts_of
from maskmed_zoo.postprocessing.document import Document, document_of
from maskmed_zoo.runner.display import Display
from maskmed_zoo.runner.evaluate import patients_of, validation_cases
from maskmed_zoo.runner.manifest import now
from maskmed_zoo.runner.run_folder import RunFolder, Which
from maskmed_zoo.runner.study_folder import folds_in
from maskmed_zoo.runner.study_members import finished_folds


def postprocess(
    source: RunFolder,
    *,
    data: Data | None = None,
    which: Which = "last",
    dry_run: bool = False,
    display: Display | None = None,
) -> Document:
    """Choose, and unless `dry_run` write `postprocessing.json` into the run or the study, where `predict` finds it.

    Read are the label maps that `evaluate` made with the weights `which`, and the references; nothing is predicted.
    `data` is where the data sets lie now, if they have moved. Raises `CheckpointError` for a folder that is no run, and
    `DataError` for all cases that cannot be used, or that two folds validate; the file is then left as it was.
    """
    display = display or Display()
    runs = [*finished_folds(source.path, display.say).values()] if folds_in(source.path) else [source]
    labels, sums = runs[0].recipe(with_loss=False).labels, [_weights_of(run, which) for run in runs]
    places = [place for run, sha256 in zip(runs, sums, strict=True) for place in _places(run, data, sha256)]
    twice = [name for name, count in Counter(place.name for place in places).items() if count > 1]
    if twice:
        raise DataError(f"{source.path}: folds share the validation case '{twice[0]}', which would count twice")
    cases, failures = list[CaseCounts](), Failures()
    with display.task("counting parts") as progress:
        for done, place in enumerate(places, start=1):
            with failures.kept(), within_memory(f"case '{place.name}'"):
                cases.append(CaseCounts(place.name, place.patient, _counts(place, labels, which)))
            progress(done, len(places))
    failures.tell(len(places), "nothing is chosen before all can be used")
    document = document_of(cases, list(labels.foreground), weights=which, sha256=together(sums), date=now())
    if not dry_run:
        write_json(source.path / POSTPROCESSING, document.model_dump(mode="json"))
    return document


@dataclass(frozen=True)
class _Place:
    """Where a validation case lies, its prediction by the weights of the checksum `sha256`, and whose it is."""

    name: str
    case: Case
    dataset: RawDataset
    run: RunFolder
    sha256: str
    patient: str


def _places(run: RunFolder, data: Data | None, sha256: str) -> list[_Place]:
    cases = validation_cases(run.manifest(), data, run.recipe(with_loss=False).channels)
    patients = patients_of(cases)
    return [_Place(name, *found, run, sha256, patients.get(name, name)) for name, found in cases.items()]


def _weights_of(run: RunFolder, which: Which) -> str:
    path = run.weights_file(which)
    if not is_file(path):
        raise CheckpointError(f"{path}: is missing; post-processing is chosen for weights, so train the run first")
    return sha256_of(path)


def _counts(place: _Place, labels: Labels, which: Which) -> dict[str, LabelCounts]:
    run, case, dataset = place.run, place.case, place.dataset
    target = run.predictions / f"{place.name}{DEFAULT}"
    if not is_file(target) or PredictedFolder(run.predictions).weights_of(target.name) != place.sha256:
        option = "" if which == "last" else f" --weights {which}"
        raise DataError(
            f"{target}: no label map of the {which} weights; 'maskmed-zoo evaluate {run.path}{option}' makes it"
        )
    if case.label is None:
        raise DataError(f"{dataset.root}: validation case '{place.name}' has no label map")
    prediction, reference = read_labels(target), read_labels(case.label)
    check_same_geometry(reference, prediction)
    check_values(set(np.unique(reference.array).tolist()), case, dataset)
    theirs = dataset.labels.renumbering(labels)[reference.array]
    annotated = dataset.annotated(case)
    wanted = [name for name in labels.foreground if name in annotated]
    return counts_of(prediction.array, theirs, labels, wanted, prediction.spacing)
