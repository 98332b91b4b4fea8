"""What is compared: methods of one or several runs each, from folders of runs, label maps of any tool, or scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskmed_zoo.comparison.scores import RunScores, check_alike, read_scores, scores_of, some
from maskmed_zoo.data.case import image_files
from maskmed_zoo.errors import ArgumentError, DataError, UserError
from maskmed_zoo.evaluation.folders import evaluate_folders
from maskmed_zoo.evaluation.metrics import Metric
from maskmed_zoo.evaluation.settings import SettingsSource
from maskmed_zoo.evaluation.written import read_summary
from maskmed_zoo.files import is_file, is_folder, is_there, usable
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.runner.study_folder import folds_in, runs_at
from maskmed_zoo.weights.card import RECIPE

SCORES, PREDICTIONS = "evaluation.json", "predictions"
"""In the folder of a run."""
ALIKE = {"recipe": "name of the recipe", "dataset": "data set", "fold": "fold", "weights": "choice of weights"}
"""Keys of `evaluation.json` that runs of one method share, and what they are."""


@dataclass(frozen=True)
class References:
    """Against what label maps are scored, and how, as in `evaluate`; without a `ref` they cannot be.

    `missing_as_missed` is also whether scores that were made so are compared.
    """

    ref: Path | None = None
    labels: Mapping[str, int] | None = None
    settings: SettingsSource | None = None
    missing_as_missed: bool = False


@dataclass(frozen=True)
class Run:
    """One training run, or one folder of predictions: its scores and what the files tell of it; `folder` of a run.

    A study of several folds counts as one run.

    `facts` of a run are those of its own files, whoever has scored its label maps.
    """

    scores: RunScores
    facts: dict[str, Any]
    folder: Path | None


@dataclass(frozen=True)
class Method:
    """What is compared: runs that differ by their seed alone."""

    name: str
    runs: tuple[Run, ...]


def name_of(path: Path) -> str:
    """What a method is called that has no name: as its folder or file; raises `DataError` for no usable path."""
    return usable(path, DataError).resolve().name.removesuffix(".json")


def read_methods(given: Mapping[str, Sequence[Path]], wanted: Sequence[Metric], references: References) -> list[Method]:
    """The methods by name, each of one or several paths; their scores are of the same cases, labels and references.

    A path is a run's folder, a folder of several runs, a folder of label maps, or a file of `evaluate --json`. Where
    there is a `ref`, label maps of runs are scored anew against it. Raises `ArgumentError` for fewer than two methods,
    `DataError` for what cannot be used or compared.
    """
    if len(given) < 2:
        raise ArgumentError("compare: give two methods or more")
    methods: list[Method] = []
    of: dict[str, str] = {}
    for name, paths in given.items():
        places = [place for path in paths for place in _places(usable(path, DataError))]
        runs = tuple(_run(place, wanted, references) for place in places)
        _check_different(name, places, runs)
        _check_seeds(name, places, runs)
        for place in places:
            if (other := of.setdefault(_home(place), name)) != name:
                raise DataError(f"{place}: in '{other}' and in '{name}'; give every run to one method")
        methods.append(Method(name, runs))
    check_alike([run.scores for method in methods for run in method.runs])
    return methods


def _places(path: Path) -> list[Path]:
    """The path itself, or the runs in a folder that is none and holds no label maps."""
    if not is_folder(path) or _is_run(path) or image_files(path):
        return [path]
    runs = [inner for inner in sorted(path.iterdir()) if _is_run(inner)]
    if not runs:
        raise DataError(f"{path}: no run, no folder of runs and no label maps; give one of them, or scores (.json)")
    return runs


def _is_run(path: Path) -> bool:
    return is_file(path / RECIPE) or is_file(path / SCORES) or bool(folds_in(path))


def _home(place: Path) -> str:
    """The same for a run's folder and its scores."""
    real = place.resolve()
    return str(real.parent if real.name == SCORES else real)


