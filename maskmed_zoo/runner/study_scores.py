"""The score of a study: the cases of all its folds together, each scored by the network that has not seen it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import ValidationError

from maskmed_zoo import distributed
from maskmed_zoo.data.formats import DEFAULT
from maskmed_zoo.data.sources import Data
from maskmed_zoo.errors import CheckpointError, DataError
from maskmed_zoo.evaluation.aggregate import summarize_cases
from maskmed_zoo.evaluation.calibration import pool_calibration
from maskmed_zoo.evaluation.case import CaseScores, ScoredCase
from maskmed_zoo.evaluation.case_table import CASES, write_cases
from maskmed_zoo.evaluation.metrics import DEFAULT as DICE
from maskmed_zoo.evaluation.metrics import Metric
from maskmed_zoo.evaluation.metrics import metrics as known_metrics
from maskmed_zoo.evaluation.metrics.objects import summarize_rows
from maskmed_zoo.evaluation.settings import SettingsSource
from maskmed_zoo.files import write_json
from maskmed_zoo.inference.predictor import together
from maskmed_zoo.metric_settings import MetricSettings
from maskmed_zoo.runner.display import Display
from maskmed_zoo.runner.evaluate import evaluate, maps_of, validation_cases
from maskmed_zoo.runner.manifest import now
from maskmed_zoo.runner.pictures import Maps, can_draw, clear, draw
from maskmed_zoo.runner.run_folder import RunFolder, Which
from maskmed_zoo.runner.study_members import finished_folds

SAME = ("recipe", "dataset", "seed", "weights", "epochs", "test_time_augmentation", "overlap")
"""Keys of a run's `evaluation.json` that a study has too, where all folds say the same, else null."""
DEFINITION = (
    "a case counts once, with the scores of the fold that validated it, whose network was not trained on it; all "
    "means, counts and intervals are of these cases together. Below folds: the means of each fold over its own cases"
)


def evaluate_study(
    study: Path,
    *,
    data: Data | None = None,
    device: str | None = None,
    which: Which = "last",
    metrics: Sequence[str] = (),
    settings: SettingsSource | None = None,
    display: Display | None = None,
) -> dict[str, Any]:
    """`evaluate` for every finished fold, as for a run, and their scores together, which are written too.

    Folds that are not trained to their end are left out, which is told. Raises what `evaluate` does, and
    `CheckpointError` for folds of different recipes or data sets, or where none is finished.
    """
    distributed.join()
    display = display or Display(quiet=not distributed.is_first())
    runs = finished_folds(study, display.say)
    found: dict[int, dict[str, Any]] = {}
    for fold, run in runs.items():
        found[fold] = evaluate(
            run, data=data, device=device, which=which, metrics=metrics, settings=settings, display=display
        )
    scores = pool(runs, found)
    if distributed.is_first():
        write_scores(study, runs, scores, data, display)
    return scores


def pool(runs: Mapping[int, RunFolder], found: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """One summary, like that of a run, of the summaries of folds; `runs` are theirs.

    It has the metrics that all folds have scores of, and `folds`: what each comes to by itself. Raises `DataError` for
    a case in two folds, for folds scored with different settings, and for files of another form.
    """
    try:
        return _pool(runs, found)
    except (KeyError, TypeError, ValueError, AttributeError, ValidationError) as error:
        places = ", ".join(str(run.evaluation_file) for run in runs.values())
        raise DataError(f"{places}: no scores as this version writes them; evaluate the study again") from error


def write_scores(
    study: Path, runs: Mapping[int, RunFolder], scores: Mapping[str, Any], data: Data | None, display: Display
) -> None:
    """`evaluation.json`, `evaluation.csv` and pictures, as of a run."""
    write_cases(scores, study / CASES)
    write_json(RunFolder(study).evaluation_file, scores)
    if not can_draw():
        clear(study)
        display.say('no picture of cases, which needs matplotlib: pip install "maskmed-zoo[report]"')
        return
    recipe = next(iter(runs.values())).recipe(with_loss=False)
    of_case = {name: run for run in runs.values() for name in run.manifest()["validation"]}

    def maps(name: str) -> Maps:
        run = of_case[name]
        case, dataset = validation_cases(run.manifest(), data, recipe.channels)[name]
        return maps_of(case, dataset, recipe.labels, run.predictions / f"{name}{DEFAULT}")

    draw(study, scores, recipe.labels, maps)


def _pool(runs: Mapping[int, RunFolder], found: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    tables = {fold: {DICE: one, **one.get("metrics", {})} for fold, one in found.items()}
    first, *others = found
    names = [name for name in tables[first] if name in known_metrics() and all(name in t for t in tables.values())]
    for fold in others:
        how = [(found[one]["metric_settings"], [tables[one][name]["rules"] for name in names]) for one in (first, fold)]
        if how[0] != how[1]:
            raise CheckpointError(
                f"{runs[fold].evaluation_file}: scored with other settings than {runs[first].evaluation_file}; "
                f"evaluate the study again, with --metric-settings"
            )
    wanted = [known_metrics()[name] for name in names]
    cases = sorted((case for fold in found for case in _cases(tables[fold], wanted)), key=lambda case: case.identifier)
    if len({case.identifier for case in cases}) < len(cases):
        raise DataError(f"{runs[first].path.parent}: folds share validation cases, which would count twice")
    settings = MetricSettings.model_validate(found[first]["metric_settings"])
    seconds = [value for one in found.values() if (value := one.get("seconds_per_case")) is not None]
    summary = {key: _shared([one.get(key) for one in found.values()]) for key in SAME} | {
        "weights_sha256": together([one["weights_sha256"] for one in found.values()]),
        "seconds_per_case": median(seconds) if seconds else None,
        "date": now(),
    }
    summary |= summarize_cases(cases, list(found[first]["labels"]), wanted, settings)
    if all("instances" in one for one in found.values()):
        rows = {row["case"]: row["labels"] for one in found.values() for row in one["instances"]["cases"]}
        summary["instances"] = summarize_rows(rows, list(found[first]["instances"]["labels"]))
    if all("calibration" in one for one in found.values()):
        calibrations = [one["calibration"] for one in found.values()]
        labels = dict.fromkeys(name for one in calibrations for name in one["labels"])
        summary["calibration"] = pool_calibration(calibrations, labels, settings.calibration_bins)
    summary["folds"] = [
        {"fold": fold, "run": runs[fold].path.name, "cases": len(one["cases"])}
        | {key: one.get(key) for key in ("epochs", "weights_sha256", "seconds_per_case", "date")}
        | {f"mean_{name}": tables[fold][name][f"mean_{name}"] for name in names}
        for fold, one in found.items()
    ]
    summary["folds_definition"] = DEFINITION
    return summary


def _cases(tables: Mapping[str, Mapping[str, Any]], wanted: Sequence[Metric]) -> list[ScoredCase]:
    """The cases of a fold as they were scored."""
    by_metric = {
        metric.name: {
            case["case"]: CaseScores(
                case["case"],
                case[metric.name],
                *(frozenset(case[key]) for key in ("unannotated", "missed", "false", "absent")),
            )
            for case in tables[metric.name]["cases"]
        }
        for metric in wanted
    }
    return [
        ScoredCase(
            case["case"],
            {name: scores[case["case"]] for name, scores in by_metric.items()},
            patient=case["patient"],
            reference=case["reference"],
        )
        for case in tables[DICE]["cases"]
    ]


def _shared(values: Sequence[Any]) -> Any:
    """What all say, None where they differ."""
    return values[0] if all(value == values[0] for value in values) else None
