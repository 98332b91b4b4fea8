"""`evaluate` for a run: predict and score its validation cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from maskmed_zoo.data.case import Case, load_case
from maskmed_zoo.data.dataset import RawDataset, open_dataset
from maskmed_zoo.data.formats import DEFAULT
from maskmed_zoo.data.instances import components, read_instances
from maskmed_zoo.data.sources import Data, open_sources
from maskmed_zoo.errors import DataError
from maskmed_zoo.evaluation.aggregate import summarize_cases
from maskmed_zoo.evaluation.case import LabelMapPair, ScoredCase, score_case
from maskmed_zoo.evaluation.metrics import chosen
from maskmed_zoo.evaluation.metrics.objects import Separated
from maskmed_zoo.files import write_json
from maskmed_zoo.inference.predictor import Predictor
from maskmed_zoo.inference.write import Prediction, check_targets, write_prediction
from maskmed_zoo.runner.display import Display
from maskmed_zoo.runner.load import load
from maskmed_zoo.runner.manifest import now
from maskmed_zoo.runner.run_folder import RunFolder, Which


def evaluate(
    run: RunFolder,
    *,
    data: Data | None = None,
    device: str | None = None,
    which: Which = "last",
    metrics: Sequence[str] = (),
    display: Display | None = None,
) -> dict[str, Any]:
    """Predict and score the run's validation cases; writes `predictions/` and `evaluation.json`, returns the latter.

    `data` is where the data sets lie now, in their order, if they have moved since training. Of each case the labels
    are scored that were annotated in it. `metrics` names those to compute besides Dice.
    """
    display, wanted = display or Display(), chosen(metrics)
    predictor, manifest = load(run, which=which, device=device), run.manifest()
    cases = validation_cases(manifest, data, predictor.channels)
    targets = {name: run.predictions / f"{name}{DEFAULT}" for name in cases}
    has_instances, weights = predictor.recipe.data.instances is not None, predictor.weights_sha256
    check_targets([*targets.values()], weights, with_instances=has_instances, overwrite=True)
    scored: list[ScoredCase] = []
    with display.task("evaluating") as progress:
        for name, (case, dataset) in cases.items():
            prediction, pair = _predicted(predictor, name, case, dataset)
            write_prediction(targets[name], prediction, predictor.labels, weights)
            scored.append(score_case(pair, wanted))
            progress(len(scored), len(cases))
    facts = {
        "recipe": predictor.recipe.name,
        "dataset": manifest["dataset"],
        "fold": manifest["fold"],
        "seed": manifest["seed"],
        "weights": which,
        "weights_sha256": weights,
        "test_time_augmentation": False,
        "overlap": predictor.recipe.inference.overlap,
        "date": now(),
    }
    result = facts | summarize_cases(scored, predictor.labels.names, wanted)
    write_json(run.evaluation_file, result)
    return result


def _predicted(predictor: Predictor, name: str, case: Case, dataset: RawDataset) -> tuple[Prediction, LabelMapPair]:
    """The prediction of a case, and what there is to score of it."""
    image, reference, geometry = load_case(case, dataset)
    if reference is None:
        raise DataError(f"{dataset.root}: validation case '{name}' has no label map")
    prediction = predictor.segment(image, geometry)
    separated = None
    if prediction.instances is not None:
        if predictor.recipe.data.instances == "map":
            numbers = read_instances(case, dataset, reference, geometry)
        else:
            numbers = components(reference, list(dataset.labels.foreground.values()))
        separated = Separated(prediction.instances.ids, numbers)
    pair = LabelMapPair(
        identifier=name,
        prediction=prediction.labels,
        reference=dataset.labels.renumbering(predictor.labels)[reference],
        labels=predictor.labels,
        annotated=dataset.annotated(case),
        spacing=geometry.spacing,
        instances=separated,
    )
    return prediction, pair


def validation_cases(
    manifest: dict[str, Any], data: Data | None, channels: Sequence[str]
) -> dict[str, tuple[Case, RawDataset]]:
    """The run's validation cases by the names they have in it; raises `DataError` unless they are what they were."""
    records = [record for record in manifest["data"] if record["cases"] == "fold"]
    if data is None:
        datasets = [open_dataset(record["path"]) for record in records]
    else:
        datasets = [source.dataset for source in open_sources(data) if not source.is_whole]
    if len(datasets) != len(records):
        known = ", ".join(record["name"] for record in records)
        raise DataError(f"{len(datasets)} data sets to validate on; give those of the run, in their order: {known}")
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