def _run(path: Path, wanted: Sequence[Metric], references: References) -> Run:
    if not is_there(path):
        raise DataError(f"{path}: is not there; give a run, a folder of label maps, or scores (.json)")
    is_run = _is_run(path)
    if references.ref and (folds := folds_in(path)):
        raise DataError(
            f"{path}: a study, whose label maps lie in its folds ({folds[min(folds)] / PREDICTIONS}, …); compare its "
            f"scores, without --ref, or give the folds' label maps in one folder"
        )
    if is_run and not references.ref and not is_file(path / SCORES):
        raise DataError(f"{path}: not scored yet; 'maskmed-zoo evaluate {path}' does that")
    if not is_folder(path) or (is_run and not references.ref):
        if not is_run and references.ref:
            raise DataError(f"{path}: scores are no label maps, which --ref scores; give their folder, or no --ref")
        facts, scores = read_scores(path / SCORES if is_run else path, wanted)
        if scores.unpredicted and not references.missing_as_missed:
            raise DataError(
                f"{scores.place}: scored without a prediction of {some(scores.unpredicted)}, as missed; predict and "
                f"evaluate again, or compare them so (--missing-as-missed)"
            )
    elif references.ref is None:
        raise DataError(f"{path}: label maps are scored against references; say with --ref where those are")
    else:
        folder = path / PREDICTIONS if is_run else path
        found = evaluate_folders(
            folder,
            references.ref,
            references.labels,
            metrics=[metric.name for metric in wanted],
            settings=references.settings,
            missing_as_missed=references.missing_as_missed,
        )
        scores = scores_of(found, str(folder), wanted)
        facts = _facts(path) if is_run else {}
    return Run(scores, facts, path if is_run else None)


def _facts(folder: Path) -> dict[str, Any]:
    """Of a run whose label maps are scored anew: what it was trained on, and how fast it predicted."""
    known: dict[str, Any] = {}
    with suppress(UserError):
        manifest = RunFolder(folder).manifest()
        known = {key: manifest[key] for key in ("dataset", "fold", "seed")}
    return known | (read_summary(folder / SCORES) or {})


def _check_seeds(name: str, places: Sequence[Path], runs: Sequence[Run]) -> None:
    """Raise `DataError` where runs of one method differ by more than their seed, or not by it, as far as is known."""
    seen: dict[str, tuple[Path, Any]] = {}
    seeds: dict[int, Path] = {}
    for place, run in zip(places, runs, strict=True):
        told = {what: run.facts.get(key) for key, what in ALIKE.items()} | {"recipe": _recipe(run)}
        for what, value in told.items():
            if value is None:
                continue
            other, first = seen.setdefault(what, (place, value))
            if value != first:
                raise DataError(
                    f"{place}: another {what} than {other}; runs of '{name}' may differ by their seed alone, so give "
                    f"it as a method of its own"
                )
        seed = run.facts.get("seed")
        if isinstance(seed, int) and seeds.setdefault(seed, place) is not place:
            raise DataError(f"{place}: seed {seed}, as {seeds[seed]}; runs of '{name}' need seeds of their own")


def _recipe(run: Run) -> dict[str, Any] | None:
    """All of it but the seed; None where it is not known."""
    if run.folder is None:
        return None
    try:
        recipe = RunFolder(runs_at(run.folder)[0]).recipe().model_dump(mode="json")
    except UserError:  # of a plug-in that is not installed here, or of another version
        return None
    recipe["train"].pop("seed")
    return recipe


def _check_different(name: str, places: Sequence[Path], runs: Sequence[Run]) -> None:
    """Raise `DataError` where one run would be counted as two."""
    if not places:
        raise ArgumentError(f"compare: '{name}' names no path")
    seen: dict[str, Path] = {}
    for place, run in zip(places, runs, strict=True):
        for key in (_home(place), run.facts.get("weights_sha256")):
            if isinstance(key, str) and seen.setdefault(key, place) is not place:
                raise DataError(f"{place}: the same run as {seen[key]}, twice in '{name}'; seeds are different runs")
