"""`evaluate` for a run: predict and score its validation cases; of n processes, each does every n-th case."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskmed_zoo import distributed
from maskmed_zoo.data.case import Case, load_case
from maskmed_zoo.data.dataset import RawDataset, open_dataset
from maskmed_zoo.data.formats import DEFAULT, read_labels
from maskmed_zoo.data.groups import GROUPS, read_groups
from maskmed_zoo.data.image import Geometry
from maskmed_zoo.data.instances import components, read_instances
from maskmed_zoo.data.predicted import PredictedFolder
from maskmed_zoo.data.sources import Data, gone, open_sources
from maskmed_zoo.errors import DataError, Failures
from maskmed_zoo.evaluation.aggregate import summarize_cases
from maskmed_zoo.evaluation.calibration import Probabilities
from maskmed_zoo.evaluation.case import LabelMapPair, ScoredCase, score_case
from maskmed_zoo.evaluation.case_table import CASES, write_cases
from maskmed_zoo.evaluation.metrics import chosen
from maskmed_zoo.evaluation.metrics.objects import Separated
from maskmed_zoo.evaluation.settings import SettingsSource, check_names, metric_settings
from maskmed_zoo.evaluation.written import read_summary
from maskmed_zoo.files import is_file, is_folder, write_json
from maskmed_zoo.inference.predictor import Predictor
from maskmed_zoo.inference.write import check_targets, clear_abandoned, is_finished, read_prediction, write_prediction
from maskmed_zoo.labels import Labels
from maskmed_zoo.memory import within_memory
from maskmed_zoo.runner.display import Display
from maskmed_zoo.runner.load import load
from maskmed_zoo.runner.manifest import now
from maskmed_zoo.runner.pictures import Maps, can_draw, clear, draw
from maskmed_zoo.runner.run_folder import RunFolder, Which


def evaluate(
    run: RunFolder,
    *,
    data: Data | None = None,
    device: str | None = None,
    which: Which = "last",
    metrics: Sequence[str] = (),
    settings: SettingsSource | None = None,
    display: Display | None = None,
) -> dict[str, Any]:
    """Predict and score the run's validation cases; writes `predictions/` and `evaluation.json`, returns the latter.

    Beside it are the pictures of `runner.pictures`, if matplotlib is there.

    `data` is where the data sets lie now, in their order, if they have moved since training. Of each case the labels
    are scored that were annotated in it. `metrics` names those to compute besides Dice, with `settings` in place of the
    recipe's. A label map that the same weights made of the same image with the same settings is not predicted again,
    unless metrics take its probabilities.
    Of several processes that `torchrun` has started, rank 0 writes, and all return the same.
    Raises `DataError` for settings that name a label there is not, and one for all cases that cannot be used, after the
    others are predicted; `evaluation.json` is then left as it was.
    """
    distributed.join()
    display, wanted = display or Display(quiet=not distributed.is_first()), chosen(metrics)
    given = None if settings is None else metric_settings(settings)
    predictor, manifest = load(run, which=which, device=device), run.manifest()
    used_settings = given or predictor.recipe.evaluation
    check_names(used_settings, predictor.labels)
    cases = validation_cases(manifest, data, predictor.channels)
    targets = {name: run.predictions / f"{name}{DEFAULT}" for name in cases}
    has_instances, weights = predictor.recipe.data.instances is not None, predictor.weights_sha256
    as_they_are = f"evaluate --pred {run.predictions} --ref DIR, where DIR holds the references of these cases alone"
    remedy = f"move it away, or score the maps as they are: {as_they_are}"
    if distributed.is_first():
        check_targets([*targets.values()], weights, with_instances=has_instances, overwrite=True, remedy=remedy)
        for folder in (run.path, run.predictions):
            clear_abandoned(folder)
    distributed.wait()
    patients, scored, seconds = patients_of(cases), list[ScoredCase](), list[float]()
    has_probabilities = any(metric.from_probabilities for metric in wanted)
    failures = Failures()

    def pair_of(name: str, case: Case, dataset: RawDataset) -> LabelMapPair:
        before, start = _changed(targets[name]), time.perf_counter()
        pair = _pair(predictor, name, case, dataset, targets[name], has_probabilities=has_probabilities)
        if _changed(targets[name]) != before:
            seconds.append(time.perf_counter() - start)
        return replace(pair, settings=used_settings, patient=patients.get(name))

    with display.task("evaluating") as progress:
        for done, name in enumerate(list(cases)[distributed.rank() :: distributed.size()], start=1):
            with failures.kept(), within_memory(f"case '{name}'"):
                scored.append(score_case(pair_of(name, *cases[name]), wanted))  # kept under no name for the next case
            progress(min(done * distributed.size(), len(cases)), len(cases))
    if distributed.size() > 1:
        scored, seconds, failures = _of_all(scored, seconds, failures, list(cases))
    failures.tell(len(cases), f"the others are predicted, in {run.predictions}, and nothing is scored")
    if not distributed.is_first():
        return distributed.from_first(dict[str, Any]())
    facts = {
        "recipe": predictor.recipe.name,
        "dataset": manifest["dataset"],
        "fold": manifest["fold"],
        "seed": manifest["seed"],
        "weights": which,
        "weights_sha256": weights,
        "epochs": run.epochs_behind(which, weights),
        "test_time_augmentation": bool(predictor.mirror_axes),
        "overlap": predictor.recipe.inference.overlap,
        "seconds_per_case": median(seconds) if seconds else _known_seconds(run, weights),
        "date": now(),
    }
    result = facts | summarize_cases(scored, predictor.labels.names, wanted, used_settings)
    write_cases(result, run.path / CASES)
    write_json(run.evaluation_file, result)
    if can_draw():
        draw(run.path, result, predictor.labels, lambda name: maps_of(*cases[name], predictor.labels, targets[name]))
    else:
        clear(run.path)
        display.say('no picture of cases, which needs matplotlib: pip install "maskmed-zoo[report]"')
    return distributed.from_first(result)


def _of_all(
    scored: list[ScoredCase], seconds: list[float], failures: Failures, names: list[str]
) -> tuple[list[ScoredCase], list[float], Failures]:
    """What all processes found together, the cases in the order of `names`."""
    parts, together = distributed.gathered((scored, seconds, failures)), Failures()
    together.take(part[2] for part in parts)
    cases = sorted((case for part in parts for case in part[0]), key=lambda case: names.index(case.identifier))
    return cases, [time for part in parts for time in part[1]], together


def _changed(path: Path) -> int | None:
    """When a file was last written, ns; None where there is none."""
    return path.stat().st_mtime_ns if is_file(path) else None


def _known_seconds(run: RunFolder, weights: str) -> float | None:
    """Seconds per case of an earlier evaluation of these weights, which predicted what is read again now."""
    scores = read_summary(run.evaluation_file) or {}
    return scores.get("seconds_per_case") if scores.get("weights_sha256") == weights else None


def patients_of(cases: dict[str, tuple[Case, RawDataset]]) -> dict[str, str]:
    """Patients by case, where the data sets tell of them; those of different data sets are different people."""
    patients: dict[str, str] = {}
    datasets = list({id(dataset): dataset for _, dataset in cases.values()}.values())
    for dataset in datasets:
        if is_file(dataset.root / GROUPS):
            own = {name: case.identifier for name, (case, there) in cases.items() if there is dataset}
            known = read_groups(dataset.root / GROUPS, list(own.values()))
            same = [other for other in datasets if other.root.name == dataset.root.name]
            number = f"{same.index(dataset) + 1}/" if len(same) > 1 else ""
            prefix = f"{dataset.root.name}/{number}" if len(datasets) > 1 else ""
            patients |= {name: f"{prefix}{known[case]}" for name, case in own.items()}
    return patients


def _pair(
    predictor: Predictor, name: str, case: Case, dataset: RawDataset, target: Path, *, has_probabilities: bool
) -> LabelMapPair:
    """What there is to score of a case, whose prediction is written to `target` unless it is there already."""
    image, reference, geometry = load_case(case, dataset)
    if reference is None:
        raise DataError(f"{dataset.root}: validation case '{name}' has no label map")
    request = _request(predictor, case)
    labels, ids, probabilities = _predicted(
        predictor, image, geometry, target, request, has_probabilities=has_probabilities
    )
    separated = None
    if ids is not None:
        if predictor.recipe.data.instances == "map":
            numbers = read_instances(case, dataset, reference, geometry)
        else:
            numbers = components(reference, list(dataset.labels.foreground.values()))
        separated = Separated(ids, numbers)
    return LabelMapPair(
        identifier=name,
        prediction=labels,
        reference=dataset.labels.renumbering(predictor.labels)[reference],
        labels=predictor.labels,
        annotated=dataset.annotated(case),
        spacing=geometry.spacing,
        instances=separated,
        probabilities=probabilities,
    )


def maps_of(case: Case, dataset: RawDataset, labels: Labels, target: Path) -> Maps:
    """Of a case that was predicted, to `target`, and scored with the run's `labels`."""
    image, reference, geometry = load_case(case, dataset)
    if reference is None:
        raise DataError(f"{dataset.root}: validation case '{case.identifier}' has no label map any more")
    reference = dataset.labels.renumbering(labels)[reference]
    return image[0], reference, read_labels(target).array, geometry.spacing


def _predicted(
    predictor: Predictor,
    image: NDArray[np.float32],
    geometry: Geometry,
    target: Path,
    request: str,
    *,
    has_probabilities: bool,
) -> tuple[NDArray[Any], NDArray[Any] | None, Probabilities | None]:
    """Label map, numbers of objects and, if asked for, probabilities of a case: new ones, whose label map is written.

    Those written before do without probabilities.
    """
    has_instances, weights = predictor.recipe.data.instances is not None, predictor.weights_sha256
    record = PredictedFolder(target.parent)
    if not has_probabilities and is_finished(record, target, weights, with_instances=has_instances, request=request):
        with suppress(DataError):  # more objects than label maps are read with
            return *read_prediction(target, with_instances=has_instances), None
    prediction = predictor.segment(image, geometry, probabilities=has_probabilities)
    write_prediction(target, prediction, predictor.labels, weights, request=request, settings=predictor.settings)
    ids = None if prediction.instances is None else prediction.instances.ids
    return prediction.labels, ids, prediction.probabilities


def _request(predictor: Predictor, case: Case) -> str:
    """Checksum of what a label map depends on besides the weights: the image's files and the settings."""
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in case.images]
    recipe = predictor.recipe.model_dump(mode="json")
    if not predictor.mirror_axes:
        del recipe["inference"]["mirror"]  # which earlier versions did not have
    content = [
        files,
        recipe["data"],
        recipe["inference"],
        str(predictor.dtype),
        [stats.to_dict() for stats in predictor.fingerprint],
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def validation_cases(
    manifest: dict[str, Any], data: Data | None, channels: Sequence[str]
) -> dict[str, tuple[Case, RawDataset]]:
    """The run's validation cases by the names they have in it; raises `DataError` unless they are what they were."""
    records = [record for record in manifest["data"] if record["cases"] == "fold"]
    if data is None:
        datasets = [_open(record) for record in records]
    else:
        datasets = [source.dataset for source in open_sources(data) if not source.is_whole]
    if len(datasets) != len(records):
        known = ", ".join(record["name"] for record in records)
        raise DataError(f"{len(datasets)} data sets to validate on; give those of the run, in their order: {known}")
    if not manifest["validation"]:
        raise DataError("the run has no validation cases; predict images with it, and score those")
    cases: dict[str, tuple[Case, RawDataset]] = {}
    for record, dataset in zip(records, datasets, strict=True):
        if dataset.labels != record["labels"] or dataset.channels != tuple(channels):
            raise DataError(
                f"{dataset.root / 'dataset.json'}: channels {list(dataset.channels)} and labels {dataset.labels}, in "
                f"training {list(channels)} and {record['labels']}; give the run's data set as it was"
            )
        cases |= {record["prefix"] + case.identifier: (case, dataset) for case in dataset.cases}
    for name in manifest["validation"]:
        if name not in cases:
            roots = ", ".join(str(dataset.root) for dataset in datasets)
            raise DataError(f"{roots}: validation case '{name}' of the run is not there; give its data set")
    return {name: cases[name] for name in manifest["validation"]}


def _open(record: dict[str, Any]) -> RawDataset:
    if not is_folder(Path(record["path"])):
        raise DataError(gone(record))
    return open_dataset(record["path"])
